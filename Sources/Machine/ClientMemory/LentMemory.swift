// Memory that clients lend, on the machine's bus.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import Synchronization
import SystemBus
import SystemPackage
import VFIOUserProtocol
import VFIOUserServer

/// Which bytes of which file: the same ones are one mapping, however many descriptors of them come.
struct SharedFileRange: Hashable, Sendable {
    let device: UInt64
    let inode: UInt64
    let offset: UInt64
    let byteCount: UInt64
    let isWritable: Bool

    init?(_ descriptor: borrowing OwnedDescriptor, offset: UInt64, _ range: VFIOUserMemoryRange) {
        var status = stat()
        guard fstat(descriptor.rawValue, &status) == 0 else { return nil }
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
        self.offset = offset
        byteCount = range.byteCount
        isWritable = range.isWritable
    }
}

/// What clients lend at physical addresses, each piece once.
///
/// A VMM has a connection for each function, and sends the same RAM on each of them: the same file range at the same
/// address is one entry of the bus with as many users. What a client keeps to itself is asked for over the first
/// connection that named it, and over another one when that is gone.
///
/// Lock order: its own, then a ``ForeignMemory``'s, then the bus's. Taking memory back waits for accesses under way,
/// and for foreign devices to let go, with the lock held: others who lend or take back wait behind it.
final class LentMemory: Sendable {
    private struct Entry {
        var file: SharedFileRange?
        var isWritable: Bool
        /// Who uses it; of what a client keeps to itself, the first is asked.
        var users: [(user: ObjectIdentifier, remote: (any RemoteMemory)?)]
    }
    private struct State: Sendable { var entries: [AddressRange: Entry] = [:] }

    private let bus: SystemBus
    /// Waits until no access uses any more what was taken off the bus, and frees it.
    private let settle: @Sendable () -> Void
    private let state = Mutex(State())
    /// Devices of other programs that are lent memory, and so have to hear of what comes and goes.
    private let foreign = OnceSet<[ForeignMemory]>()

    init(bus: SystemBus, settle: @escaping @Sendable () -> Void) {
        self.bus = bus
        self.settle = settle
    }

    /// Tells them, from now on, of RAM that comes and goes.
    func follow(by foreign: [ForeignMemory]) { if !foreign.isEmpty { self.foreign.set(foreign) } }

    private func changed(_ place: AddressRange) {
        for memory in foreign.value ?? [] { memory.memoryChanged(at: place) }
    }

    /// Puts memory on the bus at `address`, or counts one more user of what is there already.
    func add(
        _ range: VFIOUserMemoryRange,
        at address: UInt64,
        _ source: consuming VFIOUserMemorySource,
        user: ObjectIdentifier
    ) throws(VFIOUserError) {
        guard let place = AddressRange(start: address, byteCount: range.byteCount) else { throw .invalid }
        switch consume source {
        case .descriptor(let descriptor, let offset):
            guard let file = SharedFileRange(descriptor, offset: offset, range) else { throw .invalid }
            try addFile(descriptor, file, at: place, user)
        case .messages(let remote):
            try addRemote(remote, isWritable: range.isWritable, at: place, user)
        }
    }

    private func addFile(
        _ descriptor: consuming OwnedDescriptor,
        _ file: SharedFileRange,
        at place: AddressRange,
        _ user: ObjectIdentifier
    ) throws(VFIOUserError) {
        // Its copy: a closure cannot consume what it captures.
        var owned: OwnedDescriptor? = consume descriptor
        try state.withLock { (state) throws(VFIOUserError) in
            if let known = state.entries[place] {
                guard known.file == file else { throw .exists }
                state.entries[place]?.users.append((user, nil))
                return
            }
            guard let descriptor = owned.take() else { return }
            let region: GuestMemory.MemoryRegion
            do throws(GuestMemoryError) {
                region = try .mapping(
                    descriptor,
                    offset: file.offset,
                    byteCount: file.byteCount,
                    isWritable: file.isWritable
                )
            } catch {
                throw Self.wireError(error)
            }
            do throws(AddressConflict) {
                try bus.addRAM(region, at: PhysicalAddress(place.first), name: region.name)
            } catch {
                throw .exists
            }
            state.entries[place] = Entry(file: file, isWritable: file.isWritable, users: [(user, nil)])
            changed(place)
        }
    }

    private func addRemote(
        _ remote: any RemoteMemory,
        isWritable: Bool,
        at place: AddressRange,
        _ user: ObjectIdentifier
    ) throws(VFIOUserError) {
        try state.withLock { (state) throws(VFIOUserError) in
            if let known = state.entries[place] {
                guard known.file == nil, known.isWritable == isWritable else { throw .exists }
                state.entries[place]?.users.append((user, remote))
                return
            }
            try putRemote(remote, isWritable: isWritable, at: place)
            state.entries[place] = Entry(file: nil, isWritable: isWritable, users: [(user, remote)])
        }
    }

    private func putRemote(_ remote: any RemoteMemory, isWritable: Bool, at place: AddressRange)
        throws(VFIOUserError)
    {
        do throws(AddressConflict) {
            try bus.addRemote(remote, at: place, isWritable: isWritable, name: "a client's own memory")
        } catch {
            throw .exists
        }
    }

    /// Counts one user less of what stands at `address`, and takes it off the bus with the last.
    ///
    /// When this returns no access reaches it over that user any more.
    func remove(address: UInt64, byteCount: UInt64, user: ObjectIdentifier) {
        guard let place = AddressRange(start: address, byteCount: byteCount) else { return }
        state.withLock { state in
            guard var entry = state.entries[place],
                let index = entry.users.firstIndex(where: { $0.user == user })
            else { return }
            let wasAsked = index == 0 && entry.file == nil
            entry.users.remove(at: index)
            guard !entry.users.isEmpty else {
                state.entries[place] = nil
                if entry.file == nil {
                    bus.removeRemote(at: place)
                } else {
                    bus.removeRAM(at: place)
                    changed(place)
                }
                settle()
                return
            }
            state.entries[place] = entry
            guard wasAsked, let next = entry.users[0].remote else { return }
            bus.removeRemote(at: place)
            // Nothing else can have come there: the entry is still this table's.
            try? putRemote(next, isWritable: entry.isWritable, at: place)
            settle()
        }
    }

    /// What can go wrong with a client's file, in the protocol's words.
    static func wireError(_ error: GuestMemoryError) -> VFIOUserError {
        switch error {
        case .descriptorForbids, .writeSealed: .notPermitted
        case .tooManyMappings: .noSpace
        case .refused(_, _, let errno): VFIOUserError(rawValue: UInt32(clamping: errno.rawValue))
        default: .invalid
        }
    }
}
