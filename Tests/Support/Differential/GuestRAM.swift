// The RAM of one side, as the test sees it.

import Glibc
import GuestMemory

/// RAM at ``Layout/ram``.
final class GuestRAM {
    let region: MemoryRegion
    private var base: UnsafeMutableRawPointer { region.base }

    init(_ region: MemoryRegion) { self.region = region }

    private static func offset(_ address: UInt64, _ count: UInt64) -> Int? {
        guard address >= Layout.ram, address <= Layout.ramEnd - count else { return nil }
        return Int(address - Layout.ram)
    }

    /// Nil where there is no RAM.
    func load64(_ address: UInt64) -> UInt64? {
        Self.offset(address, 8).map { base.loadUnaligned(fromByteOffset: $0, as: UInt64.self) }
    }

    func load32(_ address: UInt64) -> UInt32? {
        Self.offset(address, 4).map { base.loadUnaligned(fromByteOffset: $0, as: UInt32.self) }
    }

    func store64(_ value: UInt64, _ address: UInt64) {
        guard let offset = Self.offset(address, 8) else { return }
        base.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    }

    func store32(_ value: UInt32, _ address: UInt64) {
        guard let offset = Self.offset(address, 4) else { return }
        base.storeBytes(of: value, toByteOffset: offset, as: UInt32.self)
    }

    /// As it is before a case: zeros, and words that hold their own address where data is.
    func reset() {
        memset(base, 0, Int(Layout.ramBytes))
        for address in stride(from: Layout.data, to: Layout.ramEnd, by: 4) {
            store32(UInt32(truncatingIfNeeded: address), address)
        }
    }

    /// Empties what is below the stream table: queues, and where QEMU's devices put what they read.
    ///
    /// Tables may map it, and a case must not find there what a case before it left on one side alone.
    func clearQueues() { memset(base, 0, Int(Layout.streamTable - Layout.ram)) }

    /// Where tables or data hold a word at an offset in its page.
    func find(_ word: UInt32, offset: UInt64) -> UInt64? {
        var index = Int(Layout.streamTable - Layout.ram + offset)
        while index < Int(Layout.ramBytes) {
            if base.loadUnaligned(fromByteOffset: index, as: UInt32.self) == word {
                return Layout.ram + UInt64(index)
            }
            index += 4096
        }
        return nil
    }

    /// Takes what a case left behind away.
    func clean(_ run: Case, _ outcome: CaseOutcome) {
        for case .store(let address, let words) in run.steps {
            for index in words.indices { store64(0, address + UInt64(index) * 8) }
        }
        for landing in outcome.dmas.compactMap(\.landing) {
            store32(landing >= Layout.data ? UInt32(truncatingIfNeeded: landing) : 0, landing)
        }
    }

    /// The first byte that differs, from `start` on.
    func firstDifference(from other: GuestRAM, start: UInt64) -> UInt64? {
        let skip = Int(start - Layout.ram)
        let count = Int(Layout.ramBytes) - skip
        guard memcmp(base + skip, other.base + skip, count) != 0 else { return nil }
        for address in stride(from: start, to: Layout.ramEnd, by: 8)
        where load64(address) != other.load64(address) {
            return address
        }
        return nil
    }
}
