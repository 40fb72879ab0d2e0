// The driver on the SMMUv3 model: two authors of one architecture check each other. What the driver maps, DMA
// through the model reaches; what it takes away, DMA does not.

import AddressSpace
import DeviceModel
import GuestMemory
import IOPageTable
import SMMUv3
import SMMUv3Spec
import SeededRandomness
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

/// A machine of RAM and one SMMUv3, and the driver on it.
final class ModelBench {
    static let window = PhysicalAddress(0x0905_0000)
    /// 1 GiB, aligned to 1 GiB, for buffers: blocks of every size fit.
    static let buffers: UInt64 = 0x4000_0000
    static let buffersByteCount: UInt64 = 1 << 30
    /// What tables and queues are made of.
    static let tables: UInt64 = 0x8000_0000

    let bus = SystemBus()
    let smmu: SMMUv3
    let frames: PhysicalFrameAllocator
    let eventq: InterruptLine
    let gerror: InterruptLine
    let priq: InterruptLine

    /// - Parameters:
    ///   - identification: What the SMMU says of itself.
    ///   - execution: Where it executes commands.
    init(
        _ identification: Identification = .stage1(),
        execution: SMMUv3Options.CommandExecution = .inline
    ) throws {
        func line(_ label: String) -> InterruptLine {
            InterruptLine(identity: InterruptIdentity(controller: "/intc", specifier: [0]), label: label)
        }
        eventq = line("eventq")
        gerror = line("gerror")
        priq = line("priq")
        try bus.addRAM(
            .anonymous(byteCount: Self.buffersByteCount, name: "buffers"),
            at: PhysicalAddress(Self.buffers),
            name: "buffers"
        )
        try bus.addRAM(
            .anonymous(byteCount: 64 << 20, name: "tables"),
            at: PhysicalAddress(Self.tables),
            name: "tables"
        )
        var options = SMMUv3Options()
        options.commandExecution = execution
        smmu = SMMUv3(
            name: "/iommu",
            identification: identification,
            options: options,
            bus: bus,
            interrupts: .init(eventQueue: eventq, globalError: gerror, pageRequestQueue: priq)
        )
        let registers = try #require(AddressRange(start: Self.window.rawValue, byteCount: 0x2_0000))
        try bus.addWindow(smmu, at: registers, name: "iommu")
        frames = PhysicalFrameAllocator(
            memory: bus,
            ranges: [try #require(AddressRange(start: Self.tables, byteCount: 64 << 20))]
        )
    }

    deinit { smmu.stop() }

    func start(_ change: (inout SMMUv3DriverOptions) -> Void = { _ in }) throws -> SMMUv3Driver {
        var options = SMMUv3DriverOptions(name: "9050000.iommu", isCoherent: true)
        options.interruptHandling = smmu.options.commandExecution == .inline ? .inline : .threads
        change(&options)
        return try SMMUv3Driver(
            access: bus,
            registerBase: Self.window,
            registerByteCount: 0x2_0000,
            frames: frames,
            interrupts: .named(eventq: eventq, gerror: gerror, priq: priq),
            options: options
        )
    }
}

/// What a device sees of one access of 8 bytes.
enum DMAResult: Equatable {
    case ok(UInt64)
    case fault(DMAFault.Cause)

    static let translationFault = DMAResult.fault(.event(0x10))
    static let permissionFault = DMAResult.fault(.event(0x13))
}

extension StreamPort {
    func read(_ iova: UInt64, substream: UInt32? = nil) -> DMAResult {
        var word: UInt64 = 0
        do throws(DMAFault) {
            try withUnsafeMutableBytes(of: &word) { (bytes) throws(DMAFault) in
                try read(at: IOVirtualAddress(iova), into: bytes, Self.attributes(substream))
            }
            return .ok(UInt64(littleEndian: word))
        } catch { return .fault(error.cause) }
    }

    func write(_ iova: UInt64, _ value: UInt64, substream: UInt32? = nil) -> DMAResult {
        do throws(DMAFault) {
            try withUnsafeBytes(of: value.littleEndian) { (bytes) throws(DMAFault) in
                try write(bytes, at: IOVirtualAddress(iova), Self.attributes(substream))
            }
            return .ok(0)
        } catch { return .fault(error.cause) }
    }

    private static func attributes(_ substream: UInt32?) -> TransactionAttributes {
        TransactionAttributes(substreamID: substream.map { SubstreamID($0) })
    }
}

@Suite("The driver on the model")
struct ModelTests {
    static let buffer = ModelBench.buffers

    private static func put(_ bench: ModelBench, _ physical: UInt64, _ value: UInt64) throws {
        try bench.bus.store(value, .doubleword, at: PhysicalAddress(physical))
    }

    private static func get(_ bench: ModelBench, _ physical: UInt64) throws -> UInt64 {
        try bench.bus.load(.doubleword, at: PhysicalAddress(physical))
    }

    // MARK: The life of a buffer

    @Test("map, DMA, unmap, fault, event", arguments: PageTableGranule.allCases)
    func life(_ granule: PageTableGranule) throws {
        let bench = try ModelBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        let domain = try driver.makeDomain(.dma, granule: granule)
        try driver.attach(endpoint, to: domain)
        let port = bench.smmu.makePort(for: StreamID(0x103))
        try Self.put(bench, Self.buffer + 8, 0xC0FFEE)
        let iova = try domain.map(
            PhysicalAddress(Self.buffer + 8),
            byteCount: 0x1_0000,
            permissions: [.read, .write, .cacheable]
        )
        #expect(port.read(iova.rawValue) == .ok(0xC0FFEE))
        #expect(port.write(iova.rawValue + 0xFFF8, 0x1234) == .ok(0))
        #expect(try Self.get(bench, Self.buffer + 0x1_0000) == 0x1234)

        let start = IOVirtualAddress(iova.rawValue & ~(granule.byteCount - 1))
        let size = 0x1_0000 + granule.byteCount
        #expect(try domain.unmap(start, byteCount: size) == UnmapOutcome(byteCount: size, stoppedBy: nil))
        #expect(port.read(iova.rawValue) == .translationFault)
        driver.pollInterrupts()
        let event = try #require(driver.events().first?.record)
        #expect(event.number == .fTranslation)
        #expect(event.streamID == StreamID(0x103))
        #expect(event.inputAddress == iova.rawValue)
        #expect(event.rnw)
        #expect(driver.events().count == 1)
    }

    @Test func permissionsAreThoseOfTheMapping() throws {
        let bench = try ModelBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(1)])
        let domain = try driver.makeDomain(.dma)
        try driver.attach(endpoint, to: domain)
        let port = bench.smmu.makePort(for: StreamID(1))
        let readOnly = try domain.map(PhysicalAddress(Self.buffer), byteCount: 8, permissions: .read)
        let privileged = try domain.map(
            PhysicalAddress(Self.buffer),
            byteCount: 8,
            permissions: [.read, .write, .privileged]
        )
        #expect(port.read(readOnly.rawValue) == .ok(0))
        #expect(port.write(readOnly.rawValue, 1) == .permissionFault)
        #expect(port.read(privileged.rawValue) == .permissionFault)
    }

    @Test func whatAnEndpointMeetsFollowsItsDomain() throws {
        let bench = try ModelBench()
        let driver = try bench.start()
        let port = bench.smmu.makePort(for: StreamID(0x103))
        // Nobody has the stream: no level-2 table, C_BAD_STREAMID.
        #expect(port.read(Self.buffer) == .fault(.event(0x02)))
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        #expect(port.read(Self.buffer) == .fault(.aborted))
        try Self.put(bench, Self.buffer, 7)
        try driver.attach(endpoint, to: driver.identityDomain)
        #expect(port.read(Self.buffer) == .ok(7))
        let domain = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: domain)
        #expect(port.read(Self.buffer) == .translationFault)
        try domain.map(
            IOVirtualAddress(0x1000),
            to: PhysicalAddress(Self.buffer),
            byteCount: 0x1000,
            permissions: .read
        )
        #expect(port.read(0x1000) == .ok(7))
        try driver.attach(endpoint, to: driver.blockedDomain)
        #expect(port.read(0x1000) == .fault(.aborted))
        try driver.attach(endpoint, to: domain)
        #expect(port.read(0x1000) == .ok(7))
        try driver.removeEndpoint(endpoint)
        #expect(port.read(0x1000) == .fault(.aborted))
    }

    @Test("substreams have domains of their own", arguments: [5, 16])
    func substreams(_ bits: Int) throws {
        let bench = try ModelBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("gpu", streams: [StreamID(0x20)], substreamBits: bits)
        let domains = try (0..<3).map { _ in try driver.makeDomain(.unmanaged) }
        for (index, domain) in domains.enumerated() {
            let physical = Self.buffer + UInt64(index) * 0x1000
            try Self.put(bench, physical, 100 + UInt64(index))
            try domain.map(
                IOVirtualAddress(0x5000),
                to: PhysicalAddress(physical),
                byteCount: 0x1000,
                permissions: .read
            )
        }
        let last: UInt32 = (1 << UInt32(bits)) - 1
        try driver.attach(endpoint, to: domains[0])
        try driver.attach(endpoint, substream: SubstreamID(1), to: domains[1])
        try driver.attach(endpoint, substream: SubstreamID(last), to: domains[2])
        let port = bench.smmu.makePort(for: StreamID(0x20))
        #expect(port.read(0x5000) == .ok(100))
        #expect(port.read(0x5000, substream: 1) == .ok(101))
        #expect(port.read(0x5000, substream: last) == .ok(102))
        // F_STREAM_DISABLED, C_BAD_CD.
        #expect(port.read(0x5000, substream: 0) == .fault(.event(0x06)))
        #expect(port.read(0x5000, substream: 2) == .fault(.event(0x0A)))
        try driver.detach(endpoint, substream: SubstreamID(1))
        #expect(port.read(0x5000, substream: 1) == .fault(.event(0x0A)))
        // Beside a bypassing and a blocked stream.
        try driver.attach(endpoint, to: driver.identityDomain)
        #expect(port.read(Self.buffer) == .ok(100))
        #expect(port.read(0x5000, substream: last) == .ok(102))
        try driver.attach(endpoint, to: driver.blockedDomain)
        #expect(port.read(Self.buffer) == .fault(.event(0x06)))
        #expect(port.read(0x5000, substream: last) == .ok(102))
        try driver.detach(endpoint, substream: SubstreamID(last))
        #expect(port.read(Self.buffer) == .fault(.aborted))
    }

    // MARK: Page tables, walked by the model

    struct Shape: Sendable, CustomTestStringConvertible {
        let granule: PageTableGranule
        let oas: UInt8
        var testDescription: String { "\(granule), IDR5.OAS \(oas)" }
    }

    static let shapes = PageTableGranule.allCases.flatMap { granule in
        (0...5).map { Shape(granule: granule, oas: $0) }
    }

    @Test("the model finds every page and block of the kernel's self-test", arguments: shapes)
    func selfTest(_ shape: Shape) throws {
        var identification = Identification.stage1()
        identification.idr5.oas = shape.oas
        let bench = try ModelBench(identification)
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(4)])
        let domain = try driver.makeDomain(.unmanaged, granule: shape.granule)
        try driver.attach(endpoint, to: domain)
        let port = bench.smmu.makePort(for: StreamID(4))
        try Self.put(bench, Self.buffer, 0xF1)
        for iova in [40, (1 << 30) + 40, (2 << 30) + 40] as [UInt64] {
            #expect(port.read(iova) == .translationFault)
        }
        let sizes = try #require(domain.configuration).pageByteCounts
        let top = UInt64(1) << UInt64(try #require(domain.configuration).inputAddressBits)
        for (index, size) in sizes.enumerated() {
            // The last range of the address space is the one that a wrong top table misses.
            for iova in [UInt64(index) << 30, top - size] {
                try domain.map(
                    IOVirtualAddress(iova),
                    to: PhysicalAddress(Self.buffer),
                    byteCount: size,
                    permissions: .readWrite
                )
                #expect(port.read(iova) == .ok(0xF1))
                #expect(port.write(iova + size - 8, iova) == .ok(0))
                #expect(try Self.get(bench, Self.buffer + size - 8) == iova)
                #expect(try domain.unmap(IOVirtualAddress(iova), byteCount: size).byteCount == size)
                #expect(port.read(iova) == .translationFault)
                #expect(port.read(iova + size - 8) == .translationFault)
            }
        }
    }

    struct Walkabout: Sendable, CustomTestStringConvertible {
        let granule: PageTableGranule
        let policy: PartialUnmapPolicy
        let seed: UInt64
        var testDescription: String { "\(granule), \(policy), seed \(seed)" }
    }

    static let walkabouts = PageTableGranule.allCases.flatMap { granule in
        [PartialUnmapPolicy.refuse, .split].flatMap { policy in
            (1...2).map { Walkabout(granule: granule, policy: policy, seed: $0) }
        }
    }

    /// Every access that differs from the page table is either a stale translation or a walk that reads it
    /// otherwise than it was written.
    @Test("DMA agrees with the page table after random maps and unmaps", arguments: walkabouts)
    func random(_ run: Walkabout) throws {
        var random = SplitMix(seed: run.seed)
        let bench = try ModelBench()
        let driver = try bench.start { $0.partialUnmap = run.policy }
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(9)])
        let domain = try driver.makeDomain(.unmanaged, granule: run.granule)
        try driver.attach(endpoint, to: domain)
        let port = bench.smmu.makePort(for: StreamID(9))
        let page = run.granule.byteCount
        let block = try #require(domain.configuration).pageByteCounts[1]
        let pages = 3 * block / page
        for _ in 0..<120 {
            var first = UInt64.random(in: 0..<pages, using: &random)
            var count = UInt64.random(in: 1...min(64, pages - first), using: &random)
            if UInt64.random(in: 0..<3, using: &random) == 0 {
                first -= first % (block / page)
                count = block / page
            }
            let iova = IOVirtualAddress(first * page)
            if Bool.random(using: &random) {
                // Congruent to the IOVA within a block, so that blocks are used.
                let physical = Self.buffer + (first * page) % (512 << 20)
                try? domain.map(
                    iova,
                    to: PhysicalAddress(physical),
                    byteCount: count * page,
                    permissions: Bool.random(using: &random) ? .read : .readWrite
                )
            } else {
                _ = try domain.unmap(iova, byteCount: count * page)
            }
            for _ in 0..<20 {
                let offset = UInt64.random(in: 0..<pages * page / 8, using: &random) * 8
                try Self.check(offset, domain, port, bench)
            }
            try Self.check(first * page, domain, port, bench)
            try Self.check((first + count) * page - 8, domain, port, bench)
        }
    }

    private static func check(_ iova: UInt64, _ domain: IOMMUDomain, _ port: StreamPort, _ bench: ModelBench)
        throws
    {
        guard let found = try domain.translate(IOVirtualAddress(iova)) else {
            #expect(port.read(iova) == .translationFault)
            return
        }
        let physical = found.physical.rawValue
        let mark = iova ^ 0x5EED
        try put(bench, physical, mark)
        #expect(port.read(iova) == .ok(mark))
        let isWritable = found.permissions.contains(.write)
        #expect(port.write(iova, mark + 1) == (isWritable ? .ok(0) : .permissionFault))
        #expect(try get(bench, physical) == (isWritable ? mark + 1 : mark))
    }

    // MARK: Errors and restarts

    @Test(
        "an illegal command does not stop the queue",
        arguments: [SMMUv3Options.CommandExecution.inline, .thread]
    )
    func illegalCommand(_ execution: SMMUv3Options.CommandExecution) throws {
        let bench = try ModelBench(execution: execution)
        let driver = try bench.start()
        try driver.device.complete([Command(words: [0xFF, 0x1234]), .tlbiNSNHAll()])
        try driver.synchronize()
        #expect(driver.messages.contains("skipping command in error state:"))
        #expect(driver.messages.contains("\t0x0000000000001234"))
    }

    @Test func moreFaultsThanTheQueueHoldsAreToldOf() throws {
        let bench = try ModelBench()
        let driver = try bench.start { $0.queueLog2Limit = 7 }
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(1)])
        try driver.attach(endpoint, to: try driver.makeDomain(.unmanaged))
        let port = bench.smmu.makePort(for: StreamID(1))
        for index in 0..<200 as Range<UInt64> { #expect(port.read(index << 12) == .translationFault) }
        driver.pollInterrupts()
        #expect(driver.events().count == 128)
        #expect(driver.messages.contains("EVTQ overflow detected -- events lost"))
        #expect(port.read(0x77_7000) == .translationFault)
        driver.pollInterrupts()
        #expect(driver.events(since: 128).map(\.record.inputAddress) == [0x77_7000])
    }

    @Test func aSecondDriverTakesOverAnSMMUThatWasLeftOn() throws {
        let bench = try ModelBench()
        let first = try bench.start()
        let endpoint = try first.addEndpoint("nic", streams: [StreamID(1)])
        try first.attach(endpoint, to: first.identityDomain)
        let port = bench.smmu.makePort(for: StreamID(1))
        #expect(port.read(Self.buffer) == .ok(0))
        let second = try bench.start()
        #expect(second.messages.contains("SMMU currently enabled! Resetting..."))
        // The new table has nothing of the old one.
        #expect(port.read(Self.buffer) == .fault(.event(0x02)))
        let again = try second.addEndpoint("nic", streams: [StreamID(0x1001)])
        try second.attach(again, to: second.identityDomain)
        #expect(bench.smmu.makePort(for: StreamID(0x1001)).read(Self.buffer) == .ok(0))
        second.stop()
        // GBPA.ABORT is what the second driver left.
        #expect(port.read(Self.buffer) == .fault(.aborted))
    }

    // MARK: Many at once

    /// While one thread reads without end, the endpoint goes from domain to domain and pages come and go: what
    /// is read is what one of the domains has there, or a fault.
    @Test func dmaGoesOnWhileDomainsChange() throws {
        let bench = try ModelBench(execution: .thread)
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(1)])
        let domains = try (0..<2).map { _ in try driver.makeDomain(.unmanaged) }
        for (index, domain) in domains.enumerated() {
            let physical = Self.buffer + UInt64(index) << 12
            try Self.put(bench, physical, 0xA0 + UInt64(index))
            try domain.map(
                IOVirtualAddress(0x1000),
                to: PhysicalAddress(physical),
                byteCount: 0x1000,
                permissions: .read
            )
        }
        let port = bench.smmu.makePort(for: StreamID(1))
        let reader = Reader(port)
        let worker = WorkerThread { reader.run() }
        worker.kick()
        let probe = bench.smmu.makePort(for: StreamID(1))
        for round in 0..<60 {
            try driver.attach(endpoint, to: domains[round % 2])
            #expect(probe.read(0x1000) == .ok(0xA0 + UInt64(round % 2)))
            if round % 5 == 4 {
                let domain = domains[round % 2]
                #expect(try domain.unmap(IOVirtualAddress(0x1000), byteCount: 0x1000).byteCount == 0x1000)
                #expect(probe.read(0x1000) == .translationFault)
                try domain.map(
                    IOVirtualAddress(0x1000),
                    to: PhysicalAddress(Self.buffer + UInt64(round % 2) << 12),
                    byteCount: 0x1000,
                    permissions: .read
                )
            }
        }
        reader.isStopping.store(true, ordering: .releasing)
        worker.stop()
        #expect(reader.surprise.load(ordering: .acquiring) == 0)
        driver.stop()
    }

    /// Reads one address until told to stop.
    //
    // SAFETY of @unchecked Sendable: the port is used by the thread that runs this alone.
    private final class Reader: @unchecked Sendable {
        private let port: StreamPort
        let isStopping = Atomic(false)
        /// Something that no domain has at that address.
        let surprise = Atomic<UInt64>(0)

        init(_ port: StreamPort) { self.port = port }

        func run() {
            while !isStopping.load(ordering: .acquiring) {
                guard case .ok(let value) = port.read(0x1000) else { continue }
                if value != 0xA0 && value != 0xA1 { surprise.store(value | 1 << 63, ordering: .releasing) }
            }
        }
    }
}
