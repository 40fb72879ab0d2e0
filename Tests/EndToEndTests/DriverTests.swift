// The daemon's own driver, as clients of both sockets use it, and the example client in Python.

import ControlProtocol
import SMMUClient
import Testing

@Suite(.timeLimit(.minutes(20)))
struct DriverTests {
    private let daemon: Daemon
    private let control: ControlClient

    init() throws {
        daemon = try Daemon(arguments: [])
        control = try daemon.control()
    }

    private func map(_ data: [UInt8], permissions: Permissions) throws -> MappingInfo {
        let memory = try control.call(Methods.MemoryAllocate.self, .init(length: Size(UInt64(data.count))))
        try control.writeMemory(data, at: memory.address.value)
        return try control.call(
            Methods.IOMMUMap.self,
            .init(
                device: TestBoard.device,
                address: memory.address,
                length: Size(UInt64(data.count)),
                permissions: permissions
            )
        )
    }

    @Test func theDriverHasTheSMMUUp() throws {
        let board = try control.call(Methods.MachineDescribe.self, Nothing())
        #expect(board.smmus.first?.driver == .running)
        #expect(board.smmus.first?.driverMessage == nil)
        #expect(board.endpoints.first?.domain == .dma)
        // SMMU_CR0ACK.SMMUEN
        #expect(try control.load(32, at: TestBoard.registers + 0x24) & 1 == 1)
    }

    @Test func whatIsMappedIsReachedAndAfterUnmapFaults() throws {
        let data = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 3) }
        let mapping = try map(data, permissions: Permissions(read: true, write: false))
        let dma = try daemon.dma()
        let endpoint = try dma.open(TestBoard.device)
        let iova = mapping.iova.value
        #expect(try dma.read(endpoint.requester, at: iova, count: 8192).bytes == data)
        // F_PERMISSION: it is mapped for reading.
        #expect(try dma.write([1], endpoint.requester, at: iova).event == 0x13)
        _ = try control.call(Methods.IOMMUUnmap.self, .init(device: TestBoard.device, iova: mapping.iova))
        let transfer = try dma.read(endpoint.requester, at: iova, count: 1).transfer
        #expect(transfer.status == .fault && transfer.event == 0x10)
        let events = try control.call(Methods.EventsList.self, .init()).events
        #expect(events.map(\.name) == ["F_PERMISSION", "F_TRANSLATION"])
    }

    @Test func theExampleClientReadsWritesAndSeesTheFault() throws {
        let mapping = try map(
            [UInt8](repeating: UInt8(ascii: "."), count: 4096),
            permissions: Permissions(read: true, write: true)
        )
        func run(_ arguments: String...) throws -> (exitCode: Int32, output: String, errors: String) {
            try ChildProcess.run(
                "python3",
                [Paths.package + "/examples/dma_client.py", "--socket", daemon.dmaPath] + arguments
            )
        }
        let iova = mapping.iova.description
        #expect(try run("write", TestBoard.device, iova, "hello").exitCode == 0)
        #expect(
            try run("write", "dma@a000000", Hex(mapping.iova.value + 5).description, " you", "--shared")
                .exitCode == 0
        )
        let inline = try run("read", "sid:0:0x42", iova, "10")
        #expect(inline.exitCode == 0 && inline.output == "hello you.")
        let shared = try run("read", TestBoard.device, iova, "10", "--shared")
        #expect(shared.exitCode == 0 && shared.output == "hello you.")
        let beyond = Hex(mapping.iova.value + 4090).description
        let fault = try run("read", TestBoard.device, beyond, "16")
        #expect(fault.exitCode == 3)
        #expect(fault.output == "......")
        #expect(
            fault.errors
                == "fault: event 0x10 at \(Hex(mapping.iova.value + 4096)) after 6 bytes\n"
        )
    }

    @Test func itStopsWhileMappingsAreUsed() throws {
        let mapping = try map(
            [UInt8](repeating: 0, count: 4096),
            permissions: Permissions(read: true, write: false)
        )
        let dma = try daemon.dma()
        let endpoint = try dma.open(TestBoard.device)
        #expect(try dma.read(endpoint.requester, at: mapping.iova.value, count: 4096).transfer.isComplete)
        let result = try daemon.stop()
        #expect(result.exitCode == 0)
        #expect(result.errors == "")
    }
}
