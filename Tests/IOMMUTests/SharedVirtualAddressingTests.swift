// Devices in processes' address spaces, on the model: pages come when a transaction stalls on them, and go with munmap.

import AddressSpace
import DeviceModel
import Glibc
import IOPageTable
import SMMUv3
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

/// RAM from an address on, of which the part beyond a limit is gone.
final class RangeMemory: ProcessMemory {
    let base: UInt64
    private let limit: Mutex<UInt64>

    init(base: UInt64, byteCount: UInt64) {
        self.base = base
        limit = Mutex(byteCount)
    }

    func truncate(to byteCount: UInt64) { limit.withLock { $0 = byteCount } }

    func page(at offset: UInt64) -> PhysicalAddress? {
        limit.withLock { offset < $0 } ? PhysicalAddress(base + offset) : nil
    }
}

@Suite("Shared virtual addresses on the model")
struct SharedVirtualAddressingTests {
    /// Far from every physical address.
    static let heap: UInt64 = 0x7F12_3456_0000
    static let text: UInt64 = 0x40_0000
    static let stream = StreamID(0x40)

    private struct Setup {
        let bench: ModelBench
        let driver: SMMUv3Driver
        let endpoint: IOMMUEndpoint
        let process: ProcessAddressSpace
        let memory = RangeMemory(base: ModelBench.buffers, byteCount: 1 << 20)
        let sva = SharedVirtualAddressing()
        let port: StreamPort

        init(options: (inout SMMUv3DriverOptions) -> Void = { _ in }) throws {
            bench = try ModelBench(.full(), execution: .thread)
            driver = try bench.start(options)
            endpoint = try driver.addEndpoint(
                "accelerator",
                streams: [stream],
                substreamBits: 8,
                canStall: true
            )
            try driver.enable(.pageFaults, for: endpoint)
            try driver.enable(.sharedAddresses, for: endpoint)
            process = try ProcessAddressSpace(
                id: 1,
                physicalAddressBits: 48,
                memory: bench.bus,
                frames: bench.frames
            )
            try process.map(
                #require(AddressRange(start: heap, byteCount: 0x1_0000)),
                access: [.read, .write],
                memory: memory
            )
            try process.map(
                #require(AddressRange(start: text, byteCount: 0x4000)),
                access: [.read, .execute],
                memory: memory,
                offset: 0x8_0000
            )
            port = bench.smmu.makePort(for: stream)
        }

        func bind() throws -> SVABond { try sva.bind(endpoint, of: driver, to: process) }
    }

    /// Waits for what another thread does; a minute at most.
    private static func eventually(_ condition: () -> Bool) -> Bool {
        let deadline = ContinuousClock.now.advanced(by: .seconds(60))
        while !condition() {
            if ContinuousClock.now > deadline { return false }
            sched_yield()
        }
        return true
    }

    @Test func pagesComeWhenADeviceAsksForThem() throws {
        let setup = try Setup()
        let bond = try setup.bind()
        let pasid = bond.substream.rawValue
        try setup.bench.bus.store(0xC0FFEE, .doubleword, at: PhysicalAddress(ModelBench.buffers + 0x2008))
        #expect(setup.process.residentPageCount == 0)
        #expect(setup.port.read(Self.heap + 0x2008, substream: pasid) == .ok(0xC0FFEE))
        #expect(setup.process.residentPageCount == 1)
        #expect(setup.port.write(Self.heap + 0x5000, 0x1234, substream: pasid) == .ok(0))
        #expect(setup.process.residentPageCount == 2)
        #expect(
            try setup.bench.bus.load(.doubleword, at: PhysicalAddress(ModelBench.buffers + 0x5000)) == 0x1234
        )
        #expect(setup.process.statistics.broughtIn == 2 && setup.process.statistics.refused == 0)
        #expect(setup.driver.events().isEmpty)
    }

    @Test func whatTheAddressSpaceForbidsIsAborted() throws {
        let setup = try Setup()
        let pasid = try setup.bind().substream.rawValue
        // A write to what can only be read, before and after its page is there.
        #expect(setup.port.write(Self.text, 1, substream: pasid) == .translationFault)
        #expect(setup.port.read(Self.text, substream: pasid) == .ok(0))
        #expect(setup.port.write(Self.text, 1, substream: pasid) == .permissionFault)
        // Nothing is there; and the upper half, which no process has.
        #expect(setup.port.read(Self.heap - 0x1000, substream: pasid) == .translationFault)
        #expect(setup.port.read(Self.heap + 0x1_0000, substream: pasid) == .translationFault)
        #expect(setup.port.read(0xFFFF_8000_0000_0000, substream: pasid) == .translationFault)
        // A page that the file has lost.
        setup.memory.truncate(to: 0x3000)
        #expect(setup.port.read(Self.heap + 0x3000, substream: pasid) == .translationFault)
        #expect(setup.process.statistics.refused == 6)
    }

    @Test func munmapTakesPagesFromTheDeviceBeforeItReturns() throws {
        let setup = try Setup()
        let pasid = try setup.bind().substream.rawValue
        for page in 0..<16 as Range<UInt64> {
            #expect(setup.port.write(Self.heap + page << 12, page, substream: pasid) == .ok(0))
        }
        try setup.process.unmap(#require(AddressRange(start: Self.heap + 0x4000, byteCount: 0x8000)))
        #expect(setup.process.residentPageCount == 8)
        #expect(setup.process.areas.map(\.range.first) == [Self.text, Self.heap, Self.heap + 0xC000])
        #expect(setup.port.read(Self.heap + 0x4000, substream: pasid) == .translationFault)
        #expect(setup.port.read(Self.heap + 0x3000, substream: pasid) == .ok(3))
        #expect(setup.port.read(Self.heap + 0xC000, substream: pasid) == .ok(0xC))
        // Something else comes to the same place.
        let other = RangeMemory(base: ModelBench.buffers + 0x20_0000, byteCount: 0x8000)
        try setup.process.map(
            #require(AddressRange(start: Self.heap + 0x4000, byteCount: 0x8000)),
            access: [.read],
            memory: other
        )
        #expect(setup.port.read(Self.heap + 0x4000, substream: pasid) == .ok(0))
    }

    @Test func processesAreApartByTheirPASIDs() throws {
        let setup = try Setup()
        let first = try setup.bind()
        let second = try ProcessAddressSpace(
            id: 2,
            physicalAddressBits: 48,
            memory: setup.bench.bus,
            frames: setup.bench.frames
        )
        try second.map(
            #require(AddressRange(start: Self.heap, byteCount: 0x1000)),
            access: [.read, .write],
            memory: RangeMemory(base: ModelBench.buffers + 0x30_0000, byteCount: 0x1000)
        )
        let bond = try setup.sva.bind(setup.endpoint, of: setup.driver, to: second)
        #expect(first.substream != bond.substream && first.asid != bond.asid)
        #expect(setup.port.write(Self.heap, 1, substream: first.substream.rawValue) == .ok(0))
        #expect(setup.port.write(Self.heap, 2, substream: bond.substream.rawValue) == .ok(0))
        #expect(setup.port.read(Self.heap, substream: first.substream.rawValue) == .ok(1))
        #expect(setup.port.read(Self.heap, substream: bond.substream.rawValue) == .ok(2))
    }

    @Test func devicesOfOneProcessShareItsPASIDAndASID() throws {
        let setup = try Setup()
        let other = try setup.driver.addEndpoint(
            "second",
            streams: [StreamID(0x41)],
            substreamBits: 4,
            canStall: true
        )
        try setup.driver.enable(.pageFaults, for: other)
        try setup.driver.enable(.sharedAddresses, for: other)
        let first = try setup.bind()
        let second = try setup.sva.bind(other, of: setup.driver, to: setup.process)
        #expect(first.substream == second.substream && first.asid == second.asid)
        #expect(setup.port.write(Self.heap, 7, substream: first.substream.rawValue) == .ok(0))
        let port = setup.bench.smmu.makePort(for: StreamID(0x41))
        #expect(port.read(Self.heap, substream: first.substream.rawValue) == .ok(7))
        #expect(setup.process.residentPageCount == 1)
        // A second bind is one more user of the first.
        #expect(try setup.bind() === first)
        try setup.sva.unbind(first)
        #expect(setup.port.read(Self.heap, substream: first.substream.rawValue) == .ok(7))
        try setup.sva.unbind(first)
        guard case .fault = setup.port.read(Self.heap, substream: first.substream.rawValue) else {
            Issue.record("unbound, it reads")
            return
        }
        #expect(port.read(Self.heap, substream: first.substream.rawValue) == .ok(7))
        #expect(throws: SVAError.self) { try setup.sva.unbind(first) }
    }

    @Test func theProcessEndsWithoutAnEventAndWithoutAWait() throws {
        let setup = try Setup()
        let bond = try setup.bind()
        let pasid = bond.substream.rawValue
        #expect(setup.port.write(Self.heap, 1, substream: pasid) == .ok(0))
        try setup.process.end()
        // EPD0, and neither S nor R: what comes is aborted, nothing is recorded and nobody asked.
        for address in [Self.heap, Self.heap + 0x1000] {
            #expect(setup.port.read(address, substream: pasid) == .translationFault)
        }
        setup.driver.pollInterrupts()
        #expect(setup.driver.events().isEmpty)
        #expect(setup.process.statistics.refused == 0)
        #expect(setup.driver.pageFaultStatistics.reported == 1)
        #expect(throws: SVAError.self) {
            try setup.sva.bind(setup.endpoint, of: setup.driver, to: setup.process)
        }
        #expect(throws: ProcessMemoryError.ended) {
            try setup.process.unmap(#require(AddressRange(start: Self.heap, byteCount: 0x1000)))
        }
        try setup.sva.unbind(bond)
        // Whoever handled the page fault may hold the domain for a moment longer than the transaction waited.
        #expect(Self.eventually { setup.driver.device.asids.usedCount == 0 })
    }

    @Test func theCDsAreTheKernels() throws {
        let setup = try Setup()
        let bond = try setup.bind()
        func words() throws -> [UInt64] {
            let entry = setup.driver.attachments.withLock {
                $0.states[ObjectIdentifier(setup.endpoint)]?.contexts?.entry(for: bond.substream)
            }
            let address = try #require(entry)
            return try (0..<4).map {
                try setup.bench.bus.load(.doubleword, at: PhysicalAddress(address.rawValue + $0 * 8))
            }
        }
        // ASID 1; A, R, S, AA64; IPS 5; V, EPD1; SH0 3, OR0 1, IR0 1, T0SZ 16. No ASET.
        #expect(
            try words() == [0x0001_7205_C000_3510, setup.process.root.rawValue, 0, 0x0000_0000_F404_FF44]
        )
        try setup.process.end()
        // A, AA64; IPS; V, EPD1, EPD0.
        let quiet = try words()
        #expect(quiet[0] == 0x0001_4205_C000_4000)
    }

    @Test func whatIsNotThereIsNotBound() throws {
        let setup = try Setup()
        let plain = try setup.driver.addEndpoint("plain", streams: [StreamID(0x50)], canStall: true)
        #expect(throws: SVAError.invalid("plain has sva not enabled")) {
            try setup.sva.bind(plain, of: setup.driver, to: setup.process)
        }
        let wide = try ProcessAddressSpace(
            id: 3,
            physicalAddressBits: 48,
            memory: setup.bench.bus,
            frames: setup.bench.frames
        )
        let narrow = try setup.driver.addEndpoint("narrow", streams: [StreamID(0x51)], substreamBits: 1)
        try setup.driver.enable(.sharedAddresses, for: narrow)
        _ = try setup.sva.bind(narrow, of: setup.driver, to: wide)
        #expect(throws: SVAError.substreamsExhausted(bits: 1)) {
            try setup.sva.bind(narrow, of: setup.driver, to: setup.process)
        }
        // A PASID that the first device took and the second has not.
        let bond = try setup.bind()
        #expect(bond.substream.rawValue == 2)
        #expect(throws: SVAError.substreamTooLarge(SubstreamID(2), bits: 1)) {
            try setup.sva.bind(narrow, of: setup.driver, to: setup.process)
        }
    }

    @Test func areasAreCheckedAsTheKernelChecksThem() throws {
        let setup = try Setup()
        func map(_ start: UInt64, _ byteCount: UInt64, _ access: PageFault.Access = [.read]) throws {
            try setup.process.map(
                #require(AddressRange(start: start, byteCount: byteCount)),
                access: access,
                memory: setup.memory
            )
        }
        let before = setup.process.areas.map(\.range)
        #expect(throws: ProcessMemoryError.self) { try map(0x123, 0x1000) }
        #expect(throws: ProcessMemoryError.self) { try map(0x1000, 0x800) }
        #expect(throws: ProcessMemoryError.self) { try map(0x1_0000_0000_0000 - 0x1000, 0x2000) }
        #expect(throws: ProcessMemoryError.self) { try map(0x1000, 0x1000, [.write]) }
        #expect(throws: ProcessMemoryError.self) { try map(Self.heap + 0xF000, 0x2000) }
        #expect(setup.process.areas.map(\.range) == before)
        try map(Self.heap + 0x1_0000, 0x1000)
        try setup.process.unmap(#require(AddressRange(start: 0, byteCount: 1 << 48)))
        #expect(setup.process.areas.isEmpty)
    }

    @Test func aDeviceThatIsRemovedWithFaultsPendingHoldsNothingUp() throws {
        let setup = try Setup()
        let bond = try setup.bind()
        let pasid = bond.substream.rawValue
        let isAsked = Semaphore()
        let mayGoOn = Semaphore()
        // Its handler hangs until the test lets it go on.
        let domain = try setup.driver.makeDomain(.unmanaged)
        domain.setFaultHandler(
            ScriptedHandler { _ in
                isAsked.signal()
                mayGoOn.wait()
                return .invalid
            }
        )
        try setup.driver.attach(setup.endpoint, substream: SubstreamID(0x30), to: domain)
        let smmu = setup.bench.smmu
        let outcomes = Mutex<[DMAResult]>([])
        let threads = [UInt32(0x30), pasid].map { substream in
            WorkerThread {
                let result = smmu.makePort(for: Self.stream).read(Self.heap, substream: substream)
                outcomes.withLock { $0.append(result) }
            }
        }
        threads[0].kick()
        isAsked.wait()
        // It waits behind the one that is being handled.
        threads[1].kick()
        #expect(Self.eventually { setup.driver.pageFaultStatistics.reported == 2 })
        let (driver, endpoint) = (setup.driver, setup.endpoint)
        let remover = WorkerThread { try? driver.removeEndpoint(endpoint) }
        remover.kick()
        // The second is refused although the first is not answered yet.
        #expect(Self.eventually { outcomes.withLock { !$0.isEmpty } })
        #expect(outcomes.withLock { $0 } == [.translationFault])
        mayGoOn.signal()
        for thread in threads { thread.stop() }
        remover.stop()
        #expect(outcomes.withLock { $0 } == [.translationFault, .translationFault])
        #expect(setup.driver.endpoint(of: Self.stream) == nil)
        try setup.sva.unbind(bond)
        try setup.process.end()
    }

    @Test func pageRequestsOfAFunctionBringPagesIn() throws {
        let setup = try Setup()
        let function = try setup.driver.addEndpoint(
            "function",
            streams: [StreamID(0x100)],
            substreamBits: 8,
            services: FakeServices()
        )
        let domain = try setup.driver.makeDomain(.dma)
        try setup.driver.attach(function, to: domain)
        try setup.driver.enable(.pageFaults, for: function)
        try setup.driver.enable(.sharedAddresses, for: function)
        let pasid = try setup.sva.bind(function, of: setup.driver, to: setup.process).substream
        let responses = ResponseNotes()
        setup.bench.smmu.connect(responses, at: StreamID(0x100))
        let port = setup.bench.smmu.makePort(for: StreamID(0x100), canStall: false)
        for (group, page) in [(1, 0x1000), (1, 0x2000), (1, 0x3000), (2, 0x2_0000)] as [(UInt16, UInt64)] {
            port.sendPageRequest(
                PageRequest(
                    address: IOVirtualAddress(Self.heap + page),
                    substreamID: pasid,
                    group: group,
                    isLast: page >= 0x3000,
                    wantsRead: true,
                    wantsWrite: true
                )
            )
        }
        #expect(
            responses.take(2) == [
                PageRequestGroupResponse(group: 1, substreamID: pasid, code: .success),
                PageRequestGroupResponse(group: 2, substreamID: pasid, code: .invalidRequest),
            ]
        )
        #expect(setup.process.residentPageCount == 3)
        // EATS: the function gets translations now, and loses them with the pages.
        let request = ATSTranslationRequest(address: IOVirtualAddress(Self.heap + 0x3000), substreamID: pasid)
        guard case .success(let translation) = port.translate(request) else {
            Issue.record("no translation")
            return
        }
        #expect(translation.output == ModelBench.buffers + 0x3000 && translation.canWrite)
        try setup.process.unmap(#require(AddressRange(start: Self.heap, byteCount: 0x1_0000)))
        #expect(responses.invalidations.last?.substreamID == pasid)
        // The span of what was there: three pages from an odd one on, so four from an even one on.
        #expect(responses.invalidations.last?.range == Self.heap...(Self.heap + 0x3FFF))
    }
}

/// A function that notes responses.
private final class ResponseNotes: ATSEndpoint {
    private let noted = Mutex<[PageRequestGroupResponse]>([])
    private let dropped = Mutex<[ATCInvalidation]>([])
    private let semaphore = Semaphore()

    var invalidations: [ATCInvalidation] { dropped.withLock { $0 } }

    func invalidate(_ request: ATCInvalidation, completion: @escaping @Sendable () -> Void) {
        dropped.withLock { $0.append(request) }
        completion()
    }

    func receive(_ response: PageRequestGroupResponse) {
        noted.withLock { $0.append(response) }
        semaphore.signal()
    }

    /// Waits for so many.
    func take(_ count: Int) -> [PageRequestGroupResponse] {
        for _ in 0..<count { semaphore.wait() }
        return noted.withLock { $0 }
    }
}
