// The driver's side of a packed virtqueue. Offsets and flags are the specification's (2.8), typed here anew.

import CLinux
import DeviceModel

/// A packed virtqueue as a driver keeps it: `available` and `used` are the event suppression structures.
final class PackedDriverQueue: DriverQueue {
    private var next = 0
    private var nextWrap = true
    private var usedPlace = 0
    private var usedWrap = true
    private var freeCount: Int
    private var freeIDs: [UInt16]
    private var counts: [UInt16: Int] = [:]
    /// Where the next chain begins, and which time round.
    var position: (index: Int, wrap: Bool) { (next, nextWrap) }

    override init(_ machine: TestMachine, size: Int, hasEventIndex: Bool = false) {
        freeCount = size
        freeIDs = (0..<UInt16(size)).map { $0 &+ 100 }.reversed()
        super.init(machine, size: size, hasEventIndex: hasEventIndex)
    }

    /// pvirtq_desc: le64 addr, le32 len, le16 id, le16 flags.
    func setPacked(at address: UInt64, _ buffer: UInt64, _ length: UInt32, id: UInt16, flags: UInt16) {
        machine.put(little(buffer, 8) + little(UInt64(length), 4) + little(UInt64(id), 2), address)
        machine.store(UInt64(flags), .halfword, address + 14)
    }

    /// AVAIL (bit 7) as the wrap counter, USED (bit 15) not.
    var ownFlags: UInt16 { nextWrap ? 1 << 7 : 1 << 15 }

    private func advance() {
        next += 1
        if next == size {
            next = 0
            nextWrap.toggle()
        }
    }

    /// Puts descriptors into the ring; the head's flags go last.
    private func put(_ entries: [(address: UInt64, length: UInt32, flags: UInt16)]) -> UInt16? {
        guard freeCount >= entries.count, let id = freeIDs.popLast() else { return nil }
        let head = (place: descriptors + 16 * UInt64(next), flags: ownFlags | entries[0].flags)
        for (index, entry) in entries.enumerated() {
            // The buffer ID counts in the last descriptor alone.
            let isLast = index == entries.count - 1
            let place = descriptors + 16 * UInt64(next)
            machine.put(
                little(entry.address, 8) + little(UInt64(entry.length), 4)
                    + little(isLast ? UInt64(id) : 0xDEAD, 2),
                place
            )
            if index > 0 { machine.store(UInt64(ownFlags | entry.flags), .halfword, place + 14) }
            advance()
        }
        machine.store(UInt64(head.flags), .halfword, head.place + 14)
        smmud_fence_seq_cst()
        freeCount -= entries.count
        counts[id] = entries.count
        return id
    }

    override func add(_ buffers: [DriverBuffer]) -> UInt16? {
        put(
            buffers.enumerated().map { index, buffer in
                (
                    buffer.address, buffer.length,
                    (index < buffers.count - 1 ? 1 : 0) | (buffer.isWritable ? 2 : 0)
                )
            }
        )
    }

    override func addIndirect(_ buffers: [DriverBuffer]) -> UInt16? {
        let table = machine.allocate(16 * buffers.count, alignment: 16)
        for (index, buffer) in buffers.enumerated() {
            let place = table + 16 * UInt64(index)
            setPacked(at: place, buffer.address, buffer.length, id: 0, flags: buffer.isWritable ? 2 : 0)
        }
        return put([(table, UInt32(16 * buffers.count), 4)])
    }

    override func wantsNotification(added count: UInt16) -> Bool {
        // RING_EVENT_FLAGS: 0 enable, 1 disable, 2 descriptor; the mock takes a specific one for all.
        machine.load(.halfword, used + 2) & 3 != 1
    }

    override func take() -> (head: UInt16, length: UInt32)? {
        let place = descriptors + 16 * UInt64(usedPlace)
        let flags = machine.load(.halfword, place + 14)
        guard (flags >> 7 & 1 == 1) == usedWrap, (flags >> 15 & 1 == 1) == usedWrap else { return nil }
        let id = UInt16(machine.load(.halfword, place + 12))
        let length = UInt32(machine.load(.word, place + 8))
        guard let count = counts.removeValue(forKey: id) else { return nil }
        freeIDs.append(id)
        freeCount += count
        usedPlace += count
        if usedPlace >= size {
            usedPlace -= size
            usedWrap.toggle()
        }
        return (id, length)
    }

    /// Driver event suppression: le16 desc (place, wrap in bit 15), le16 flags.
    func setEvent(_ place: Int, wrap: Bool, flags: UInt64) {
        machine.store(UInt64(place) | (wrap ? 1 << 15 : 0) | flags << 16, .word, available)
    }
}
