// Groups, domains, devices that come and go, and what is told of the driver: over the control protocol.

import ControlProtocol
import IOMMU
import Machine
import SMMUv3
import Synchronization
import Testing

/// Time that passes where the driver, or who waits for it, looks again.
private final class PausingClock: DriverClock {
    private let now = Atomic<UInt64>(0)

    func nanoseconds() -> UInt64 { now.load(ordering: .sequentiallyConsistent) }
    func pause(attempt: Int) { now.add(1_000_000, ordering: .sequentiallyConsistent) }
}

@Suite("The machine's IOMMU core")
struct GroupTests {
    private static let device = "dma@40000000"
    private static let nic = "0000:00:02.0"

    private func start(
        _ board: String = TestBoard.small,
        _ configure: (inout MachineOptions) -> Void = { _ in }
    ) throws -> (Machine, TestClient) {
        var options = MachineOptions()
        options.smmu.commandExecution = .inline
        configure(&options)
        let machine = try Machine(board: try TestBoard.load(board), options: options)
        machine.startDriver()
        return (machine, TestClient(machine))
    }

    private func groups(_ client: TestClient) throws -> [GroupInfo] {
        try client.call(Methods.IOMMUGroups.self, Nothing()).groups
    }

    private func group(of device: String, _ client: TestClient) throws -> GroupInfo? {
        try groups(client).first { $0.devices.contains { $0.device.hasSuffix(device) } }
    }

    private func read(_ client: TestClient, _ device: String, _ iova: Hex, _ length: Size = 4) throws
        -> Methods.DMARead.Result
    {
        try client.call(Methods.DMARead.self, .init(device: device, iova: iova, length: length))
    }

    private func refusal(_ body: () throws -> Void) -> ControlError? {
        do {
            try body()
            return nil
        } catch { return error as? ControlError }
    }

    // MARK: Groups

    @Test("every endpoint behind an SMMU has a group, as sysfs shows it; others have none")
    func everyEndpointHasAGroup() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let result = try client.call(Methods.IOMMUGroups.self, Nothing())
        #expect(
            result.groups.map { $0.devices.map(\.kernelName) } == [
                ["40000000.dma"], ["40010000.display"], ["0000:00:02.0"],
            ]
        )
        #expect(result.groups.allSatisfy { $0.type == "DMA" && $0.domain == "dma" && !$0.untrusted })
        #expect(result.smmus.map(\.name) == ["smmu3.0x000000002b400000"])
        #expect(result.smmus.first?.capabilities.contains("cache-coherency") == true)
        #expect(
            result.sysfs["/sys/kernel/iommu_groups/1/reserved_regions"]
                == "0x0000000008000000 0x00000000080fffff msi\n"
                + "0x0000000090000000 0x000000009000ffff direct\n"
        )
        #expect(
            result.sysfs["/sys/class/iommu/smmu3.0x000000002b400000/devices/40000000.dma"] == "/dma@40000000"
        )
        #expect(result.sysfs.keys.allSatisfy { !$0.contains("ethernet") })
        let log = try client.call(Methods.DriverLog.self, .init()).lines
        #expect(log.contains { $0.text == "platform 40000000.dma: Adding to iommu group 0" })
        #expect(log.contains { $0.text == "pci 0000:00:02.0: Adding to iommu group 2" })
        #expect(log.contains { $0.text.hasPrefix("arm-smmu-v3 2b400000.iommu: ias ") })
        #expect(log.allSatisfy { $0.microseconds != nil })
    }

    @Test("functions of one device share a group and its domain: what one maps the other reaches")
    func functionsShareADomain() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let first = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "0000:00:05.1", iova: 0x10000, length: 0x1000)
        )
        // Of the second the core hears only now.
        #expect(try read(client, "0000:00:05.0", 0x10000).fault != nil)
        let conflict = refusal {
            _ = try client.call(
                Methods.IOMMUMap.self,
                .init(device: "0000:00:05.0", iova: 0x10000, length: 0x1000)
            )
        }
        #expect(conflict?.code == .conflict)
        #expect(try read(client, "0000:00:05.0", 0x10000).fault == nil)
        #expect(try group(of: "0000:00:05.0", client)?.devices.count == 2)
        let attached = try client.call(
            Methods.IOMMUAttach.self,
            .init(device: "0000:00:05.0", domain: .identity)
        )
        #expect(attached.group.count == 2)
        #expect(try read(client, "0000:00:05.1", first.address).fault == nil)
    }

    @Test("what is below a port that leads outside is untrusted: DMA whatever the parameters say")
    func externalFacing() throws {
        let board = TestBoard.small.replacing(
            "nic@2,0 { reg = <0x1000 0 0 0 0>; };",
            with: """
                nic@2,0 { reg = <0x1000 0 0 0 0>; };
                port@3,0 {
                    reg = <0x1800 0 0 0 0>; device_type = "pci"; bus-range = <1 1>; external-facing;
                    #address-cells = <3>; #size-cells = <2>; ranges;
                    disk@0,0 { reg = <0x10000 0 0 0 0>; };
                };
                """
        )
        let (machine, client) = try start(board) { $0.append = "iommu.passthrough=1" }
        defer { machine.stop() }
        let outside = try #require(try group(of: "0000:01:00.0", client))
        #expect(outside.untrusted)
        #expect(outside.type == "DMA")
        #expect(try group(of: Self.nic, client)?.type == "identity")
        let error = refusal {
            _ = try client.call(
                Methods.IOMMUGroupType.self,
                .init(group: outside.group, type: "identity")
            )
        }
        #expect(error?.message.contains("untrusted") == true)
    }

    @Test("a type changes while it runs, as sysfs allows: not while something is mapped or a driver is bound")
    func types() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        func type(_ type: String?) throws -> String {
            try client.call(Methods.IOMMUGroupType.self, .init(group: 0, type: type)).type
        }
        #expect(try type(nil) == "DMA")
        let mapping = try client.call(Methods.IOMMUMap.self, .init(device: Self.device, length: 0x1000))
        #expect(refusal { _ = try type("identity") }?.message.contains("EBUSY") == true)
        // The one change that nobody need notice.
        #expect(try type("DMA-FQ") == "DMA-FQ")
        _ = try client.call(Methods.IOMMUUnmap.self, .init(device: Self.device, iova: mapping.iova))
        _ = try client.call(Methods.DeviceBind.self, .init(device: Self.device, driver: "dmatest"))
        #expect(refusal { _ = try type("DMA") }?.message.contains("EPERM") == true)
        let attach = refusal {
            _ = try client.call(Methods.IOMMUAttach.self, .init(device: Self.device, domain: .blocked))
        }
        #expect(attach?.code == .conflict)
        _ = try client.call(Methods.DeviceUnbind.self, .init(device: Self.device))
        #expect(try type("identity") == "identity")
        #expect(try read(client, Self.device, 0x8800_0000).fault == nil)
        #expect(try type("auto") == "DMA")
        #expect(try read(client, Self.device, 0x8800_0000).fault?.name == "F_TRANSLATION")
        #expect(refusal { _ = try type("dma") }?.data?.parameter == "type")
        #expect(
            refusal { _ = try client.call(Methods.IOMMUGroupType.self, .init(group: 9)) }?.code == .notFound
        )
    }

    // MARK: Domains

    @Test("a domain with a name is shared by devices that are attached to it")
    func sharedDomain() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let made = try client.call(Methods.IOMMUDomainMake.self, .init(name: "shared"))
        #expect(made.kind == "unmanaged")
        #expect(made.asid != nil && made.root != nil && made.granule == 4096)
        for device in [Self.device, Self.nic] {
            _ = try client.call(
                Methods.IOMMUAttach.self,
                .init(device: device, domain: DomainName(rawValue: "shared"))
            )
        }
        _ = try client.call(
            Methods.IOMMUMap.self,
            .init(device: Self.device, iova: 0x7000, length: 0x2000)
        )
        _ = try client.call(
            Methods.DMAWrite.self,
            .init(device: Self.nic, iova: 0x7FFE, data: ByteString([1, 2, 3, 4]))
        )
        #expect(try read(client, Self.device, 0x7FFE).data == ByteString([1, 2, 3, 4]))
        let domains = try client.call(Methods.IOMMUDomains.self, Nothing()).domains
        let shared = try #require(domains.first { $0.name == "shared" })
        #expect(shared.devices.count == 2)
        #expect(shared.mapped == 0x2000)
        let busy = refusal { _ = try client.call(Methods.IOMMUDomainFree.self, .init(name: "shared")) }
        #expect(busy?.code == .conflict)
        for device in [Self.device, Self.nic] {
            _ = try client.call(Methods.IOMMUAttach.self, .init(device: device, domain: .dma))
        }
        #expect(try read(client, Self.nic, 0x7FFE).fault?.name == "F_TRANSLATION")
        _ = try client.call(Methods.IOMMUDomainFree.self, .init(name: "shared"))
        let gone = refusal {
            _ = try client.call(
                Methods.IOMMUAttach.self,
                .init(device: Self.nic, domain: DomainName(rawValue: "shared"))
            )
        }
        #expect(gone?.code == .notFound)
        #expect(refusal { _ = try client.call(Methods.IOMMUDomainMake.self, .init(name: "dma")) } != nil)
    }

    @Test("coherent memory: zeroed, below the mask, one address, and gone when it is freed")
    func coherentMemory() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let buffer = try client.call(Methods.IOMMUAllocate.self, .init(device: Self.device, length: 0x5000))
        #expect(buffer.iova.value + 0x5000 <= 0x1_0000_0000)
        #expect(
            try read(client, Self.device, buffer.iova, 0x5000).data
                == ByteString([UInt8](repeating: 0, count: 0x5000))
        )
        let domains = try client.call(Methods.IOMMUDomains.self, Nothing()).domains
        #expect(domains.first { $0.group == 0 }?.mapped == 0x5000)
        #expect(
            try client.call(Methods.IOMMUMappings.self, .init(device: Self.device)).mappings.first?.iova
                == buffer.iova
        )
        let busy = refusal {
            _ = try client.call(Methods.IOMMUGroupType.self, .init(group: 0, type: "identity"))
        }
        #expect(busy?.code == .conflict)
        let mask = refusal {
            _ = try client.call(
                Methods.IOMMUAllocate.self,
                .init(device: Self.device, length: 1, mask: 0x1234)
            )
        }
        #expect(mask?.data?.parameter == "mask")
        _ = try client.call(Methods.IOMMUFree.self, .init(device: Self.device, iova: buffer.iova))
        #expect(try read(client, Self.device, buffer.iova).fault?.name == "F_TRANSLATION")
        let twice = refusal {
            _ = try client.call(Methods.IOMMUFree.self, .init(device: Self.device, iova: buffer.iova))
        }
        #expect(twice?.code == .notMapped)
    }

    // MARK: Devices that come and go

    @Test("a device that is removed reaches nothing, and comes back into a new group")
    func hotPlug() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let mapping = try client.call(Methods.IOMMUMap.self, .init(device: Self.nic, length: 0x1000))
        #expect(try read(client, Self.nic, mapping.iova).fault == nil)
        _ = try client.call(Methods.DeviceRemove.self, .init(device: Self.nic))
        #expect(try read(client, Self.nic, mapping.iova).fault?.kind == .aborted)
        #expect(try group(of: Self.nic, client) == nil)
        #expect(try client.call(Methods.IOMMUMappings.self, .init()).mappings.isEmpty)
        let map = refusal {
            _ = try client.call(Methods.IOMMUMap.self, .init(device: Self.nic, length: 1))
        }
        #expect(map?.code == .noDriver)
        #expect(
            refusal { _ = try client.call(Methods.DeviceRemove.self, .init(device: Self.nic)) }?.code
                == .notFound
        )
        let device = try client.call(Methods.DeviceAdd.self, .init(device: Self.nic))
        #expect(device.group == 3)
        #expect(
            refusal { _ = try client.call(Methods.DeviceAdd.self, .init(device: Self.nic)) }?.code
                == .conflict
        )
        #expect(try read(client, Self.nic, mapping.iova).fault?.name == "F_TRANSLATION")
        #expect(try client.call(Methods.IOMMUMap.self, .init(device: Self.nic, length: 1)).length == 0x1000)
        let log = try client.call(Methods.DriverLog.self, .init()).lines.map(\.text)
        #expect(log.contains("pci 0000:00:02.0: Removing from iommu group 2"))
    }

    // MARK: What is told

    @Test("strict beside lazy: commands by opcode, and the window in which lazily unmapped memory is reached")
    func strictAndLazy() throws {
        let clock = PausingClock()
        let (machine, client) = try start { $0.driverClock = clock }
        defer { machine.stop() }
        let result = try client.call(
            Methods.IOMMUCompare.self,
            .init(device: Self.device, buffers: 20, length: 0x2000)
        )
        func count(_ name: String, _ counts: [OpcodeCount]) -> UInt64 {
            counts.first { $0.name == name }?.count ?? 0
        }
        #expect(result.strict.type == "DMA")
        #expect(count("CMD_TLBI_NH_VA", result.strict.commands) >= 20)
        #expect(count("CMD_SYNC", result.strict.commands) >= 20)
        #expect(result.strict.hits == 0)
        #expect(result.strict.fault == "F_TRANSLATION")
        #expect(result.strict.flush.isEmpty)
        #expect(result.lazy.type == "DMA-FQ")
        #expect(count("CMD_TLBI_NH_VA", result.lazy.commands) < 20)
        // A pause is 1 ms and the flush queue's timer 10 ms; the flush pauses before each of its two looks.
        #expect(result.lazy.hits == 10)
        #expect(result.lazy.windowNanoseconds == 12_000_000)
        #expect(result.lazy.fault == "F_TRANSLATION")
        #expect(result.lazy.flush.map(\.name) == ["CMD_TLBI_NH_ASID", "CMD_SYNC"])
        #expect(try group(of: Self.device, client)?.domain == "dma")
        // Nothing of it is left.
        #expect(try client.call(Methods.IOMMUDomains.self, Nothing()).domains.count == 3)
        _ = try client.call(Methods.DeviceBind.self, .init(device: Self.device))
        let busy = refusal { _ = try client.call(Methods.IOMMUCompare.self, .init(device: Self.device)) }
        #expect(busy?.code == .conflict)
    }

    @Test("the commands of an unmap are in the trace, in the counts, and with whoever follows")
    func trace() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let mapping = try client.call(Methods.IOMMUMap.self, .init(device: Self.device, length: 0x1000))
        let before = try client.call(Methods.DriverTrace.self, .init()).next
        let counts = try client.call(Methods.DriverCounts.self, .init()).smmus
        _ = try client.call(Methods.DriverTraceSubscribe.self, .init(smmu: .index(0)))
        _ = try client.call(Methods.IOMMUUnmap.self, .init(device: Self.device, iova: mapping.iova))
        _ = try client.call(Methods.DriverTraceUnsubscribe.self, Nothing())
        let sent = try client.call(Methods.DriverTrace.self, .init(since: before)).commands
        #expect(sent.last?.name == "CMD_SYNC")
        let invalidation = try #require(sent.first { $0.name == "CMD_TLBI_NH_VA" })
        #expect(invalidation.opcode == 0x12)
        #expect(invalidation.fields.contains { $0.name == "ASID" && $0.value != 0 })
        #expect(invalidation.words.count == 2)
        #expect(try client.call(Methods.DriverTrace.self, .init(since: before, limit: 1)).commands.count == 1)
        let after = try client.call(Methods.DriverCounts.self, .init(smmu: .index(0))).smmus
        #expect(after[0].total == counts[0].total + UInt64(sent.count))
        let lines = try #require(client.session.waitForNotifications())
        #expect(lines.count == sent.count)
        #expect(lines.allSatisfy { String(decoding: $0, as: UTF8.self).contains("\"method\":\"command\"") })
    }

    @Test("a follower of the log hears of each line")
    func followingTheLog() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let next = try client.call(Methods.DriverLogSubscribe.self, Nothing()).next
        _ = try client.call(Methods.DeviceRemove.self, .init(device: Self.nic))
        _ = try client.call(Methods.DriverLogUnsubscribe.self, Nothing())
        _ = try client.call(Methods.DeviceAdd.self, .init(device: Self.nic))
        let lines = try #require(client.session.waitForNotifications()).map {
            String(decoding: $0, as: UTF8.self)
        }
        #expect(lines.count == 1)
        #expect(lines[0].contains("Removing from iommu group 2"))
        #expect(lines[0].contains("\"sequence\":\(next)"))
    }

    @Test("without the daemon's own driver every method of it says so")
    func noDriver() throws {
        let (machine, client) = try start { $0.driver = .none }
        defer { machine.stop() }
        #expect(refusal { _ = try groups(client) }?.code == .noDriver)
        #expect(refusal { _ = try client.call(Methods.IOMMUDomains.self, Nothing()) }?.code == .noDriver)
        #expect(refusal { _ = try client.call(Methods.DriverTrace.self, .init()) }?.code == .noDriver)
        #expect(
            refusal { _ = try client.call(Methods.DriverLogSubscribe.self, Nothing()) }?.code == .noDriver
        )
        #expect(
            refusal { _ = try client.call(Methods.DeviceAdd.self, .init(device: Self.nic)) }?.code
                == .noDriver
        )
    }
}
