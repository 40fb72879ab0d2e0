// The daemon's side of a ring in memory that a client shares: chains of descriptors in, lengths out.

import CLinux
import ControlProtocol
import GuestMemory

/// What a ring held made no sense; nobody can tell what the client meant, so the ring is served no further.
struct RingBreakage: Error, Sendable {
    let reason: String
}

/// A split virtqueue as the device uses it.
///
/// The client writes this memory at any time: indices and descriptors are read once each and then checked.
struct RingQueue: ~Copyable {
    private let memory: MemoryRegion
    private let layout: DMARingLayout
    private let base: UnsafeMutableRawPointer
    /// The next entry of the available ring, and where the client has filled it up to, as last read.
    private var nextAvailable: UInt16 = 0
    private var availableEnd: UInt16 = 0
    /// The next entry of the used ring.
    private var nextUsed: UInt16 = 0
    /// The chain's segments: those that are read, then those that are written.
    private let segments: UnsafeMutableBufferPointer<UnsafeMutableRawBufferPointer>
    private var readableCount = 0
    private var segmentCount = 0

    /// Looks whether a ring lies in a buffer.
    ///
    /// - Throws: A rejection where it does not, or in one that cannot be written.
    static func check(_ memory: MemoryRegion, _ layout: DMARingLayout) throws(DMARejection) {
        guard layout.end <= memory.byteCount else {
            throw DMARejection(
                .range,
                "a ring of \(layout.size) descriptors ends at \(layout.end), after the buffer's \(memory.byteCount) bytes"
            )
        }
        do throws(GuestMemoryError) {
            _ = try memory.pointer(at: 0, count: memory.byteCount, for: .write)
        } catch {
            throw DMARejection(error)
        }
    }

    /// A ring that ``check(_:_:)`` found to lie in the buffer.
    init(_ memory: MemoryRegion, _ layout: DMARingLayout) {
        precondition(layout.end <= memory.byteCount && memory.isWritable, "not checked")
        self.memory = memory
        self.layout = layout
        base = memory.base
        segments = .allocate(capacity: DMARingLayout.chainLengthMax)
        segments.initialize(repeating: UnsafeMutableRawBufferPointer(start: nil, count: 0))
    }

    deinit { segments.deallocate() }

    /// What the client wants read: a request's header and its payload.
    var readable: UnsafeMutableBufferPointer<UnsafeMutableRawBufferPointer>.SubSequence {
        segments[..<readableCount]
    }
    /// Where the client wants the answer.
    var writable: UnsafeMutableBufferPointer<UnsafeMutableRawBufferPointer>.SubSequence {
        segments[readableCount..<segmentCount]
    }

    /// Whether a client truncated the file under the ring: what was read of it since are zeroes.
    var isLost: Bool { memory.isLost }

    // MARK: Requests

    /// Whether there is a chain that was not taken; a glance, without an effect.
    var hasMore: Bool {
        nextAvailable != availableEnd
            || UInt16(littleEndian: smmud_load_u16(base + Int(layout.available) + 2)) != nextAvailable
    }

    /// Takes the next chain; ``readable`` and ``writable`` are its bytes until the next one is taken.
    ///
    /// - Returns: Its head, for ``complete(_:byteCount:)``; nil where none is available.
    mutating func next() throws(RingBreakage) -> UInt16? {
        if nextAvailable == availableEnd {
            availableEnd = UInt16(littleEndian: smmud_load_u16(base + Int(layout.available) + 2))
            let count = availableEnd &- nextAvailable
            guard count > 0 else { return nil }
            guard count <= layout.size else {
                availableEnd = nextAvailable
                throw RingBreakage(
                    reason: "the available ring's index is \(count) ahead; a ring has \(layout.size) entries"
                )
            }
        }
        let head = UInt16(littleEndian: smmud_load_u16(base + Int(layout.availableEntry(nextAvailable))))
        nextAvailable &+= 1
        try gather(from: head)
        return head
    }

    private mutating func gather(from head: UInt16) throws(RingBreakage) {
        (readableCount, segmentCount) = (0, 0)
        var index = head
        while true {
            guard index < layout.size else {
                throw RingBreakage(reason: "descriptor \(index): the table has \(layout.size)")
            }
            guard segmentCount < DMARingLayout.chainLengthMax else {
                throw RingBreakage(
                    reason:
                        "the chain from descriptor \(head) has more than \(DMARingLayout.chainLengthMax), or goes round"
                )
            }
            let place = base + Int(layout.descriptor(index))
            let descriptor = DMARingDescriptor(
                low: UInt64(littleEndian: smmud_load_u64(place)),
                high: UInt64(littleEndian: smmud_load_u64(place + 8))
            )
            guard descriptor.offset <= memory.byteCount,
                UInt64(descriptor.byteCount) <= memory.byteCount - descriptor.offset
            else {
                throw RingBreakage(
                    reason:
                        "descriptor \(index): \(descriptor.byteCount) bytes at offset \(descriptor.offset) leave "
                        + "the buffer of \(memory.byteCount) bytes"
                )
            }
            let isWritable = descriptor.flags & DMARingLayout.isWritable != 0
            guard isWritable || segmentCount == readableCount else {
                throw RingBreakage(
                    reason:
                        "descriptor \(index): one to read comes after one to write in the chain from \(head)"
                )
            }
            segments[segmentCount] = UnsafeMutableRawBufferPointer(
                start: base + Int(descriptor.offset),
                count: Int(descriptor.byteCount)
            )
            segmentCount += 1
            if !isWritable { readableCount += 1 }
            guard descriptor.flags & DMARingLayout.hasNext != 0 else { return }
            index = descriptor.next
        }
    }

    // MARK: Answers

    /// Puts a chain into the used ring; the client sees it after ``publish()``.
    mutating func complete(_ head: UInt16, byteCount: UInt32) {
        smmud_store_u64(
            base + Int(layout.usedEntry(nextUsed)),
            (UInt64(head) | UInt64(byteCount) << 32).littleEndian
        )
        nextUsed &+= 1
    }

    /// Shows the client all that is complete.
    ///
    /// - Returns: Whether it wants to be told.
    func publish() -> Bool {
        smmud_store_u16(base + Int(layout.used) + 2, nextUsed.littleEndian)
        // The index before the flags are looked at: the client clears the flag, and then looks at the index.
        smmud_fence_seq_cst()
        return smmud_load_u16(base + Int(layout.available)) & DMARingLayout.noInterrupt.littleEndian == 0
    }

    /// Says whether signals are wanted of the client; when it returns, what was made available before is seen.
    func setNotify(_ isWanted: Bool) {
        smmud_store_u16(base + Int(layout.used), isWanted ? 0 : DMARingLayout.noNotify.littleEndian)
        smmud_fence_seq_cst()
    }

    /// Tells the client that the ring is served no further.
    func markBroken() { smmud_store_u16(base + Int(layout.used), DMARingLayout.broken.littleEndian) }
}
