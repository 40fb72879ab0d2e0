// The daemon's side of a ring in memory that a client shares: chains of descriptors in, lengths out.

import CLinux
package import ControlProtocol
package import GuestMemory

/// What a ring held made no sense; nobody can tell what the client meant, so the ring is served no further.
package struct RingBreakage: Error, Sendable {
    package let reason: String
}

/// One chain: the bytes that its descriptors name, in the client's buffer.
package struct RingChain {
    /// Its first descriptor's index.
    package let head: UInt16
    /// How many segments are there to read; they come first.
    package let readableCount: Int
    package let segmentCount: Int
    /// Good until the queue is asked for more chains.
    package let segments: UnsafeMutablePointer<UnsafeMutableRawBufferPointer>
}

/// A chain of two descriptors, one to read and one to write, as it was when it was looked at.
///
/// A client does well to write a slot's descriptors once; then they are compared and not looked at again.
private struct RingPair {
    /// Its first descriptor's index; none's where nothing is known.
    var head: UInt32 = .max
    /// The second one's.
    var next: UInt16 = 0
    /// The descriptors' words as they are in memory.
    var asked: (low: UInt64, high: UInt64) = (0, 0)
    var answer: (low: UInt64, high: UInt64) = (0, 0)
    /// What these name: it was found to lie in the buffer.
    var segments = (
        UnsafeMutableRawBufferPointer(start: nil, count: 0),
        UnsafeMutableRawBufferPointer(start: nil, count: 0)
    )
}

/// A split virtqueue as the device uses it.
///
/// The client writes this memory at any time: indices and descriptors are read once each and then checked. Chains are
/// taken some at a time, so that the lines which hold the requests, and those which take the answers, are on their way
/// from the client's processor before the first one is looked at.
package struct RingQueue: ~Copyable {
    private let memory: MemoryRegion
    private let base: UnsafeMutableRawPointer
    private let byteCount: UInt64
    private let size: UInt16
    // The three parts.
    private let table: UnsafeMutableRawPointer
    private let available: UnsafeMutableRawPointer
    private let used: UnsafeMutableRawPointer
    /// The next entry of the available ring.
    private var nextAvailable: UInt16 = 0
    /// The next entry of the used ring.
    private var nextUsed: UInt16 = 0
    /// The chains that were taken last, and their segments, ``DMARingLayout/chainLengthMax`` each.
    private let chains: UnsafeMutablePointer<RingChain>
    private let segments: UnsafeMutablePointer<UnsafeMutableRawBufferPointer>
    /// Pairs that were looked at, each in the place that its head says.
    private let pairs: UnsafeMutablePointer<RingPair>
    private let pairMask: UInt16
    /// What was found wrong after the chains that were taken last.
    private var breakage: RingBreakage?
    /// Where the next chain's request is likely to be, and how many of its bytes are looked for: where the last one's
    /// was, as long as they come one at a time.
    ///
    /// It says what to prefetch, and nothing else.
    private var expectedRequest = UnsafeMutableRawBufferPointer(start: nil, count: 0)

    /// How many chains are taken at a time.
    private static var batchCount: Int { 8 }
    /// How many pairs are remembered at most: they take 18 KiB.
    private static var pairCountMax: UInt16 { 256 }

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
    package init(_ memory: MemoryRegion, _ layout: DMARingLayout) {
        precondition(layout.end <= memory.byteCount && memory.isWritable, "not checked")
        self.memory = memory
        base = memory.base
        byteCount = memory.byteCount
        size = layout.size
        table = base + Int(layout.descriptors)
        available = base + Int(layout.available)
        used = base + Int(layout.used)
        let segmentCount = Self.batchCount * DMARingLayout.chainLengthMax
        segments = .allocate(capacity: segmentCount)
        segments.initialize(
            repeating: UnsafeMutableRawBufferPointer(start: nil, count: 0),
            count: segmentCount
        )
        chains = .allocate(capacity: Self.batchCount)
        chains.initialize(
            repeating: RingChain(head: 0, readableCount: 0, segmentCount: 0, segments: segments),
            count: Self.batchCount
        )
        // A power of two, as the size is.
        let pairCount = min(size, Self.pairCountMax)
        pairMask = pairCount &- 1
        pairs = .allocate(capacity: Int(pairCount))
        pairs.initialize(repeating: RingPair(), count: Int(pairCount))
    }

    deinit {
        pairs.deallocate()
        segments.deallocate()
        chains.deallocate()
    }

    /// Whether a client truncated the file under the ring: what was read of it since are zeroes.
    var isLost: Bool { memory.isLost }

    // MARK: Requests

    /// Whether there is a chain that was not taken; a glance, without an effect.
    @inline(__always)
    var hasMore: Bool {
        UInt16(littleEndian: smmud_load_u16(available + 2)) != nextAvailable || breakage != nil
    }

    /// Has the lines fetched that the next chain is likely to be in.
    ///
    /// Who waits for the index alone learns that a request is there, and only then asks for the request: that is two
    /// lines of the client's processor, one after the other, which can come side by side. Where several requests wait
    /// at a time it gains nothing and takes lines away from a client that is still writing them: then it does nothing.
    @inline(__always)
    func fetchExpected() {
        guard let request = expectedRequest.baseAddress else { return }
        smmud_prefetch(request)
        if expectedRequest.count > 64 { smmud_prefetch(request + 64) }
        smmud_prefetch(available + 4 + 2 * Int(nextAvailable & (size &- 1)))
    }

    /// Takes the next chains, some at most: ``subscript(_:)`` has them until more are taken.
    ///
    /// - Returns: How many; 0 where none is available.
    /// - Throws: What is wrong with the next one. Those before it were taken before.
    package mutating func take() throws(RingBreakage) -> Int {
        if let breakage { throw breakage }
        let waiting = UInt16(littleEndian: smmud_load_u16(available + 2)) &- nextAvailable
        guard waiting <= size else {
            throw RingBreakage(
                reason: "the available ring's index is \(waiting) ahead; a ring has \(size) entries"
            )
        }
        let count = min(Int(waiting), Self.batchCount)
        // The client that waits for one answer looks at its lines all the time: those that were fetched early would
        // be gone before they are written.
        let isAlone = waiting == 1
        for index in 0..<count {
            let place = available + 4 + 2 * Int(nextAvailable & (size &- 1))
            let head = UInt16(littleEndian: smmud_load_u16(place))
            let own = segments + index * DMARingLayout.chainLengthMax
            if let pair = unchangedPair(from: head) {
                chains[index] = chain(pair, into: own, fetchesAnswers: !isAlone)
            } else {
                do throws(RingBreakage) {
                    chains[index] = try gather(from: head, into: own, fetchesAnswers: !isAlone)
                } catch {
                    guard index > 0 else { throw error }
                    breakage = error
                    return index
                }
            }
            nextAvailable &+= 1
        }
        if count > 0 {
            expectedRequest = isAlone ? segments[0] : UnsafeMutableRawBufferPointer(start: nil, count: 0)
        }
        return count
    }

    /// A chain of those that ``take()`` took last.
    @inline(__always)
    package subscript(_ index: Int) -> RingChain { chains[index] }

    /// The pair that a chain was when it was looked at, where its descriptors still say the same.
    @inline(__always)
    private func unchangedPair(from head: UInt16) -> UnsafeMutablePointer<RingPair>? {
        let pair = pairs + Int(head & pairMask)
        guard pair.pointee.head == UInt32(head) else { return nil }
        let (asked, answer) = (table + 16 * Int(head), table + 16 * Int(pair.pointee.next))
        return smmud_load_u64(asked) == pair.pointee.asked.low
            && smmud_load_u64(asked + 8) == pair.pointee.asked.high
            && smmud_load_u64(answer) == pair.pointee.answer.low
            && smmud_load_u64(answer + 8) == pair.pointee.answer.high ? pair : nil
    }

    /// The chain of such a pair.
    @inline(__always)
    private func chain(
        _ pair: UnsafeMutablePointer<RingPair>,
        into segments: UnsafeMutablePointer<UnsafeMutableRawBufferPointer>,
        fetchesAnswers: Bool
    ) -> RingChain {
        let (asked, answer) = (pair.pointee.segments.0, pair.pointee.segments.1)
        (segments[0], segments[1]) = (asked, answer)
        smmud_prefetch(asked.baseAddress)
        if fetchesAnswers, let start = answer.baseAddress {
            smmud_prefetch_to_write(start)
            smmud_prefetch_to_write(start + 64)
        }
        return RingChain(
            head: UInt16(truncatingIfNeeded: pair.pointee.head),
            readableCount: 1,
            segmentCount: 2,
            segments: segments
        )
    }

    @inline(never)  // Keeps the way of pairs small.
    private func gather(
        from head: UInt16,
        into segments: UnsafeMutablePointer<UnsafeMutableRawBufferPointer>,
        fetchesAnswers: Bool
    ) throws(RingBreakage) -> RingChain {
        var (readableCount, segmentCount) = (0, 0)
        var pair = RingPair()
        var index = head
        while true {
            guard index < size, segmentCount < DMARingLayout.chainLengthMax else {
                throw breakage(at: index, from: head)
            }
            let place = table + 16 * Int(index)
            let words = (low: smmud_load_u64(place), high: smmud_load_u64(place + 8))
            let descriptor = DMARingDescriptor(
                low: UInt64(littleEndian: words.low),
                high: UInt64(littleEndian: words.high)
            )
            let isWritable = descriptor.flags & DMARingLayout.isWritable != 0
            guard descriptor.offset <= byteCount,
                UInt64(descriptor.byteCount) <= byteCount - descriptor.offset,
                isWritable || segmentCount == readableCount
            else { throw breakage(of: descriptor, at: index, from: head) }
            let start = base + Int(descriptor.offset)
            segments[segmentCount] = UnsafeMutableRawBufferPointer(
                start: start,
                count: Int(descriptor.byteCount)
            )
            segmentCount += 1
            if isWritable {
                if fetchesAnswers {
                    smmud_prefetch_to_write(start)
                    smmud_prefetch_to_write(start + 64)
                }
            } else {
                smmud_prefetch(start)
                readableCount += 1
            }
            if segmentCount == 1 { pair.asked = words } else { pair.answer = words }
            guard descriptor.flags & DMARingLayout.hasNext != 0 else {
                if segmentCount == 2, readableCount == 1 {
                    (pair.head, pair.next) = (UInt32(head), index)
                    pair.segments = (segments[0], segments[1])
                    pairs[Int(head & pairMask)] = pair
                }
                return RingChain(
                    head: head,
                    readableCount: readableCount,
                    segmentCount: segmentCount,
                    segments: segments
                )
            }
            index = descriptor.next
        }
    }

    @inline(never)
    private func breakage(at index: UInt16, from head: UInt16) -> RingBreakage {
        RingBreakage(
            reason: index < size
                ? "the chain from descriptor \(head) has more than \(DMARingLayout.chainLengthMax), or goes round"
                : "descriptor \(index): the table has \(size)"
        )
    }

    @inline(never)
    private func breakage(of descriptor: DMARingDescriptor, at index: UInt16, from head: UInt16)
        -> RingBreakage
    {
        guard descriptor.offset <= byteCount, UInt64(descriptor.byteCount) <= byteCount - descriptor.offset
        else {
            return RingBreakage(
                reason:
                    "descriptor \(index): \(descriptor.byteCount) bytes at offset \(descriptor.offset) leave "
                    + "the buffer of \(byteCount) bytes"
            )
        }
        return RingBreakage(
            reason: "descriptor \(index): one to read comes after one to write in the chain from \(head)"
        )
    }

    // MARK: Answers

    /// Puts a chain into the used ring; the client sees it after ``publish()``.
    @inline(__always)
    package mutating func complete(_ head: UInt16, byteCount: UInt32) {
        // Two words: an entry of 8 bytes is at a multiple of 4.
        let place = used + 4 + 8 * Int(nextUsed & (size &- 1))
        smmud_store_u32(place, UInt32(head).littleEndian)
        smmud_store_u32(place + 4, byteCount.littleEndian)
        nextUsed &+= 1
    }

    /// Shows the client all that is complete.
    ///
    /// - Returns: Whether it wants to be told.
    @inline(__always)
    package func publish() -> Bool {
        smmud_store_u16(used + 2, nextUsed.littleEndian)
        // The index before the flags are looked at: the client clears the flag, and then looks at the index.
        smmud_fence_seq_cst()
        return smmud_load_u16(available) & DMARingLayout.noInterrupt.littleEndian == 0
    }

    /// Says whether signals are wanted of the client; when it returns, what was made available before is seen.
    func setNotify(_ isWanted: Bool) {
        smmud_store_u16(used, isWanted ? 0 : DMARingLayout.noNotify.littleEndian)
        smmud_fence_seq_cst()
    }

    /// Tells the client that the ring is served no further.
    func markBroken() { smmud_store_u16(used, DMARingLayout.broken.littleEndian) }
}
