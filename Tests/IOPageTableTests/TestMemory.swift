// Memory, frames, random numbers and an invalidation log for page tables under test.

import AddressSpace
import DeviceModel
import Synchronization

@testable import IOPageTable

/// RAM at every address, kept by 64-bit words; it notes every store in order.
final class SparseRAM: PhysicalAccess {
    private struct State {
        var words: [UInt64: UInt64] = [:]
        var stores: [(address: UInt64, value: UInt64)] = []
    }
    private let state = Mutex(State())

    /// Every 64-bit store since the last call, in order.
    func takeStores() -> [(address: UInt64, value: UInt64)] {
        state.withLock { state in
            defer { state.stores = [] }
            return state.stores
        }
    }

    subscript(_ address: UInt64) -> UInt64 {
        get { state.withLock { $0.words[address] ?? 0 } }
        set { state.withLock { $0.words[address] = newValue } }
    }

    func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        guard width == .doubleword else { throw .unassigned(address) }
        return self[address.rawValue]
    }

    func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
        guard width == .doubleword else { throw .unassigned(address) }
        state.withLock { state in
            state.words[address.rawValue] = value
            state.stores.append((address.rawValue, value))
        }
    }

    func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress) throws(BusError)
        -> UInt64
    {
        state.withLock { state in
            let old = state.words[address.rawValue] ?? 0
            if old == expected {
                state.words[address.rawValue] = desired
                state.stores.append((address.rawValue, desired))
            }
            return old
        }
    }

    func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
        throw .unassigned(address)
    }

    func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) { throw .unassigned(address) }

    func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
        state.withLock { state in
            for offset in stride(from: 0, to: byteCount, by: 8) {
                state.words[address.rawValue + offset] = nil
            }
        }
    }
}

/// Hands out ever new addresses, so that a table that is used after it was freed is seen.
final class TestFrames: PhysicalPageAllocator {
    private struct State {
        var next: UInt64
        var live: [UInt64: UInt64] = [:]
        var remaining: Int
        var freed: [UInt64] = []
    }
    private let state: Mutex<State>
    private let memory: SparseRAM

    init(memory: SparseRAM, start: UInt64 = 0x4000_0000, limit: Int = .max) {
        self.memory = memory
        state = Mutex(State(next: start, remaining: limit))
    }

    var liveCount: Int { state.withLock { $0.live.count } }
    var freed: [UInt64] { state.withLock { $0.freed } }

    func allocate(byteCount: UInt64, alignment: UInt64) throws(PhysicalPageError) -> PhysicalAddress {
        let address = state.withLock { state -> UInt64? in
            guard state.remaining > 0 else { return nil }
            state.remaining -= 1
            let address = (state.next + alignment - 1) & ~(alignment - 1)
            state.next = address + byteCount
            state.live[address] = byteCount
            return address
        }
        guard let address else { throw .exhausted(byteCount: byteCount, alignment: alignment) }
        do { try memory.fill(0, byteCount: byteCount, at: PhysicalAddress(address)) } catch {
            throw .memory(error)
        }
        return PhysicalAddress(address)
    }

    func free(_ address: PhysicalAddress) throws(PhysicalPageError) {
        let found = state.withLock { state in
            state.freed.append(address.rawValue)
            return state.live.removeValue(forKey: address.rawValue)
        }
        guard found != nil else { throw .notAllocated(address) }
    }
}

/// Notes what it is asked to invalidate.
struct InvalidationLog: PageTableInvalidator {
    enum Entry: Equatable {
        case leaves(UInt64, byteCount: UInt64, pageByteCount: UInt64)
        case walk(UInt64, byteCount: UInt64, granule: UInt64, freedBefore: Int)
    }
    var entries: [Entry] = []
    /// Whether the flush of a walk succeeds.
    var canFlush = true
    var frames: TestFrames?

    mutating func gather(_ iova: IOVirtualAddress, byteCount: UInt64, pageByteCount: UInt64) {
        entries.append(.leaves(iova.rawValue, byteCount: byteCount, pageByteCount: pageByteCount))
    }

    mutating func flushWalk(_ iova: IOVirtualAddress, byteCount: UInt64, granule: UInt64) -> Bool {
        entries.append(
            .walk(
                iova.rawValue,
                byteCount: byteCount,
                granule: granule,
                freedBefore: frames?.freed.count ?? 0
            )
        )
        return canFlush
    }

    /// Whether `iova` is within anything that was reported.
    func covers(_ iova: UInt64) -> Bool {
        entries.contains { entry in
            switch entry {
            case .leaves(let start, let byteCount, _), .walk(let start, let byteCount, _, _):
                iova >= start && iova - start < byteCount
            }
        }
    }
}

/// A page table with the memory and frames that it lives in.
struct PageTableBench: ~Copyable {
    let memory: SparseRAM
    let frames: TestFrames
    var table: IOPageTable
    var log = InvalidationLog()

    init(
        _ granule: PageTableGranule,
        input: Int = 48,
        output: Int = 48,
        isCoherent: Bool = true,
        partialUnmap: PartialUnmapPolicy = .refuse,
        stage: PageTableStage = .one,
        tracksDirtyState: Bool = false,
        frameLimit: Int = .max
    ) throws {
        memory = SparseRAM()
        frames = TestFrames(memory: memory, limit: frameLimit)
        let configuration = try PageTableConfiguration(
            stage: stage,
            granule: granule,
            inputAddressBits: input,
            outputAddressBits: output,
            isCoherent: isCoherent,
            partialUnmap: partialUnmap,
            tracksDirtyState: tracksDirtyState
        )
        table = try IOPageTable(configuration: configuration, memory: memory, frames: frames)
        log.frames = frames
    }

    mutating func map(
        _ iova: UInt64,
        _ physical: UInt64,
        _ byteCount: UInt64,
        _ permissions: MappingPermissions = [.read, .write, .cacheable]
    ) throws(IOPageTableError) {
        try table.map(
            IOVirtualAddress(iova),
            to: PhysicalAddress(physical),
            byteCount: byteCount,
            permissions: permissions,
            invalidator: &log
        )
    }

    mutating func unmap(_ iova: UInt64, _ byteCount: UInt64) throws(IOPageTableError) -> UnmapOutcome {
        try table.unmap(IOVirtualAddress(iova), byteCount: byteCount, invalidator: &log)
    }

    func physical(_ iova: UInt64) throws -> UInt64? {
        try table.translate(IOVirtualAddress(iova))?.physical.rawValue
    }

    func leaf(_ iova: UInt64) throws -> UInt64? { try table.translate(IOVirtualAddress(iova))?.descriptor }
}
