// What a case is built with: memory, commands, registers, in the order in which they happen.

import AddressSpace
import SMMUv3Spec
import SeededRandomness

/// Collects the steps of one case.
final class CaseBuilder {
    var random: SplitMix
    private(set) var steps: [Step] = []
    private(set) var dmaCount = 0
    /// Memory as software has written it.
    private var image: [UInt64: UInt64] = [:]
    /// What the steps do not have yet.
    private var changes: [UInt64] = []
    private var free = Layout.tables

    init(_ random: SplitMix) { self.random = random }

    // MARK: Memory

    /// Zeroed memory, aligned to its own size, a power of two; nil where there is no more.
    func allocate(_ byteCount: UInt64) -> UInt64? {
        let size = max(64, byteCount)
        let address = (free + size - 1) & ~(size - 1)
        guard address + size <= Layout.data else { return nil }
        free = address + size
        return address
    }

    func peek(_ address: UInt64) -> UInt64 { image[address] ?? 0 }

    func poke(_ address: UInt64, _ word: UInt64) {
        guard image[address] != word else { return }
        image[address] = word
        changes.append(address)
    }

    func poke(_ address: UInt64, _ words: SIMD8<UInt64>) {
        for index in 0..<8 { poke(address + UInt64(index) * 8, words[index]) }
    }

    /// Makes steps of what was written.
    private func settle() {
        var run: [UInt64] = []
        var start: UInt64 = 0
        for address in Set(changes).sorted() {
            if !run.isEmpty, address != start + UInt64(run.count) * 8 {
                steps.append(.store(start, run))
                run = []
            }
            if run.isEmpty { start = address }
            run.append(peek(address))
        }
        if !run.isEmpty { steps.append(.store(start, run)) }
        changes = []
    }

    // MARK: What happens

    func write32(_ offset: UInt64, _ value: UInt32) {
        settle()
        steps.append(.register32(offset, value))
    }

    func write64(_ offset: UInt64, _ value: UInt64) {
        settle()
        steps.append(.register64(offset, value))
    }

    func issue(_ commands: Command...) { issue(commands) }

    func issue(_ commands: [Command]) {
        settle()
        steps.append(.commands(commands))
    }

    /// - Returns: Its number; nil where the case has as many as it can have.
    @discardableResult
    func access(
        _ requester: Int,
        _ address: UInt64,
        isWrite: Bool,
        _ promise: DMA.Promise = .equal,
        before: Int? = nil
    ) -> Int? {
        guard dmaCount < Layout.dmaCount else { return nil }
        settle()
        // A place of its own in the page, so that what went wrong can be told.
        let place = address & ~0xFFF | UInt64(dmaCount) * 8
        steps.append(
            .dma(
                DMA(
                    requester: requester,
                    address: place,
                    isWrite: isWrite,
                    promise: promise,
                    before: before
                )
            )
        )
        dmaCount += 1
        return dmaCount - 1
    }

    // MARK: Bring-up

    /// Stops the SMMU, empties its queues, and gives it its stream table and queues.
    func boot(base: UInt64, configuration: UInt32, isEnabled: Bool = true, cr2: UInt32 = 0b010) {
        write32(RegisterOffset.cr0, 0)
        write32(RegisterOffset.gbpa, 1 << 31)
        write32(RegisterOffset.cr1, 0b11_01_01_11_01_01)
        write32(RegisterOffset.cr2, cr2)
        write64(RegisterOffset.strtabBase, base)
        write32(RegisterOffset.strtabBaseCfg, configuration)
        write64(RegisterOffset.cmdqBase, Layout.commandQueue | Layout.log2Commands)
        write32(RegisterOffset.cmdqProd, 0)
        write32(RegisterOffset.cmdqCons, 0)
        write64(RegisterOffset.eventqBase, Layout.eventQueue | Layout.log2Events)
        write32(0x1_00A8, 0)
        write32(0x1_00AC, 0)
        write32(RegisterOffset.cr0, 0b1100)
        issue(.cfgiAll(), .tlbiNSNHAll(), .sync())
        if isEnabled { write32(RegisterOffset.cr0, 0b1101) }
    }
}
