// A client's memory behind the machine's own SMMUs: DMA_MAP becomes a mapping in the device's domain.

import AddressSpace
import ControlProtocol
import DeviceModel
import GuestMemory
import Synchronization
import VFIOUserProtocol
import VFIOUserServer

/// Gives clients' memory physical addresses above everything that the board has.
///
/// The same range of the same file gets one place, however many connections lend it.
final class PhysicalWindows: Sendable {
    private struct Place {
        var address: UInt64
        var userCount: Int
    }
    private struct State {
        var taken: [AddressRange] = []
        var files: [SharedFileRange: Place] = [:]
    }
    private let space: AddressRange
    private let state = Mutex(State())

    /// - Parameter space: Where nothing of the board is, and which every SMMU can drive.
    init(in space: AddressRange) { self.space = space }

    /// A place for memory that a device sees at `iova`: aligned alike, so that large blocks can map it.
    ///
    /// - Returns: Nil where there is no room left.
    func place(_ byteCount: UInt64, _ file: SharedFileRange?, at iova: UInt64) -> UInt64? {
        state.withLock { state in
            if let file, state.files[file] != nil {
                state.files[file]?.userCount += 1
                return state.files[file]?.address
            }
            guard let range = Self.firstFit(byteCount, at: iova, in: space, state.taken) else { return nil }
            let index = state.taken.firstIndex { $0.first > range.first } ?? state.taken.endIndex
            state.taken.insert(range, at: index)
            if let file { state.files[file] = Place(address: range.first, userCount: 1) }
            return range.first
        }
    }

    /// Gives a place back; with its last user it is free.
    func release(_ address: UInt64, _ file: SharedFileRange?) {
        state.withLock { state in
            if let file, let place = state.files[file] {
                guard place.userCount == 1 else {
                    state.files[file]?.userCount -= 1
                    return
                }
                state.files[file] = nil
            }
            state.taken.removeAll { $0.first == address }
        }
    }

    private static func firstFit(
        _ byteCount: UInt64,
        at iova: UInt64,
        in space: AddressRange,
        _ taken: [AddressRange]
    ) -> AddressRange? {
        // Blocks have 1 GiB at most; smaller memory needs no larger alignment than itself.
        var alignment: UInt64 = 4096
        while alignment < byteCount, alignment < 1 << 30 { alignment <<= 1 }
        var start = space.first
        for next in taken.map({ Optional($0) }) + [nil] {
            let phase = (iova &- start) & (alignment - 1)
            let (candidate, overflow) = start.addingReportingOverflow(phase)
            guard !overflow, let range = AddressRange(start: candidate, byteCount: byteCount),
                space.contains(range)
            else { return nil }
            guard let next else { return range }
            if range.last < next.first { return range }
            let (after, isLast) = next.last.addingReportingOverflow(1)
            guard !isLast else { return nil }
            start = max(start, after)
        }
        return nil
    }
}

/// What one connection lends to a device behind an SMMU that the machine's own driver runs.
///
/// The memory gets physical addresses, and the driver maps the client's IOVAs to them in the device's domain: the
/// device's DMA goes through STE, CD and page tables. Taking it back is unmap, TLBI and SYNC.
final class MappedMemory: VFIOUserMemory {
    private struct Piece {
        var physical: UInt64
        var file: SharedFileRange?
        /// Where it was mapped: the device may be in another by the time it is taken back.
        var domain: ManagedDomain
    }

    private let memory: LentMemory
    private let windows: PhysicalWindows
    private let endpoint: ManagedEndpoint
    private let book = Mutex(ClientBook<Piece>())

    init(_ memory: LentMemory, _ windows: PhysicalWindows, _ endpoint: ManagedEndpoint) {
        self.memory = memory
        self.windows = windows
        self.endpoint = endpoint
    }

    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        // A write-only mapping does not exist in the tables; one for neither is of no use.
        guard range.isReadable || range.isWritable, (range.address | range.byteCount) & 0xFFF == 0 else {
            throw .invalid
        }
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
            try book.admits(range) { $0.file == file }
        }
        guard isNew else { return }
        guard let physical = windows.place(range.byteCount, file, at: range.address) else { throw .noSpace }
        do throws(VFIOUserError) {
            try memory.add(range, at: physical, owned, user: ObjectIdentifier(self))
        } catch {
            windows.release(physical, file)
            throw error
        }
        let domain: ManagedDomain
        do throws(ControlError) {
            domain = try endpoint.mappingDomain(of: nil)
            // Another function of the group may have lent the same: its client has a connection for each.
            _ = try domain.map(
                ManagedDomain.Request(
                    device: endpoint.endpoint.name,
                    iova: range.address,
                    physical: physical,
                    byteCount: range.byteCount,
                    permissions: ControlProtocol.Permissions(read: true, write: range.isWritable),
                    isCoherent: endpoint.endpoint.isCoherent,
                    isShared: true
                )
            )
        } catch {
            memory.remove(address: physical, byteCount: range.byteCount, user: ObjectIdentifier(self))
            windows.release(physical, file)
            throw Self.wireError(error)
        }
        book.withLock { $0.insert(range, Piece(physical: physical, file: file, domain: domain)) }
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) {
        let removed = try book.withLock { (book) throws(VFIOUserError) in
            try book.remove(address, byteCount)
        }
        for entry in removed { giveBack(entry.range, entry.value) }
    }

    func unmapAll() {
        for entry in book.withLock({ $0.removeAll() }) { giveBack(entry.range, entry.value) }
    }

    private func giveBack(_ range: VFIOUserMemoryRange, _ piece: Piece) {
        // Somebody may have unmapped it over the control socket: what counts is that it is gone.
        _ = try? piece.domain.unmap(
            at: range.address,
            range.byteCount,
            of: endpoint.endpoint.name,
            isShared: true
        )
        memory.remove(address: piece.physical, byteCount: range.byteCount, user: ObjectIdentifier(self))
        windows.release(piece.physical, piece.file)
    }

    private static func wireError(_ error: ControlError) -> VFIOUserError {
        switch error.code {
        case .conflict: .exists
        case .exhausted: .noSpace
        case .invalidParameters: .invalid
        default: .inputOutput
        }
    }
}
