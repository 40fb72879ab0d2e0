// A stream whose STE and CDs the driver changes on the model, with a look at the model after every single store.

import AddressSpace
import DeviceModel
import SMMUv3
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

/// Memory and registers as the driver reaches them, with somebody who hears of its stores.
final class ObservedAccess: PhysicalAccess {
    private let bus: SystemBus
    private let observer = Mutex<(@Sendable (PhysicalAddress) -> Void)?>(nil)

    init(_ bus: SystemBus) { self.bus = bus }

    func observe(_ body: (@Sendable (PhysicalAddress) -> Void)?) { observer.withLock { $0 = body } }

    func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        try bus.load(width, at: address)
    }
    func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
        try bus.store(value, width, at: address)
        observer.withLock { $0 }?(address)
    }
    func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
        try bus.read(byteCount, at: address)
    }
    func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
        try bus.write(bytes, at: address)
    }
    func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
        try bus.fill(byte, byteCount: byteCount, at: address)
    }
    func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress) throws(BusError)
        -> UInt64
    {
        try bus.compareExchange64(expected: expected, desired: desired, at: address)
    }
}

/// The driver on a model with everything, a stream 1, and tables under which each configuration leads elsewhere.
///
/// ``address`` is physical memory too, and holds 0xB there. Stage 1 leads it to 1 (the first CD) or 2 (the second),
/// stage 2 alone to 3, both stages to 4 and 5.
final class TransitionBench {
    static let address: UInt64 = 0x4000_5000
    /// Nothing is mapped there, so that what becomes of faults is seen as well.
    static let unmapped: UInt64 = 0x4000_6000

    let bench: ModelBench
    let access: ObservedAccess
    let driver: SMMUv3Driver
    /// Where stream 1's STE is.
    let entry: UInt64
    /// Two tables of two CDs, the second CDs alike.
    let contexts: [UInt64]
    let stage1Roots: [UInt64]
    let stage2Root: UInt64
    private let port: StreamPort

    init() throws {
        let bench = try ModelBench(.full())
        self.bench = bench
        port = bench.smmu.makePort(for: StreamID(1), canStall: false)
        access = ObservedAccess(bench.bus)
        let options = SMMUv3DriverOptions(name: "9050000.iommu", isCoherent: true)
        driver = try SMMUv3Driver(
            access: access,
            registerBase: ModelBench.window,
            registerByteCount: 0x2_0000,
            frames: bench.frames,
            interrupts: .named(eventq: bench.eventq, gerror: bench.gerror),
            options: options
        )
        _ = try driver.addEndpoint("nic", streams: [StreamID(1)])
        func load(_ address: UInt64) throws -> UInt64 {
            try bench.bus.load(.doubleword, at: PhysicalAddress(address))
        }
        let levelOne = try load(ModelBench.window.rawValue + 0x80) & 0xF_FFFF_FFFF_FFC0
        entry = try load(levelOne) & 0xF_FFFF_FFFF_FFC0 + 64
        let places: [(address: UInt64, mark: UInt64)] = [
            (Self.address, 0xB), (0x4010_0000, 1), (0x4020_0000, 2), (0x4030_0000, 3), (0x4040_0000, 4),
            (0x4050_0000, 5),
        ]
        for place in places {
            try bench.bus.store(place.mark, .doubleword, at: PhysicalAddress(place.address))
        }
        // AF, inner shareable, AP for all, nG; of stage 2 AF, inner shareable, S2AP, write-back.
        let (leaf, leaf2): (UInt64, UInt64) = (0xF43, 0x7FF)
        stage1Roots = try ([0x4010_0000, 0x4020_0000] as [UInt64]).map { target in
            let root = try bench.frames.allocate(byteCount: 4096, alignment: 4096).rawValue
            try Self.map(bench, root, Self.address, target | leaf)
            return root
        }
        stage2Root = try bench.frames.allocate(byteCount: 8192, alignment: 8192).rawValue
        for (from, to) in [
            (Self.address, 0x4030_0000), (0x4010_0000, 0x4040_0000), (0x4020_0000, 0x4050_0000),
        ] as [(UInt64, UInt64)] {
            try Self.map(bench, stage2Root, from, to | leaf2)
        }
        // Tables and CDs are at the same addresses for stage 1 behind stage 2.
        for block in 0..<32 as Range<UInt64> {
            let address = ModelBench.tables + block << 21
            try Self.map(bench, stage2Root, address, address | leaf2 & ~2, level: 2)
        }
        contexts = try (0..<2).map { _ in
            try bench.frames.allocate(byteCount: 128, alignment: 128).rawValue
        }
        for table in contexts {
            try store(context(root: 0, asid: 1).words, at: table)
            try store(context(root: 1, asid: 2).words, at: table + 64)
        }
    }

    /// Writes a descriptor of 4 KiB tables that start at level 1; makes the tables above it.
    private static func map(
        _ bench: ModelBench,
        _ root: UInt64,
        _ address: UInt64,
        _ descriptor: UInt64,
        level: UInt64 = 3
    ) throws {
        var table = root
        for current in 1..<level {
            let entry = PhysicalAddress(table + (address >> (39 - 9 * current) & 0x1FF) * 8)
            if try bench.bus.load(.doubleword, at: entry) == 0 {
                let next = try bench.frames.allocate(byteCount: 4096, alignment: 4096)
                try bench.bus.store(next.rawValue | 0b11, .doubleword, at: entry)
            }
            table = try bench.bus.load(.doubleword, at: entry) & 0xFFFF_FFFF_F000
        }
        let entry = PhysicalAddress(table + (address >> (39 - 9 * level) & 0x1FF) * 8)
        try bench.bus.store(descriptor, .doubleword, at: entry)
    }

    func store(_ words: SIMD8<UInt64>, at address: UInt64) throws {
        for index in 0..<8 {
            try bench.bus.store(words[index], .doubleword, at: PhysicalAddress(address + UInt64(index) * 8))
        }
    }

    // MARK: Images

    /// A CD as the kernel's for a domain: EPD1, A, R, ASET.
    func context(root: Int, asid: UInt16) -> CD {
        var cd = CD()
        (cd.t0SZ, cd.ips, cd.sh0, cd.ir0, cd.or0, cd.mair) = (25, 5, 3, 1, 1, 0xFF44)
        (cd.v, cd.aa64, cd.epd1, cd.a, cd.r, cd.aset) = (true, true, true, true, true, true)
        (cd.asid, cd.ttb0) = (asid, stage1Roots[root])
        return cd
    }

    /// A process's: ASET 0; quiesced, it has EPD0 and no table.
    func process(asid: UInt16, isQuiesced: Bool) -> CD {
        var cd = context(root: 1, asid: asid)
        cd.aset = false
        guard isQuiesced else { return cd }
        (cd.t0SZ, cd.sh0, cd.ir0, cd.or0, cd.ttb0, cd.epd0) = (0, 0, 0, 0, 0, true)
        return cd
    }

    var bypass: STE {
        var ste = STE()
        (ste.v, ste.config, ste.shCfg) = (true, .bypass, 1)
        return ste
    }

    func stage1(dss: UInt8 = 2, ats: Bool = true, canStall: Bool = true, table: Int = 0, vmid: UInt16 = 0)
        -> STE
    {
        var ste = STE()
        (ste.v, ste.config, ste.s1ContextPtr, ste.s1CDMax) = (true, .stage1, contexts[table], 1)
        (ste.s1DSS, ste.s1CIR, ste.s1COR, ste.s1CSH) = (dss, 1, 1, 3)
        (ste.s1STALLD, ste.eats, ste.s2VMID) = (!canStall, ats ? 1 : 0, vmid)
        if dss == 1 { ste.shCfg = 1 }
        return ste
    }

    func stage2(ats: Bool = true, canStall: Bool = false, vmid: UInt16 = 0) -> STE {
        var ste = STE()
        (ste.v, ste.config, ste.shCfg, ste.eats) = (true, .stage2, 1, ats ? 1 : 0)
        (ste.s2VMID, ste.s2T0SZ, ste.s2SL0, ste.s2PS) = (vmid, 24, 1, 5)
        (ste.s2AA64, ste.s2PTW, ste.s2R, ste.s2S, ste.s2TTB) = (true, true, true, canStall, stage2Root)
        (ste.s2IR0, ste.s2OR0, ste.s2SH0) = (1, 1, 3)
        return ste
    }

    /// A guest's CD table on the host's stage 2, with MEV.
    func nested(dss: UInt8, ats: Bool, vmid: UInt16 = 0) -> STE {
        var ste = stage2(ats: ats, vmid: vmid)
        ste.words |= stage1(dss: dss, ats: ats, vmid: vmid).words
        ste.config = StreamConfig(rawValue: 0b111)
        ste.mev = true
        return ste
    }

    // MARK: What the model makes of memory as it is

    /// What becomes of a read and a write of each address, with and without a SubstreamID: past every cache.
    static func answers(_ smmu: SMMUv3) -> [Explanation.Outcome] {
        [nil, SubstreamID(1)].flatMap { substream in
            [address, unmapped].flatMap { address in
                [TransactionKind.read, .write].map { kind in
                    let transaction = Transaction(
                        streamID: StreamID(1),
                        attributes: TransactionAttributes(substreamID: substream),
                        kind: kind,
                        address: IOVirtualAddress(address)
                    )
                    return smmu.probe(transaction)
                }
            }
        }
    }

    /// What the model would say if an entry held these words.
    func answers(_ words: SIMD8<UInt64>, at entry: UInt64) throws -> [Explanation.Outcome] {
        try store(words, at: entry)
        return Self.answers(bench.smmu)
    }

    /// Where DMA goes, through every cache: the mark that it reads, or its fault.
    func dma(_ substream: UInt32?) -> DMAResult {
        port.read(Self.address, substream: substream)
    }
}
