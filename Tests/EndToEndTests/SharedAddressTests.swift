// Devices in a client's own address space, as clients of both sockets use them.

import CLinux
import ControlProtocol
import Glibc
import SMMUClient
import Testing

/// The small board with a device that has SubstreamIDs and can wait for a page.
private let board = TestBoard.source.replacing(
    "iommus = <&smmu 0x42>, <&smmu 0x43>;",
    with: "iommus = <&smmu 0x42>, <&smmu 0x43>; pasid-num-bits = <4>; dma-can-stall; dma-coherent;"
)

@Suite(.timeLimit(.minutes(20)))
struct SharedAddressTests {
    private let daemon: Daemon
    private let control: ControlClient
    private let dma: DMAClient
    private let endpoint: DMAEndpoint

    init() throws {
        daemon = try Daemon(board: board, arguments: ["--smmu", "full"])
        control = try daemon.control()
        dma = try daemon.dma()
        endpoint = try dma.open(TestBoard.device)
    }

    private func list() throws -> Methods.SVAList.Result { try control.call(Methods.SVAList.self, Nothing()) }

    private func address(_ mapping: SharedMapping) -> UInt64 {
        UInt64(UInt(bitPattern: mapping.bytes.baseAddress))
    }

    @Test func aDeviceSeesTheClientsBytesAtTheClientsAddresses() throws {
        let mapping = try SharedMapping(byteCount: 1 << 20)
        let start = address(mapping)
        try dma.mapProcess(mapping)
        let binding = try dma.bind(endpoint)
        let attributes = DMAAttributes(substream: binding.substream)
        #expect(try list().processes.map(\.residentPages.value) == [0])
        mapping.bytes[0x5003] = 0xAB
        let read = try dma.read(endpoint.requester, at: start + 0x5003, count: 1, attributes)
        #expect(read.transfer.status == .ok && read.bytes == [0xAB])
        // Three pages, the first of which is there.
        let bytes = (0..<0x2000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        #expect(try dma.write(bytes, endpoint.requester, at: start + 0x5800, attributes).isComplete)
        #expect(Array(mapping.bytes[0x5800..<0x7800]) == bytes)
        let listed = try list()
        let process = try #require(listed.processes.first)
        #expect(process.process == Int(binding.process))
        #expect(
            process.areas == [
                SVAAreaInfo(
                    address: Hex(start),
                    length: Size(UInt64(1 << 20)),
                    permissions: Permissions(read: true, write: true)
                )
            ]
        )
        #expect(process.residentPages.value == 3 && process.broughtIn.value == 3)
        #expect(process.refused.value == 0)
        #expect(listed.faults.first?.succeeded.value == 3)
        #expect(listed.bonds.map(\.device) == [TestBoard.device])
        #expect(listed.bonds.map(\.substream.value) == [UInt64(binding.substream)])
        // Without the SubstreamID these are IOVAs, and nothing is mapped there.
        #expect(try dma.read(endpoint.requester, at: start, count: 1).transfer.event == 0x10)
    }

    @Test func whatTheClientDoesNotShareIsRefused() throws {
        let mapping = try SharedMapping(byteCount: 0x4000)
        let start = address(mapping)
        try dma.mapProcess(mapping, protection: .read)
        let attributes = DMAAttributes(substream: try dma.bind(endpoint).substream)
        #expect(try dma.write([1], endpoint.requester, at: start, attributes).event == 0x10)
        #expect(try dma.read(endpoint.requester, at: start, count: 1, attributes).transfer.isComplete)
        #expect(try dma.write([1], endpoint.requester, at: start, attributes).event == 0x13)
        let beyond = try dma.read(endpoint.requester, at: start + 0x3FF0, count: 0x20, attributes)
        #expect(beyond.transfer.event == 0x10 && beyond.bytes.count == 0x10)
        #expect(beyond.transfer.address == start + 0x4000)
        #expect(try list().processes.map(\.refused.value) == [3])
        #expect(throws: ClientError.self) { try dma.mapProcess(mapping) }
        #expect(throws: ClientError.self) { try dma.mapProcess(mapping, at: 0x1234) }
        #expect(throws: ClientError.self) { try dma.mapProcess(mapping, at: 1 << 48) }
        #expect(throws: ClientError.self) { try dma.mapProcess(mapping, at: 0x10000, protection: [.write]) }
        #expect(try dma.echo([1]) == [1])
    }

    @Test func anUnmapTakesThePagesBeforeItIsAnswered() throws {
        let mapping = try SharedMapping(byteCount: 0x4000)
        let start = address(mapping)
        try dma.mapProcess(mapping)
        let attributes = DMAAttributes(substream: try dma.bind(endpoint).substream)
        let bytes = [UInt8](repeating: 1, count: 0x4000)
        #expect(try dma.write(bytes, endpoint.requester, at: start, attributes).isComplete)
        try dma.unmapProcess(at: start + 0x1000, count: 0x2000)
        #expect(
            try dma.read(endpoint.requester, at: start + 0x1000, count: 1, attributes).transfer.event == 0x10
        )
        #expect(try dma.read(endpoint.requester, at: start + 0x3000, count: 1, attributes).bytes == [1])
        // Other memory comes there.
        let other = try SharedMapping(byteCount: 0x2000)
        other.bytes[0] = 2
        try dma.mapProcess(other, at: start + 0x1000)
        #expect(try dma.read(endpoint.requester, at: start + 0x1000, count: 1, attributes).bytes == [2])
        try dma.unbind(endpoint)
        #expect(
            try !dma.read(endpoint.requester, at: start + 0x3000, count: 1, attributes).transfer.isComplete
        )
        #expect(throws: ClientError.self) { try dma.unbind(endpoint) }
    }

    @Test func aFileThatIsTruncatedIsRefusedAndStopsNobody() throws {
        let file = memfd("truncated", 0x4000)
        defer { close(file) }
        var request = DMARequest(.processMap, id: 2, stream: 3, iova: 0x10_0000, count: 0x4000)
        let socket = try RawDMAClient(daemon.dmaPath)
        #expect(try socket.call(request, descriptors: [file]).status == .ok)
        let process = try #require(try list().processes.last?.process)
        let bond = try control.call(Methods.SVABind.self, .init(process: process, device: TestBoard.device))
        let attributes = DMAAttributes(substream: UInt32(truncatingIfNeeded: bond.substream.value))
        #expect(try dma.read(endpoint.requester, at: 0x10_0000, count: 1, attributes).transfer.isComplete)
        #expect(ftruncate(file, 0x2000) == 0)
        // A page that was not there yet: its fault is refused. One that was not touched but is still there comes.
        #expect(try dma.read(endpoint.requester, at: 0x10_3000, count: 1, attributes).transfer.event == 0x10)
        #expect(try dma.read(endpoint.requester, at: 0x10_1000, count: 1, attributes).transfer.isComplete)
        // One that is mapped and goes: what has lost its file answers no more.
        #expect(ftruncate(file, 0) == 0)
        #expect(
            try dma.read(endpoint.requester, at: 0x10_0000, count: 1, attributes).transfer.status == .busError
        )
        request.opcode = .processUnmap
        #expect(try socket.call(request).status == .ok)
        #expect(try daemon.serves())
    }

    @Test func aClientThatGoesTakesItsAddressesAlong() throws {
        var other: DMAClient? = try daemon.dma()
        let mapping = try SharedMapping(byteCount: 0x4000)
        try other?.mapProcess(mapping)
        let theirs = try #require(try other?.open(TestBoard.device))
        let binding = try #require(try other?.bind(theirs))
        let attributes = DMAAttributes(substream: binding.substream)
        #expect(try dma.write([1], endpoint.requester, at: address(mapping), attributes).isComplete)
        // Requests of another client are under way while it goes.
        for offset in 0..<64 as Range<UInt64> {
            let request = dma.transferRequest(
                .read,
                endpoint.requester,
                address(mapping) + offset % 4 << 12,
                8,
                attributes
            )
            dma.enqueue(request)
        }
        try dma.flush()
        other = nil
        for _ in 0..<64 { #expect(try dma.nextAnswer().status.isOutcome) }
        var isGone = false
        for _ in 0..<10_000 where !isGone {
            isGone = try list().processes.isEmpty
            if !isGone { usleep(1000) }
        }
        #expect(isGone)
        #expect(try list().bonds.isEmpty)
        #expect(
            try !dma.read(endpoint.requester, at: address(mapping), count: 1, attributes).transfer.isComplete
        )
        #expect(try daemon.serves())
    }

    @Test func smmuctlListsBindsAndUnbinds() throws {
        let mapping = try SharedMapping(byteCount: 0x4000)
        try dma.mapProcess(mapping, at: 0x40_0000)
        func run(_ arguments: String...) throws -> (exitCode: Int32, output: String, errors: String) {
            try ChildProcess.run(Paths.programs + "/smmuctl", ["--socket", daemon.controlPath] + arguments)
        }
        let bound = try run("sva", "bind", "1", "dma@a000000")
        #expect(bound.output == "/dma@a000000 reaches process 1 with SubstreamID 0x1, ASID 0x2\n")
        let attributes = DMAAttributes(substream: 1)
        #expect(try dma.read(endpoint.requester, at: 0x40_1000, count: 1, attributes).transfer.isComplete)
        let listed = try run("sva")
        #expect(listed.exitCode == 0)
        #expect(listed.output.contains("process 1: 1 pages resident, 1 brought in, 0 spurious, 0 refused\n"))
        #expect(listed.output.contains("  /dma@a000000: SubstreamID 0x1, ASID 0x2\n"))
        #expect(try run("sva", "unbind", "1", "dma@a000000").exitCode == 0)
        #expect(try run("sva", "unbind", "1", "dma@a000000").exitCode == 1)
        let missing = try run("sva", "bind", "9", "dma@a000000")
        #expect(missing.exitCode == 1 && missing.errors.contains("no client has the address space 9"))
        #expect(try run("--json", "sva", "list").output.contains("\"residentPages\""))
    }

    @Test func theExampleInPythonHasTheDeviceWorkInItsMemory() throws {
        let result = try ChildProcess.run(
            "python3",
            [Paths.package + "/examples/sva_client.py", "--socket", daemon.dmaPath, "dma@a000000"]
        )
        #expect(result.exitCode == 0, "\(result.errors)")
        #expect(result.output == "A TEXT OF THIS PROGRAM\nafter the unmap: event 0x10\n")
    }

    @Test func aDeviceThatCannotWaitIsNotBound() throws {
        let daemon = try Daemon(arguments: ["--smmu", "full"])
        let dma = try daemon.dma()
        let endpoint = try dma.open(TestBoard.device)
        do {
            _ = try dma.bind(endpoint)
            Issue.record("it was bound")
        } catch ClientError.rejected(let status, let message) {
            #expect(status == DMAStatus.failed.rawValue && message.contains("cannot wait for a page"))
        }
        let plain = try Daemon()
        let other = try plain.dma()
        let theirs = try other.open(TestBoard.device)
        #expect(throws: ClientError.self) { _ = try other.bind(theirs) }
    }
}
