// The driver's side of a split virtqueue, in the machine's RAM. Offsets are the specification's, typed here anew.

import CLinux
import DeviceModel
import Testing

/// One buffer of a chain.
struct DriverBuffer {
    var address: UInt64
    var length: UInt32
    var isWritable: Bool

    static func out(_ address: UInt64, _ length: Int) -> Self {
        Self(address: address, length: UInt32(length), isWritable: false)
    }
    static func into(_ address: UInt64, _ length: Int) -> Self {
        Self(address: address, length: UInt32(length), isWritable: true)
    }
}

/// A split virtqueue as a driver keeps it.
class DriverQueue {
    let machine: TestMachine
    let size: Int
    let descriptors: UInt64
    let available: UInt64
    let used: UInt64
    let hasEventIndex: Bool
    private(set) var availableIndex: UInt16 = 0
    private(set) var usedSeen: UInt16 = 0
    private var free: [UInt16]
    private var chains: [UInt16: [UInt16]] = [:]

    init(_ machine: TestMachine, size: Int, hasEventIndex: Bool = false) {
        self.machine = machine
        self.size = size
        self.hasEventIndex = hasEventIndex
        descriptors = machine.allocate(16 * size, alignment: 16)
        available = machine.allocate(6 + 2 * size, alignment: 4)
        used = machine.allocate(6 + 8 * size, alignment: 4)
        free = (0..<UInt16(size)).reversed()
    }

    /// virtq_desc: le64 addr, le32 len, le16 flags, le16 next.
    func setDescriptor(
        at address: UInt64,
        _ buffer: UInt64,
        _ length: UInt32,
        flags: UInt16,
        next: UInt16
    ) {
        machine.put(
            little(buffer, 8) + little(UInt64(length), 4) + little(UInt64(flags), 2)
                + little(UInt64(next), 2),
            address
        )
    }

    private func writeChain(_ buffers: [DriverBuffer], at table: UInt64, _ indices: [UInt16]) {
        for (place, buffer) in buffers.enumerated() {
            let isLast = place == buffers.count - 1
            setDescriptor(
                at: table + 16 * UInt64(indices[place]),
                buffer.address,
                buffer.length,
                flags: (isLast ? 0 : 1) | (buffer.isWritable ? 2 : 0),
                next: isLast ? 0 : indices[place + 1]
            )
        }
    }

    /// Makes a chain available; nil where there is no room, else its head.
    @discardableResult
    func add(_ buffers: [DriverBuffer]) -> UInt16? {
        guard free.count >= buffers.count else { return nil }
        let indices = buffers.map { _ in free.removeLast() }
        writeChain(buffers, at: descriptors, indices)
        chains[indices[0]] = indices
        publish(indices[0])
        return indices[0]
    }

    /// Makes a chain in an indirect table available.
    @discardableResult
    func addIndirect(_ buffers: [DriverBuffer]) -> UInt16? {
        guard let head = free.popLast() else { return nil }
        let table = machine.allocate(16 * buffers.count, alignment: 16)
        writeChain(buffers, at: table, (0..<UInt16(buffers.count)).map { $0 })
        setDescriptor(
            at: descriptors + 16 * UInt64(head),
            table,
            UInt32(16 * buffers.count),
            flags: 4,
            next: 0
        )
        chains[head] = [head]
        publish(head)
        return head
    }

    /// Puts any number into the available ring and moves the index.
    func publish(_ head: UInt16) {
        machine.store(UInt64(head), .halfword, available + 4 + 2 * UInt64(Int(availableIndex) % size))
        availableIndex &+= 1
        machine.store(UInt64(availableIndex), .halfword, available + 2)
        smmud_fence_seq_cst()
    }

    /// Whether the device wants to be notified of what was just added, where `count` chains were.
    func wantsNotification(added count: UInt16) -> Bool {
        guard hasEventIndex else { return machine.load(.halfword, used) & 1 == 0 }
        let event = UInt16(machine.load(.halfword, used + 4 + 8 * UInt64(size)))
        let old = availableIndex &- count
        return availableIndex &- event &- 1 < availableIndex &- old
    }

    var usedIndex: UInt16 { UInt16(machine.load(.halfword, used + 2)) }

    /// Takes the next used element: head and length; nil where there is none.
    func take() -> (head: UInt16, length: UInt32)? {
        guard usedIndex != usedSeen else { return nil }
        let place = used + 4 + 8 * UInt64(Int(usedSeen) % size)
        let head = UInt16(machine.load(.word, place))
        let length = UInt32(machine.load(.word, place + 4))
        usedSeen &+= 1
        free += chains.removeValue(forKey: head) ?? []
        return (head, length)
    }

    /// Waits for the next used element.
    func await() throws -> (head: UInt16, length: UInt32) {
        var found: (head: UInt16, length: UInt32)?
        _ = eventually {
            found = take()
            return found != nil
        }
        return try #require(found, "the device used no buffer")
    }

    /// used_event: interrupt once the used index passes this.
    func setUsedEvent(_ index: UInt16) {
        machine.store(UInt64(index), .halfword, available + 4 + 2 * UInt64(size))
    }
}
