// A machine that only an IORT describes: its driver probes, maps, and DMA is translated.

import AddressSpace
import ControlProtocol
import DeviceModel
import DeviceTree
import IORTFixtures
import Machine
import Testing

extension DMAPort {
    fileprivate func read(_ count: Int, at address: UInt64) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        try bytes.withUnsafeMutableBytes { try read(at: IOVirtualAddress(address), into: $0, .plain) }
        return bytes
    }
}

@Suite("A machine from an IORT alone")
struct IORTTests {
    private func start(_ name: String) throws -> (Machine, TestClient) {
        let ram = try #require(AddressRange(start: 0x8000_0000, byteCount: 0x4000_0000))
        let board = try BoardDescription.load(tree: nil, iort: IORTFixture(name).bytes, ram: [ram])
        let machine = try Machine(board: board, options: MachineOptions())
        machine.startDriver()
        return (machine, TestClient(machine))
    }

    @Test(
        "Every SMMU is probed and runs: wired, with one line for all, and with interrupts that are messages"
    )
    func probe() throws {
        for name in ["everything", "qemu-virt", "altra"] {
            let (machine, _) = try start(name)
            defer { machine.stop() }
            #expect(!machine.smmus.isEmpty)
            for index in machine.smmus.indices {
                let state = machine.driverState(ofSMMU: index)
                #expect(state.state == .running, "\(name) \(index): \(state)")
            }
        }
    }

    @Test(
        "What is mapped for a named component or a function is written and read by DMA; what is unmapped faults",
        arguments: [("DMA0", 0x42, 1), ("0000:00:01.0", 0x1008, 0), ("0001:02:00.3", 0x20203, 0)]
    )
    func mapTransferUnmap(_ device: String, _ stream: UInt64, _ smmu: Int) throws {
        let (machine, client) = try start("everything")
        defer { machine.stop() }
        let endpoint = try #require(machine.endpoint(named: device))
        #expect(endpoint.smmuIndex == smmu)
        #expect(endpoint.streams.first.map { UInt64($0.rawValue) } == stream)
        let mapping = try client.call(
            Methods.IOMMUMap.self,
            .init(device: device, iova: 0x10000, length: 0x1000)
        )
        let data = ByteString(Array("by the IORT".utf8))
        let written = try client.call(
            Methods.DMAWrite.self,
            .init(device: device, iova: 0x10010, data: data)
        )
        #expect(written.fault == nil)
        let memory = try client.call(
            Methods.MemoryRead.self,
            .init(address: Hex(mapping.address.value + 0x10), length: 11)
        )
        #expect(memory.data == data)
        _ = try client.call(Methods.IOMMUUnmap.self, .init(device: device, iova: 0x10000))
        let after = try client.call(
            Methods.DMARead.self,
            .init(device: device, iova: 0x10010, length: 11)
        )
        #expect(after.fault?.name == "F_TRANSLATION")
    }

    @Test("An RMR is mapped one to one for its devices alone")
    func reservedRange() throws {
        let (machine, client) = try start("everything")
        defer { machine.stop() }
        func address(_ device: String, _ iova: UInt64) throws -> UInt64? {
            let result = try client.call(Methods.Translate.self, .init(device: device, iova: Hex(iova)))
            guard case .translation(let translation) = result else { return nil }
            return translation.address.value
        }
        #expect(try address("DMA0", 0x8830_0123) == 0x8830_0123)
        #expect(try address("DMA0", 0x8900_0123) == nil)
        // RequesterIDs 8 to 0x17 have the other one. Functions are attached when something is mapped for them.
        for device in ["0000:00:01.0", "0000:00:03.0"] {
            _ = try client.call(Methods.IOMMUMap.self, .init(device: device, length: 0x1000))
        }
        #expect(try address("0000:00:01.0", 0x8900_0123) == 0x8900_0123)
        #expect(try address("0000:00:03.0", 0x8900_0123) == nil)
        #expect(try address("0000:00:01.0", 0x8830_0123) == nil)
    }

    @Test("What the IORT says of coherence and of HTTU overrules IDR0, with the kernel's words")
    func overrides() throws {
        let (machine, client) = try start("everything")
        defer { machine.stop() }
        let log = try client.call(Methods.DriverLog.self, .init()).lines
        let first = log.filter { $0.source == "/iort/smmuv3@2b400000" }.map(\.text)
        // Bits 21 and 22 of the driver's features: the Access flag, dirty state.
        #expect(
            first.contains {
                $0.contains("IDR0.HTTU features(0x0) overridden by FW configuration (0x600000)")
            }
        )
        let second = log.filter { $0.source == "/iort/smmuv3@2b600000" }.map(\.text)
        #expect(!second.contains { $0.contains("IDR0.HTTU") })
    }

    @Test("Devices of an RMR are let through until they are attached")
    func firmwareStreams() throws {
        let (machine, _) = try start("everything")
        defer { machine.stop() }
        let endpoint = try #require(machine.endpoint(named: "0000:00:01.0"))
        let port = machine.makePort(
            for: RequesterIdentity(smmuIndex: 0, streamID: try #require(endpoint.streams.first))
        )
        let other = machine.makePort(for: RequesterIdentity(smmuIndex: 0, streamID: StreamID(0x1018)))
        #expect(throws: Never.self) { try port.read(4, at: 0x8000_0000) }
        #expect(throws: DMAFault.self) { try other.read(4, at: 0x8000_0000) }
    }

    @Test("Addresses that a device cannot drive are not mapped for it")
    func addressLimit() throws {
        let (machine, client) = try start("everything")
        defer { machine.stop() }
        _ = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "DMA0", iova: 0xFF_FFFF_F000, length: 0x1000)
        )
        #expect(throws: (any Error).self) {
            try client.call(
                Methods.IOMMUMap.self,
                .init(device: "DMA0", iova: 0x100_0000_0000, length: 0x1000)
            )
        }
    }

    @Test("The board's table has what the IORT says, in the words that a tree's has")
    func report() throws {
        let (machine, client) = try start("everything")
        defer { machine.stop() }
        let board = client.service.describe()
        #expect(board.smmus.map(\.path).first == "/iort/smmuv3@2b400000")
        #expect(board.smmus[1].quirks == ["hisilicon,broken-prefetch-cmd"])
        #expect(board.smmus[2].quirks == ["cavium,cn9900-broken-page1-regspace"])
        #expect(board.smmus[0].interrupts.map(\.intid) == [106, 107, 109, 108])
        #expect(board.pmcgs.map(\.smmu) == ["/iort/smmuv3@2b400000", "/iort/smmuv3@2b600000"])
        #expect(board.pcieHosts.map(\.segment) == [0, 1])
        #expect(board.endpoints.map(\.name) == ["/iort/_SB_/DMA0"])
        #expect(board.reservedMemory.map(\.path) == ["/iort/rmr@88300000", "/iort/rmr@89000000"])
    }
}
