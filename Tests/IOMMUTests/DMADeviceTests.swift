// The DMA API on the model: what a driver maps its device reaches, with the rights of the direction, and no more.

import AddressSpace
import DeviceModel
import IOPageTable
import SMMUv3
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

/// A device behind the model, its port, and the DMA API for it.
final class DMABench {
    let model: ModelBench
    let driver: SMMUv3Driver
    let domain: IOMMUDomain
    let device: DMADevice
    let port: StreamPort
    let clock = HandClock()
    private let lines = LineRecorder()

    final class LineRecorder: Sendable {
        let lines = Mutex<[String]>([])
    }

    /// - Parameters:
    ///   - kind: The device's domain.
    ///   - granule: The domain's; nil for the driver's choice.
    ///   - bounceByteCount: The size of the bounce pool; nil for none.
    ///   - prefersLowIOVAs: False is `iommu.forcedac=1`.
    ///   - traits: Changes what the device is.
    init(
        _ kind: IOMMUDomainKind,
        granule: PageTableGranule? = nil,
        bounceByteCount: UInt64? = nil,
        prefersLowIOVAs: Bool = true,
        traits: (inout DMADevice.Traits) -> Void = { _ in }
    ) throws {
        model = try ModelBench()
        let clock = self.clock
        driver = try model.start {
            $0.clock = clock
            $0.prefersLowIOVAs = prefersLowIOVAs
        }
        domain = try driver.makeDomain(kind, granule: granule)
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        try driver.attach(endpoint, to: domain)
        port = model.smmu.makePort(for: StreamID(0x103))
        let memory = DMAMemory(frames: model.frames, access: model.bus)
        var chosen = DMADevice.Traits()
        traits(&chosen)
        let recorder = lines
        device = DMADevice(
            "nic",
            domain: domain,
            memory: memory,
            traits: chosen,
            bounceBuffers: try bounceByteCount.map { try BounceBuffers(memory, byteCount: $0) },
            log: { _, line in recorder.lines.withLock { $0.append(line) } }
        )
    }

    deinit { driver.stop() }

    var messages: [String] { lines.lines.withLock { $0 } }

    func put(_ physical: UInt64, _ value: UInt64) throws {
        try model.bus.store(value, .doubleword, at: PhysicalAddress(physical))
    }

    func get(_ physical: UInt64) throws -> UInt64 {
        try model.bus.load(.doubleword, at: PhysicalAddress(physical))
    }
}

@Suite("DMA API")
struct DMADeviceTests {
    static let buffer = ModelBench.buffers
    static let page = PhysicalAddress(buffer)

    // MARK: Single mappings

    @Test("the direction is what the device may do", arguments: [IOMMUDomainKind.dma, .dmaFQ])
    func directions(_ kind: IOMMUDomainKind) throws {
        let bench = try DMABench(kind)
        try bench.put(Self.buffer + 0x128, 7)
        for direction in DMADataDirection.allCases {
            let start = PhysicalAddress(Self.buffer + 0x128)
            let address = try bench.device.map(start, byteCount: 0x1000, direction)
            #expect(address.rawValue & 0xFFF == 0x128)
            // Stage 1 knows no write-only page.
            #expect(bench.port.read(address.rawValue) == .ok(7))
            let written = bench.port.write(address.rawValue + 8, 9)
            #expect(written == (direction == .toDevice ? .permissionFault : .ok(0)))
            #expect(bench.device.mappingCount == 1)
            try bench.device.unmap(address, byteCount: 0x1000, direction)
            try bench.domain.flushLazyUnmaps()
            #expect(bench.port.read(address.rawValue) == .translationFault)
            #expect(bench.device.mappingCount == 0)
        }
        #expect(bench.messages.isEmpty)
    }

    @Test func attributesAndCoherenceBecomePermissions() throws {
        let bench = try DMABench(.dma) { $0.isCoherent = false }
        let device = bench.device
        let cases: [(DMAAttributes, MappingPermissions)] = [
            ([], [.read, .write]), (.privileged, [.read, .write, .privileged]),
            (.mmio, [.read, .write, .device]),
        ]
        for (attributes, expected) in cases {
            let address = try device.map(Self.page, byteCount: 0x1000, .bidirectional, attributes)
            #expect(try bench.domain.translate(address)?.permissions == expected)
            try device.unmap(address, byteCount: 0x1000, .bidirectional, attributes)
        }
        let coherent = try DMABench(.dma)
        let address = try coherent.device.map(Self.page, byteCount: 0x1000, .toDevice)
        #expect(try coherent.domain.translate(address)?.permissions == [.read, .cacheable])
        let registers = try coherent.device.map(Self.page, byteCount: 0x1000, .toDevice, .mmio)
        #expect(try coherent.domain.translate(registers)?.permissions == [.read, .device])
    }

    @Test func directAddressesArePhysical() throws {
        let bench = try DMABench(.identity)
        #expect(!bench.device.isTranslated)
        try bench.put(Self.buffer, 5)
        let first = try bench.device.map(Self.page, byteCount: 8, .toDevice)
        // The same buffer may be mapped twice.
        let second = try bench.device.map(Self.page, byteCount: 8, .toDevice)
        #expect(first == IOVirtualAddress(Self.buffer) && second == first)
        #expect(bench.port.read(first.rawValue) == .ok(5))
        try bench.device.unmap(first, byteCount: 8, .toDevice)
        try bench.device.unmap(first, byteCount: 8, .toDevice)
        #expect(throws: DMAError.self) { try bench.device.unmap(first, byteCount: 8, .toDevice) }
    }

    // MARK: Masks

    @Test func masksThatReachNoMemoryAreRefusedWhereNothingTranslates() throws {
        let direct = try DMABench(.identity).device
        // RAM for allocation ends at 0x83FF_FFFF.
        #expect(throws: DMAError.maskNotSupported(mask: 0x7FFF_FFFF, needed: 0x83FF_FFFF)) {
            try direct.setMask(0x7FFF_FFFF)
        }
        do { try direct.setCoherentMask(0xFF_FFFF) } catch { #expect(error.errorName == "EIO") }
        #expect(direct.mask == 0xFFFF_FFFF && direct.coherentMask == 0xFFFF_FFFF)
        try direct.setMaskAndCoherentMask(0xFFFF_FFFF)
        try direct.setMask(.max)
        #expect(direct.mask == .max)
        // An SMMU maps into any.
        let translated = try DMABench(.dma).device
        try translated.setMaskAndCoherentMask(0xFF_FFFF)
        let address = try translated.map(Self.page, byteCount: 0x1000, .toDevice)
        #expect(address == IOVirtualAddress(0xFF_F000))
        #expect(try translated.allocateCoherent(byteCount: 0x2000).address == IOVirtualAddress(0xFF_C000))
    }

    @Test func anAddressBeyondTheMaskIsAnErrorWithTheKernelsMessage() throws {
        let bench = try DMABench(.identity) { $0.busLimit = 0x3FFF_FFFF }
        #expect(
            throws: DMAError.addressOverflow(
                Self.page,
                byteCount: 64,
                mask: 0xFFFF_FFFF,
                busLimit: 0x3FFF_FFFF
            )
        ) { _ = try bench.device.map(Self.page, byteCount: 64, .toDevice) }
        #expect(
            bench.messages == [
                "nic: DMA addr 0x0000000040000000+64 overflow (mask ffffffff, bus limit 3fffffff)."
            ]
        )
        #expect(throws: DMAError.self) {
            _ = try bench.device.map(Self.page, byteCount: 64, .toDevice, .noWarn)
        }
        #expect(bench.messages.count == 1)
        #expect(throws: DMAError.self) { _ = try bench.device.allocateCoherent(byteCount: 64) }
        #expect(bench.device.mappingCount == 0)
    }

    @Test func aPCIDeviceGoesAbove4GiBOnlyWhenThatIsFullBelow() throws {
        let bench = try DMABench(.dma) { $0.isPCI = true }
        try bench.device.setMask((1 << 48) - 1)
        let low = try bench.device.map(Self.page, byteCount: 0x1000, .toDevice)
        #expect(low == IOVirtualAddress(0xFFFF_F000))
        // All the rest below 4 GiB.
        for iova in stride(from: UInt64(0), to: 1 << 32, by: 1 << 30) {
            guard let range = AddressRange(start: iova, byteCount: 1 << 30) else { continue }
            try bench.domain.apply(ReservedRegion(.reserved, range))
        }
        let high = try bench.device.map(Self.page, byteCount: 0x1000, .toDevice)
        #expect(high == IOVirtualAddress(0xFFFF_FFFF_F000))
        #expect(bench.messages == ["nic: Using 48-bit DMA addresses"])
        _ = try bench.device.map(Self.page, byteCount: 0x1000, .toDevice)
        #expect(bench.messages.count == 1)
        // A platform device does not ask for the low ones first.
        let platform = try DMABench(.dma)
        try platform.device.setMask((1 << 40) - 1)
        #expect(
            try platform.device.map(Self.page, byteCount: 0x1000, .toDevice)
                == IOVirtualAddress(0xFF_FFFF_F000)
        )
    }

    @Test func forcedACAndTheBusDecideBesideTheMask() throws {
        let forced = try DMABench(.dma, prefersLowIOVAs: false) { $0.isPCI = true }
        try forced.device.setMask((1 << 48) - 1)
        #expect(
            try forced.device.map(Self.page, byteCount: 0x1000, .toDevice)
                == IOVirtualAddress(0xFFFF_FFFF_F000)
        )
        #expect(forced.messages.isEmpty)
        let narrow = try DMABench(.dma) { $0.busLimit = 0x3FFF_FFFF }
        try narrow.device.setMaskAndCoherentMask(.max)
        #expect(
            try narrow.device.map(Self.page, byteCount: 0x1000, .toDevice) == IOVirtualAddress(0x3FFF_F000)
        )
        #expect(try narrow.device.allocateCoherent(byteCount: 1).address == IOVirtualAddress(0x3FFF_E000))
    }

    // MARK: Coherent memory

    @Test func coherentMemoryIsZeroedScatteredAndOneRangeForTheDevice() throws {
        let bench = try DMABench(.dma)
        let used = bench.model.frames.usedByteCount
        // All memory is taken but 20 frames of which no two are neighbours.
        var held = try (0..<40).map { _ in
            try bench.model.frames.allocate(byteCount: 0x1000, alignment: 0x1000)
        }
        for order in stride(from: 25, through: 12, by: -1) {
            while let block = try? bench.model.frames.allocate(byteCount: 1 << UInt64(order), alignment: 1) {
                held.append(block)
            }
        }
        for index in stride(from: 1, to: 40, by: 2) {
            try bench.model.bus.fill(0xEE, byteCount: 0x1000, at: held[index])
            try bench.model.frames.free(held[index])
        }
        let taken = bench.model.frames.usedByteCount
        let buffer = try bench.device.allocateCoherent(byteCount: 0x4010)
        #expect(buffer.pieces.count == 5)
        #expect(buffer.byteCount == 0x4010)
        for offset in stride(from: UInt64(0), to: 0x5000, by: 0x1000) {
            #expect(bench.port.read(buffer.address.rawValue + offset) == .ok(0))
            #expect(bench.port.write(buffer.address.rawValue + offset, offset + 1) == .ok(0))
        }
        #expect(try buffer.read(8, at: 0x4000) == [1, 0x40, 0, 0, 0, 0, 0, 0])
        try buffer.write([1, 2, 3, 4, 5, 6, 7, 8], at: 0xFFC)
        #expect(try buffer.read(8, at: 0xFFC) == [1, 2, 3, 4, 5, 6, 7, 8])
        #expect(bench.port.read(buffer.address.rawValue + 0x1000) == .ok(0x0000_0000_0807_0605))
        #expect(throws: DMAError.self) { _ = try buffer.read(2, at: 0x400F) }
        let third = try #require(buffer.physical(at: 0x2004))
        #expect(try bench.get(third.rawValue - 4) == 0x2001)
        #expect(buffer.physical(at: 0x4010) == nil)
        // Not in one piece.
        #expect(throws: DMAError.self) {
            _ = try bench.device.allocateCoherent(byteCount: 0x4000, attributes: .forceContiguous)
        }
        try bench.device.freeCoherent(buffer)
        #expect(bench.port.read(buffer.address.rawValue) == .translationFault)
        // The tables of the range stay.
        #expect(bench.model.frames.usedByteCount - taken <= 0x3000)
        #expect(throws: DMAError.self) { try bench.device.freeCoherent(buffer) }
        for (index, frame) in held.enumerated() where index >= 40 || index % 2 == 0 {
            try bench.model.frames.free(frame)
        }
        #expect(bench.model.frames.usedByteCount - used <= 0x3000)
    }

    @Test func coherentMemoryIsInTheLargestBlocksThatCanBeHad() throws {
        let bench = try DMABench(.dma)
        let buffer = try bench.device.allocateCoherent(byteCount: 0x40_3000)
        #expect(buffer.pieces.map(\.byteCount) == [0x20_0000, 0x20_0000, 0x1000, 0x1000, 0x1000])
        #expect(try bench.domain.translate(buffer.address)?.pageByteCount == 0x20_0000)
        let single = try bench.device.allocateCoherent(byteCount: 0x3000, attributes: .allocateSinglePages)
        #expect(single.pieces.count == 3)
        let whole = try bench.device.allocateCoherent(byteCount: 0x3000, attributes: .forceContiguous)
        #expect(whole.pieces.count == 1)
        for buffer in [buffer, single, whole] { try bench.device.freeCoherent(buffer) }
    }

    @Test func directCoherentMemoryIsContiguous() throws {
        let bench = try DMABench(.identity)
        let used = bench.model.frames.usedByteCount
        let buffer = try bench.device.allocateCoherent(byteCount: 0x3000)
        #expect(buffer.pieces.count == 1 && buffer.address.rawValue == buffer.pieces[0].physical.rawValue)
        #expect(bench.port.write(buffer.address.rawValue + 0x2FF8, 3) == .ok(0))
        #expect(try buffer.read(1, at: 0x2FF8) == [3])
        try bench.device.freeCoherent(buffer)
        #expect(bench.model.frames.usedByteCount == used)
    }

    @Test("whole pages of every granule", arguments: PageTableGranule.allCases)
    func granules(_ granule: PageTableGranule) throws {
        let bench = try DMABench(.dma, granule: granule)
        let buffer = try bench.device.allocateCoherent(byteCount: granule.byteCount + 1)
        #expect(bench.port.write(buffer.address.rawValue + granule.byteCount, 1) == .ok(0))
        let address = try bench.device.map(Self.page, byteCount: 0x1_0000, .bidirectional)
        #expect(bench.port.write(address.rawValue + 0xFFF8, 1) == .ok(0))
        try bench.device.unmap(address, byteCount: 0x1_0000, .bidirectional)
        try bench.device.freeCoherent(buffer)
        #expect(bench.port.read(buffer.address.rawValue) == .translationFault)
    }
}
