// The driver's page tables under the SMMU's walker: two authors of one format, in all of the kernel's self-test
// configurations.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3
import SMMUv3Spec
import SystemBus
import Testing

@testable import IOMMU

@Suite("Page tables under the model's walker")
struct PageTableOracleTests {
    struct Shape: Sendable, CustomTestStringConvertible {
        let granule: PageTableGranule
        let input: Int
        let output: Int
        let stage: PageTableStage
        var testDescription: String { "\(granule), ias \(input), oas \(output), stage \(stage)" }
    }

    /// Page sizes by address sizes, of both stages: 126.
    static let shapes: [Shape] = {
        let sizes = [32, 36, 40, 42, 44, 48]
        return [PageTableStage.one, .two(forcesWriteBack: true)].flatMap { stage in
            PageTableGranule.allCases.flatMap { granule in
                sizes.flatMap { output in
                    sizes.filter { $0 <= output }.map {
                        Shape(granule: granule, input: $0, output: output, stage: stage)
                    }
                }
            }
        }
    }()

    /// Invalidates nothing: look-ups go past every cache.
    private struct NoCaches: PageTableInvalidator {
        mutating func gather(_ iova: IOVirtualAddress, byteCount: UInt64, pageByteCount: UInt64) {}
        mutating func flushWalk(_ iova: IOVirtualAddress, byteCount: UInt64, granule: UInt64) -> Bool { true }
    }

    /// Where an address leads, and log2 of its page; nil where it does not translate.
    private func look(_ bench: ModelBench, _ iova: UInt64) -> [UInt64]? {
        let transaction = Transaction(
            streamID: StreamID(1),
            attributes: .plain,
            kind: .read,
            address: IOVirtualAddress(iova)
        )
        switch bench.smmu.probe(transaction) {
        case .translated(let translation):
            return [translation.output.rawValue, UInt64(translation.log2Bytes)]
        case .fault(let fault):
            #expect(fault.event == .fTranslation)
            return nil
        }
    }

    private func attach(_ bench: ModelBench, _ table: borrowing IOPageTable) throws {
        let configuration = table.configuration
        var ste = STE()
        ste.v = true
        if configuration.stage == .one {
            let context = try bench.frames.allocate(byteCount: 64, alignment: 64)
            var cd = CD()
            (cd.v, cd.aa64, cd.epd1, cd.a, cd.r) = (true, true, true, true, true)
            let controls = configuration.controls
            (cd.t0SZ, cd.tg0, cd.ips, cd.mair0) = (
                controls.t0sz, controls.tg0, controls.ips, UInt32(truncatingIfNeeded: controls.mair)
            )
            cd.ttb0 = table.root.rawValue
            for index in 0..<8 {
                try bench.bus.storeRAM64(
                    cd.words[index],
                    at: PhysicalAddress(context.rawValue + UInt64(index) * 8)
                )
            }
            ste.config = .stage1
            ste.s1ContextPtr = context.rawValue
        } else {
            let controls = configuration.stageTwoControls
            ste.config = .stage2
            (ste.s2VMID, ste.s2T0SZ, ste.s2SL0, ste.s2TG, ste.s2PS) = (
                1, controls.s2T0SZ, controls.s2SL0, controls.s2TG, controls.s2PS
            )
            (ste.s2AA64, ste.s2R, ste.s2FWB, ste.s2TTB) = (true, true, controls.s2FWB, table.root.rawValue)
        }
        let streams = try bench.frames.allocate(byteCount: 4096, alignment: 4096)
        for index in 0..<8 {
            let entry = PhysicalAddress(streams.rawValue + 64 + UInt64(index) * 8)
            try bench.bus.storeRAM64(ste.words[index], at: entry)
        }
        func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth) throws {
            try bench.bus.store(value, width, at: PhysicalAddress(ModelBench.window.rawValue + offset))
        }
        // STRTAB_BASE, STRTAB_BASE_CFG: linear, 2^6; CR0.SMMUEN.
        try write(0x80, streams.rawValue, .doubleword)
        try write(0x88, 6, .word)
        try write(0x20, 1, .word)
    }

    @Test("what the kernel's sequence maps is where the walker goes", arguments: shapes)
    func kernelSequence(_ shape: Shape) throws {
        let bench = try ModelBench(.full())
        let configuration = try PageTableConfiguration(
            stage: shape.stage,
            granule: shape.granule,
            inputAddressBits: shape.input,
            outputAddressBits: shape.output,
            isCoherent: true
        )
        var table = try IOPageTable(configuration: configuration, memory: bench.bus, frames: bench.frames)
        var caches = NoCaches()
        try attach(bench, table)
        let gib: UInt64 = 1 << 30
        for iova in [42, gib + 42, 2 * gib + 42] { #expect(look(bench, iova) == nil) }
        let sizes = configuration.pageByteCounts
        for (index, size) in sizes.enumerated() {
            let iova = UInt64(index) * gib
            try table.map(
                IOVirtualAddress(iova),
                to: PhysicalAddress(iova),
                byteCount: size,
                permissions: [.read, .write, .noExecute, .cacheable],
                invalidator: &caches
            )
            #expect(look(bench, iova + 42) == [iova + 42, UInt64(size.trailingZeroBitCount)])
            #expect(try table.translate(IOVirtualAddress(iova + 42))?.physical.rawValue == iova + 42)
        }
        for (index, size) in sizes.enumerated() {
            let iova = UInt64(index) * gib
            _ = try table.unmap(IOVirtualAddress(iova), byteCount: size, invalidator: &caches)
            #expect(look(bench, iova + 42) == nil)
        }
        // The last page that there is.
        let size = try #require(sizes.last)
        let last = (1 << UInt64(shape.input)) - size
        try table.map(
            IOVirtualAddress(last),
            to: PhysicalAddress(last),
            byteCount: size,
            permissions: .readWrite,
            invalidator: &caches
        )
        #expect(look(bench, last + size - 1) == [last + size - 1, UInt64(size.trailingZeroBitCount)])
    }
}
