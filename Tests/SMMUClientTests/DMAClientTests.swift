// The DMA clients, in Swift and in Python, against a small daemon of our own.

import CLinux
import ControlProtocol
import Glibc
import SMMUClient
import Testing

/// A client that is connected to a fake daemon of its own.
private func connectedClient() throws -> DMAClient {
    let (clientEnd, serverEnd) = try connectedPair()
    onThread {
        var daemon = FakeDMADaemon(socket: serverEnd)
        daemon.run()
    }
    let client = try DMAClient(adopting: clientEnd)
    client.timeoutMilliseconds = 60_000
    return client
}

@Suite("DMA client", .timeLimit(.minutes(20)))
struct DMAClientTests {
    @Test("HELLO tells the client its limits")
    func helloTellsTheLimits() throws {
        #expect(try connectedClient().limits == DMALimits(inlineByteCountMax: 65536))
    }

    @Test("What is written inline is read back, by name and by StreamID")
    func inlineDataComesBack() throws {
        let client = try connectedClient()
        let endpoint = try client.open("dma@1000")
        #expect(endpoint.stream == 0x42 && endpoint.smmu == 0 && endpoint.substreamBits == 8)
        let written = try client.write([1, 2, 3, 4, 5], endpoint.requester, at: 0x10010)
        #expect(written.isComplete && written.bytesTransferred == 5)
        let direct = try client.read(.stream(smmu: 0, stream: 0x42), at: 0x1000f, count: 7)
        #expect(direct.transfer.isComplete && direct.bytes == [0, 1, 2, 3, 4, 5, 0])
    }

    @Test("A fault says where, why and how much came before")
    func faultsAreTold() throws {
        let client = try connectedClient()
        let endpoint = try client.open("dma@1000")
        let (transfer, bytes) = try client.read(endpoint.requester, at: 0x10ff8, count: 16)
        #expect(transfer.status == .fault && transfer.event == 0x10)
        #expect(transfer.address == 0x11000 && transfer.bytesTransferred == 8 && bytes.count == 8)
    }

    @Test("Data goes through memory that both share")
    func sharedBuffersWork() throws {
        let client = try connectedClient()
        let endpoint = try client.open("dma@1000")
        let mapping = try SharedMapping(byteCount: 8192)
        let buffer = try client.attach(mapping)
        mapping.bytes.storeBytes(of: 0x1122_3344, toByteOffset: 4096, as: UInt32.self)
        let written = try client.transfer(
            .write,
            endpoint.requester,
            at: 0x10000,
            count: 4,
            buffer: buffer,
            offset: 4096
        )
        #expect(written.isComplete)
        let read = try client.transfer(
            .read,
            endpoint.requester,
            at: 0x10000,
            count: 4,
            buffer: buffer,
            offset: 8
        )
        #expect(read.isComplete && mapping.bytes.load(fromByteOffset: 8, as: UInt32.self) == 0x1122_3344)
        try client.detach(buffer)
    }

    @Test("RAM comes as a file: a DMA write shows in its mapping")
    func memoryComesAsAFile() throws {
        let client = try connectedClient()
        let regions = try client.memoryRegions()
        #expect(regions == [DMAMemoryRegion(base: 0x8000_0000, length: 8192, fileOffset: 0, index: 0)])
        let mapping = try client.map(try #require(regions.first))
        let endpoint = try client.open("dma@1000")
        _ = try client.write([0xaa], endpoint.requester, at: 0x10000)
        #expect(mapping.bytes.count == 8192 && mapping.bytes[4096] == 0xaa)
    }

    @Test("What the daemon refuses is an error with its sentence, and the connection goes on")
    func refusalsAreErrors() throws {
        let client = try connectedClient()
        #expect(throws: ClientError.rejected(status: 21, message: "there is no such device")) {
            try client.open("no-such-device")
        }
        #expect(throws: ClientError.self) { try client.read(.endpoint(1), at: 0, count: 1 << 63) }
        #expect(try client.echo([1, 2, 3]) == [1, 2, 3])
    }

    @Test("Pipelined requests are answered in their order")
    func pipelinesKeepTheirOrder() throws {
        let client = try connectedClient()
        let ids = (0..<50).map { place in
            let request = client.transferRequest(.read, .endpoint(1), 0x10000 + UInt64(place), 1, .init())
            client.enqueue(request)
            return request.id
        }
        try client.flush()
        let answers = try ids.map { _ in try client.nextAnswer().id }
        #expect(answers == ids)
    }

    @Test("A daemon that goes away is an error, not a wait")
    func endsAreErrors() throws {
        let (clientEnd, serverEnd) = try connectedPair()
        close(serverEnd)
        #expect(throws: ClientError.self) { try DMAClient(adopting: clientEnd) }
    }

    @Test("A path that nobody listens at is an error that names it")
    func deadPathsAreErrors() {
        #expect(
            throws: ClientError.cannotConnect(
                path: "/nonexistent/socket",
                reason: "No such file or directory"
            )
        ) {
            try DMAClient(path: "/nonexistent/socket")
        }
        #expect(throws: ClientError.self) { try ControlClient(path: String(repeating: "x", count: 200)) }
    }
}
