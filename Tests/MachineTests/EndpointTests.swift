// How requesters are found by name.

import AddressSpace
import DeviceModel
import DeviceTree
import Machine
import SMMUv3
import SMMUv3Spec
import SystemBus
import Testing

@Suite("Endpoints and their names")
struct EndpointTests {
    private func machine() throws -> Machine {
        try Machine(board: try TestBoard.load(TestBoard.small))
    }

    @Test("a platform device goes by its path and by its last part, and has every StreamID of its iommus")
    func platformNames() throws {
        let machine = try machine()
        let endpoint = try #require(machine.endpoint(named: "dma@40000000"))
        #expect(endpoint.name == "/dma@40000000")
        #expect(machine.endpoint(named: "/dma@40000000")?.streams == [StreamID(0x10), StreamID(0x11)])
        #expect(endpoint.smmuIndex == 0)
        #expect(endpoint.substreamBits == 4)
    }

    @Test("a PCIe function of the tree goes by its address, by host and address, and by its node")
    func functionNames() throws {
        let machine = try machine()
        for name in ["0000:00:02.0", "00:02.0", "/pcie@50000000/0000:00:02.0", "nic@2,0"] {
            #expect(machine.endpoint(named: name)?.streams == [StreamID(0x10010)], "\(name)")
        }
    }

    @Test("a PCIe function that the tree does not mention is found by its address, through iommu-map")
    func functionOutsideTheTree() throws {
        let machine = try machine()
        let count = machine.endpoints.count
        // Bus 3, device 4, function 5: RequesterID 0x325, StreamID 0x10000 more.
        #expect(machine.endpoint(named: "0000:03:04.5")?.streams == [StreamID(0x10325)])
        #expect(machine.endpoint(named: "03:04.5")?.name == "/pcie@50000000/0000:03:04.5")
        #expect(machine.endpoints.count == count + 1)
    }

    @Test(
        "a name that is nobody's finds nobody",
        arguments: [
            "", "dma", "0000:10:00.0", "0001:00:02.0", "00:20.0", "00:02.8", "x:y.z", "/pcie@1/0000:00:02.0",
        ]
    )
    func unknownNames(_ name: String) throws {
        #expect(try machine().endpoint(named: name) == nil)
    }

    @Test("a device that the tree gives no SMMU reaches memory as it is")
    func plainDevice() throws {
        let machine = try machine()
        let endpoint = try #require(machine.endpoint(named: "ethernet@40020000"))
        #expect(endpoint.smmuIndex == nil)
        #expect(machine.endpoint(named: "/ethernet@40020000")?.name == endpoint.name)
        let port = machine.makePort(for: RequesterIdentity(smmuIndex: nil, streamID: StreamID(0)))
        try [UInt8]("plain".utf8).withUnsafeBytes { bytes in
            try port.write(bytes, at: IOVirtualAddress(0x8020_0000), .plain)
        }
        #expect(try machine.bus.read(5, at: PhysicalAddress(0x8020_0000)) == [UInt8]("plain".utf8))
    }

    @Test("SMMU_IDR1.SIDSIZE holds every StreamID that iommus and iommu-map give out")
    func streamIDSize() throws {
        // 0x10000 + 0x1000 - 1 needs 17 bits.
        #expect(try machine().smmus[0].model.identification.idr1.sidsize == 17)
    }
}
