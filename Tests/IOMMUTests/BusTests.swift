// Buses, the kernel's operations, and what a command queue was sent.

import AddressSpace
import IOPageTable
import SMMUv3Spec
import Synchronization
import Testing

@testable import IOMMU

@Suite("Buses and the IOMMU core")
struct BusTests {
    private static func device(
        _ name: String,
        _ driver: SMMUv3Driver?,
        stream: UInt32,
        place: BusDevice.Place = .platform
    ) -> BusDevice {
        BusDevice(
            name: "/\(name)",
            kernelName: name,
            place: place,
            iommu: driver,
            streams: [StreamID(stream)]
        )
    }

    private static func function(_ requesterID: UInt16, group: [UInt16], _ driver: SMMUv3Driver) -> BusDevice
    {
        device(
            "0000:00:0\(requesterID >> 3).\(requesterID & 7)",
            driver,
            stream: UInt32(requesterID) + 0x100,
            place: .pci(segment: 0, requesterID: requesterID, group: group)
        )
    }

    @Test func hotAdditionAndRemovalReachTheCore() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let log = Mutex<[String]>([])
        let core = IOMMUCore { line in log.withLock { $0.append(line) } }
        let bus = DeviceBus("platform")
        try bus.register(core)
        try bus.add(Self.device("a0.uart", driver, stream: 0x103))
        // No SMMU: on the bus, and in no group.
        try bus.add(Self.device("a1.rng", nil, stream: 0))
        #expect(core.group(of: "/a0.uart")?.id == 0)
        #expect(core.group(of: "/a1.rng") == nil)
        #expect(core.sysfs["/sys/kernel/iommu_groups/0/devices/a0.uart"] == "/a0.uart")
        #expect(throws: IOMMUGroupError.busy("/a0.uart is there already")) {
            try bus.add(Self.device("a0.uart", driver, stream: 0x103))
        }
        #expect(bus.remove("/a0.uart"))
        #expect(!bus.remove("/a0.uart"))
        #expect(core.groups.isEmpty)
        #expect(driver.endpoint(of: StreamID(0x103)) == nil)
        #expect(
            log.withLock { $0 } == [
                "platform a0.uart: Adding to iommu group 0", "platform a0.uart: Removing from iommu group 0",
            ]
        )
        driver.stop()
    }

    @Test func whatTheCoreRefusesIsNotOnTheBus() throws {
        let driver = try DriverBench().start()
        let core = IOMMUCore()
        let bus = DeviceBus("platform")
        try bus.register(core)
        try bus.add(Self.device("a0.uart", driver, stream: 0x103))
        #expect(
            throws: IOMMUGroupError.driver(.streamInUse(StreamID(0x103), endpoint: "/a0.uart"))
        ) { try bus.add(Self.device("a1.uart", driver, stream: 0x103)) }
        #expect(bus.devices.map(\.kernelName) == ["a0.uart"])
        driver.stop()
    }

    @Test func aBoundDriverHoldsTheGroupUntilItIsUnboundOrTheDeviceGoes() throws {
        let driver = try DriverBench().start()
        let core = IOMMUCore()
        let bus = DeviceBus("platform")
        try bus.register(core)
        try bus.add(Self.device("a0.uart", driver, stream: 0x103))
        let group = try #require(core.group(of: "/a0.uart"))
        try bus.bind("/a0.uart", to: "pl011")
        #expect(group.userCount == 1)
        #expect(bus.driver(of: "/a0.uart") == "pl011")
        #expect(throws: IOMMUGroupError.busy("/a0.uart is bound to pl011")) {
            try bus.bind("/a0.uart", to: "vfio-platform")
        }
        #expect(throws: IOMMUGroupError.notPermitted("group 0 is in use")) {
            try group.replaceDomain(with: driver.identityDomain, by: "vfio")
        }
        try bus.unbind("/a0.uart")
        #expect(group.userCount == 0)
        // Owned by somebody else no driver can be bound.
        try group.replaceDomain(with: driver.identityDomain, by: "vfio")
        #expect(throws: IOMMUGroupError.busy("group 0 is not in its default domain")) {
            try bus.bind("/a0.uart", to: "pl011")
        }
        #expect(bus.driver(of: "/a0.uart") == nil)
        try group.release(by: "vfio")
        try bus.bind("/a0.uart", to: "pl011")
        bus.remove("/a0.uart")
        #expect(core.groups.isEmpty)
        driver.stop()
    }

    @Test func aNotifierThatComesLaterIsToldOfAllAndOneThatGoesReleasesAll() throws {
        let driver = try DriverBench().start()
        let bus = DeviceBus("platform")
        try bus.add(Self.device("a0.uart", driver, stream: 0x103))
        try bus.add(Self.device("a1.dma", driver, stream: 0x104))
        let core = IOMMUCore()
        core.register(driver)
        try bus.register(core)
        #expect(core.groups.map(\.id) == [0, 1])
        bus.unregister(core)
        #expect(core.groups.isEmpty)
        #expect(core.sysfs == ["/sys/class/iommu/smmu3.0x0000000009050000": "9050000.iommu"])
        try bus.add(Self.device("a2.dma", driver, stream: 0x105))
        #expect(core.groups.isEmpty)
        driver.stop()
    }

    @Test func anSMMUThatGoesTakesItsDevicesGroupsAlong() throws {
        let driver = try DriverBench().start()
        let core = IOMMUCore()
        core.register(driver)
        let bus = DeviceBus("platform")
        try bus.register(core)
        try bus.add(Self.device("a0.uart", driver, stream: 0x103))
        core.unregister(driver)
        #expect(core.sysfs.isEmpty)
        #expect(driver.endpoints.isEmpty)
        // The bus has it still; that it goes later is no news to the core.
        #expect(bus.remove("/a0.uart"))
        driver.stop()
    }

    @Test func aFunctionJoinsTheGroupThatAnotherOfItsOwnHasAlready() throws {
        let driver = try DriverBench().start()
        let core = IOMMUCore()
        let bus = DeviceBus("pci")
        try bus.register(core)
        // Function 1 was found first, alone.
        try bus.add(Self.function(9, group: [9], driver))
        try bus.add(Self.function(8, group: [8, 9], driver))
        try bus.add(Self.function(16, group: [16], driver))
        #expect(
            core.groups.map { $0.members.map(\.name) } == [
                ["/0000:00:01.1", "/0000:00:01.0"], ["/0000:00:02.0"],
            ]
        )
        driver.stop()
    }

    @Test func operationsSayWhatTheKernelsDo() throws {
        let driver = try DriverBench().start()
        #expect(driver.capable(.cacheCoherency))
        #expect(driver.capable(.noExecute))
        #expect(driver.capable(.deferredFlush))
        #expect(!driver.capable(.preBootProtection))
        #expect(try driver.translateSpecifier([0x42]) == StreamID(0x42))
        #expect(throws: IOMMUGroupError.self) { try driver.translateSpecifier([1, 2]) }
        let device = Self.device("a0.uart", driver, stream: 0x103)
        #expect(driver.deviceGroup(of: device) == .platform("/a0.uart"))
        let endpoint = try driver.probeDevice(device)
        #expect(driver.reservedRegions(of: endpoint).map(\.range.first) == [0x0800_0000])
        try driver.releaseDevice(endpoint)
        let domain = try driver.makeDomain(.dma)
        // 4 KiB, 2 MiB, 1 GiB.
        #expect(domain.attributes.contains(.pageSizes(0x4020_1000)))
        #expect(domain.attributes.contains(.usesFlushQueue(false)))
        try domain.set(.usesFlushQueue(true))
        #expect(domain.attributes.contains(.usesFlushQueue(true)))
        #expect(throws: IOMMUGroupError.self) { try domain.set(.nesting(true)) }
        #expect(driver.identityDomain.attributes.isEmpty)
        driver.stop()
    }
}

@Suite("What a command queue was sent")
struct CommandHistoryTests {
    @Test func countsByOpcodeAreWhatTheTraceHas() throws {
        let bench = DriverBench()
        let driver = try bench.start()
        let endpoint = try driver.addEndpoint("nic", streams: [StreamID(0x103)])
        let domain = try driver.makeDomain(.dma)
        try driver.attach(endpoint, to: domain)
        for _ in 0..<3 {
            let iova = try domain.map(PhysicalAddress(0x1_0000), byteCount: 0x1000, permissions: .readWrite)
            _ = try domain.unmap(iova, byteCount: 0x1000)
        }
        var expected: [Opcode: UInt64] = [:]
        for case .command(let command) in bench.trace.take() { expected[command.opcode, default: 0] += 1 }
        let counts = driver.commandCounts
        #expect(Dictionary(uniqueKeysWithValues: counts.opcodes.map { ($0.opcode, $0.count) }) == expected)
        #expect(counts[.tlbiNHVA] == 3)
        #expect(counts.total == expected.values.reduce(0, +))
        try domain.flushAll()
        let later = driver.commandCounts - counts
        #expect(later.opcodes.map(\.opcode) == [.tlbiNHASID, .sync])
        driver.stop()
    }

    @Test func theRingKeepsTheNewestWithTheirNumbers() throws {
        let driver = try DriverBench().start()
        let (_, start) = driver.sentCommands()
        for index in 0..<2000 as Range<UInt32> {
            try driver.device.commands.issue([.cfgiSTE(StreamID(index), leaf: true)], thenSync: true)
        }
        let (commands, next) = driver.sentCommands()
        #expect(next == start + 4000)
        #expect(commands.count == 1024)
        #expect(commands.map(\.sequence) == Array((next - 1024)..<next))
        #expect(commands.last?.command.opcode == .sync)
        #expect(commands.dropLast().last?.command == .cfgiSTE(StreamID(1999), leaf: true))
        #expect(driver.sentCommands(since: next - 2).commands.count == 2)
        #expect(driver.sentCommands(since: next).commands.isEmpty)
        #expect(driver.sentCommands(since: .max).commands.isEmpty)
        driver.stop()
    }

    @Test func aListenerHearsOfEachCommandWhileItListens() throws {
        let driver = try DriverBench().start()
        let heard = Mutex<[SentCommand]>([])
        let first = driver.setCommandListener { command in heard.withLock { $0.append(command) } }
        try driver.device.commands.issue([.cfgiSTE(StreamID(1), leaf: true)], thenSync: true)
        driver.setCommandListener(nil)
        try driver.device.commands.issue([.cfgiSTE(StreamID(2), leaf: true)], thenSync: true)
        #expect(heard.withLock { $0.map(\.sequence) } == [first, first + 1])
        #expect(heard.withLock { $0.map(\.command.opcode) } == [.cfgiSTE, .sync])
        driver.stop()
    }
}
