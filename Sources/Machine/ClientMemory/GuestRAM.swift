// A client's memory as the machine's RAM: it lends at physical addresses.

import Synchronization
import VFIOUserProtocol
import VFIOUserServer

/// What one connection lends, where its addresses are physical ones: a guest whose own driver programs our SMMUs, or
/// a device before which no SMMU stands.
final class GuestRAM: VFIOUserMemory {
    private let memory: LentMemory
    private let book = Mutex(ClientBook<SharedFileRange?>())

    init(_ memory: LentMemory) { self.memory = memory }

    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        let file: SharedFileRange?
        let owned: VFIOUserMemorySource
        switch consume source {
        case .descriptor(let descriptor, let offset):
            file = SharedFileRange(descriptor, offset: offset, range)
            guard file != nil else { throw .invalid }
            owned = .descriptor(descriptor, offset: offset)
        case .messages(let remote):
            file = nil
            owned = .messages(remote)
        }
        let isNew = try book.withLock { (book) throws(VFIOUserError) in
            try book.admits(range) { $0 == file }
        }
        guard isNew else { return }
        // One thread serves a connection, so nothing comes between.
        try memory.add(range, at: range.address, owned, user: ObjectIdentifier(self))
        book.withLock { $0.insert(range, file) }
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) {
        let removed = try book.withLock { (book) throws(VFIOUserError) in
            try book.remove(address, byteCount)
        }
        for entry in removed { giveBack(entry.range) }
    }

    func unmapAll() {
        for entry in book.withLock({ $0.removeAll() }) { giveBack(entry.range) }
    }

    private func giveBack(_ range: VFIOUserMemoryRange) {
        memory.remove(address: range.address, byteCount: range.byteCount, user: ObjectIdentifier(self))
    }
}

/// What a connection lends where nothing could map it: an SMMU stands before the device, and nobody here drives it.
final class NoMemory: VFIOUserMemory {
    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        throw .notSupported
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) { throw .noEntry }

    func unmapAll() {}
}
