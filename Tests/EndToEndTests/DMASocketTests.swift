// The DMA socket as a client meets it: handles, shared memory, many requests, many clients.

import CLinux
import ControlProtocol
import Glibc
import SMMUClient
import Testing

@Suite(.timeLimit(.minutes(20)))
struct DMASocketTests {
    private let daemon: Daemon
    private let dma: DMAClient
    /// With the SMMU not enabled it reaches RAM untranslated.
    private let requester = DMARequester.stream(smmu: 0, stream: TestBoard.stream)

    init() throws {
        daemon = try Daemon()
        dma = try daemon.dma()
    }

    /// Expects the daemon to refuse what `body` asks for, and the connection to go on.
    private func expectRefusal(
        _ status: DMAStatus,
        _ body: () throws -> Void,
        sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        do {
            try body()
            Issue.record("it was not refused", sourceLocation: sourceLocation)
        } catch ClientError.rejected(let refused, let message) {
            #expect(refused == status.rawValue, "\(message)", sourceLocation: sourceLocation)
            #expect(!message.isEmpty, sourceLocation: sourceLocation)
        }
        #expect(try dma.echo([42]) == [42], sourceLocation: sourceLocation)
    }

    // MARK: The connection

    @Test func helloStatesTheLimitsAndEchoTheBytes() throws {
        #expect(dma.limits.inlineByteCountMax == 1 << 20)
        #expect(dma.limits.requestsInFlightMax > 0)
        #expect(try dma.echo() == [])
        let bytes = [UInt8](repeating: 0x5A, count: 1 << 20)
        #expect(try dma.echo(bytes) == bytes)
    }

    @Test func aClientThatEndsSendingStillGetsItsAnswers() throws {
        let socket = try RawSocket(daemon.dmaPath)
        socket.send(
            DMARequestEncoder.message(.hello(id: 1))
                + DMARequestEncoder.message(DMARequest(.echo, id: 2), payload: [7])
        )
        socket.endSending()
        let answers = try socket.receiveToEnd()
        #expect(answers.count == 64 + 65)
        #expect(answers.last == 7)
    }

    @Test func aThousandRequestsThatWereSentAtOnceAreAnsweredInOrder() throws {
        for index in 0..<1000 as Range<UInt64> {
            let request = dma.transferRequest(
                .write,
                requester,
                TestBoard.memory + index * 8,
                8,
                DMAAttributes()
            )
            dma.enqueue(request, payload: [UInt8](repeating: UInt8(truncatingIfNeeded: index), count: 8))
        }
        let first = dma.nextID() - 1000
        try dma.flush()
        for index in 0..<1000 as Range<UInt64> {
            let answer = try dma.nextAnswer()
            #expect(answer.id == first + index)
            #expect(answer.status == .ok && answer.transferred == 8)
        }
        let memory = try daemon.control().readMemory(8000, at: TestBoard.memory)
        #expect(memory == (0..<8000).map { UInt8(truncatingIfNeeded: $0 / 8) })
    }

    @Test func thirtyTwoClientsAtOnceEachReadWhatTheyWrote() throws {
        let path = daemon.dmaPath
        let errors = onThreads(32) { index in
            let client = try DMAClient(path: path)
            let requester = DMARequester.stream(smmu: 0, stream: UInt32(index))
            let address = TestBoard.memory + UInt64(index) << 16
            for round in 0..<50 {
                let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: index &* 50 &+ round), count: 4096)
                guard try client.write(bytes, requester, at: address).isComplete,
                    try client.read(requester, at: address, count: 4096).bytes == bytes
                else { throw TestFailure("client \(index), round \(round)") }
            }
        }
        #expect(errors.isEmpty, "\(errors)")
    }

    // MARK: Endpoints

    @Test func endpointsAreOpenedByNameAliasAndStreamID() throws {
        let named = try dma.open(TestBoard.device)
        let aliased = try dma.open("dma@a000000", stream: 0x43)
        let direct = try dma.open(smmu: 0, stream: 0x1234)
        #expect(named.stream == 0x42 && aliased.stream == 0x43 && direct.stream == 0x1234)
        #expect(Set([named.handle, aliased.handle, direct.handle]).count == 3)
        for endpoint in [named, aliased, direct] {
            #expect(endpoint.smmu == 0)
            #expect(try dma.write([1], endpoint.requester, at: TestBoard.memory).isComplete)
        }
    }

    @Test func whatIsNotThereIsNotOpened() throws {
        try expectRefusal(.notFound) { _ = try dma.open("nobody") }
        try expectRefusal(.notFound) { _ = try dma.open(TestBoard.device, stream: 0x99) }
        try expectRefusal(.notFound) { _ = try dma.open(smmu: 1, stream: 0) }
        try expectRefusal(.parameter) { _ = try dma.open("") }
        try expectRefusal(.notFound) { _ = try dma.read(.endpoint(77), at: 0, count: 1) }
        try expectRefusal(.notFound) { _ = try dma.read(.stream(smmu: .max, stream: 0), at: 0, count: 1) }
    }

    @Test func aHandleThatWasGivenBackIsGoodNoMore() throws {
        let endpoint = try dma.open(TestBoard.device)
        try dma.close(endpoint)
        try expectRefusal(.notFound) { _ = try dma.read(endpoint.requester, at: TestBoard.memory, count: 1) }
        try expectRefusal(.notFound) { try dma.close(endpoint) }
    }

    @Test func thereAreAsManyEndpointsAsTheLimitsSay() throws {
        for stream in 0..<dma.limits.endpointsMax { _ = try dma.open(smmu: 0, stream: stream) }
        try expectRefusal(.limit) { _ = try dma.open(smmu: 0, stream: 0) }
    }

    // MARK: Shared memory

    @Test func dataInASharedBufferGoesBothWays() throws {
        let mapping = try SharedMapping(byteCount: 3 << 20)
        let buffer = try dma.attach(mapping)
        for index in mapping.bytes.indices { mapping.bytes[index] = UInt8(truncatingIfNeeded: index &* 13) }
        let out = try dma.transfer(
            .write,
            requester,
            at: TestBoard.memory + 0x100,
            count: 2 << 20,
            buffer: buffer,
            offset: 5
        )
        #expect(out.status == .ok && out.bytesTransferred == 2 << 20)
        let expected = Array(mapping.bytes[5..<(5 + 2 << 20)])
        #expect(try daemon.control().readMemory(2 << 20, at: TestBoard.memory + 0x100) == expected)

        for index in mapping.bytes.indices { mapping.bytes[index] = 0 }
        let back = try dma.transfer(
            .read,
            requester,
            at: TestBoard.memory + 0x100,
            count: 2 << 20,
            buffer: buffer,
            offset: 1 << 20
        )
        #expect(back.isComplete)
        #expect(mapping.bytes[..<(1 << 20)].allSatisfy { $0 == 0 })
        #expect(Array(mapping.bytes[(1 << 20)...]) == expected)
        try dma.detach(buffer)
        try expectRefusal(.notFound) { try dma.detach(buffer) }
    }

    @Test func aFaultInASharedTransferSaysHowFarItCame() throws {
        let buffer = try dma.attach(try SharedMapping(byteCount: 16 << 20))
        // 9 MiB before the end of RAM: more than is moved in one piece.
        let end = TestBoard.memory + 0x1000_0000
        let transfer = try dma.transfer(
            .read,
            requester,
            at: end - 9 << 20,
            count: 16 << 20,
            buffer: buffer,
            offset: 0
        )
        #expect(transfer.status == .busError)
        #expect(transfer.address == end - 9 << 20 + transfer.bytesTransferred)
        #expect(transfer.bytesTransferred >= 8 << 20)
    }

    @Test func whatLeavesTheBufferIsRefused() throws {
        let buffer = try dma.attach(try SharedMapping(byteCount: 8192))
        func read(_ count: UInt64, _ offset: UInt64) throws {
            _ = try dma.transfer(
                .read,
                requester,
                at: TestBoard.memory,
                count: count,
                buffer: buffer,
                offset: offset
            )
        }
        try expectRefusal(.range) { try read(8193, 0) }
        try expectRefusal(.range) { try read(1, 8192) }
        try expectRefusal(.range) { try read(1 << 63, 0) }
        try expectRefusal(.range) { try read(2, .max) }
        try read(8192, 0)
    }

    @Test func aBufferWhoseFileIsTruncatedIsAnErrorAndNothingWorse() throws {
        let file = memfd("truncated", 1 << 20)
        defer { close(file) }
        let client = try RawDMAClient(daemon.dmaPath)
        let attached = try client.call(
            DMARequest(.attachBuffer, id: 2, count: 1 << 20),
            descriptors: [file]
        )
        #expect(attached.status == .ok && attached.value0 == 1 << 20)
        var read = DMARequest(
            .read,
            id: 3,
            flags: [.direct, .buffer],
            iova: TestBoard.memory,
            count: 1 << 20
        )
        read.buffer = attached.handle
        #expect(try client.call(read).status == .ok)
        ftruncate(file, 4096)
        #expect(try client.call(read).status == .failed)
        read.opcode = .write
        #expect(try client.call(read).status == .failed)
        #expect(try daemon.serves())
    }

    @Test func aBufferIsSharedToItsFilesEndWhereNoCountIsGiven() throws {
        let file = memfd("to the end", 20_000)
        defer { close(file) }
        let client = try RawDMAClient(daemon.dmaPath)
        let answer = try client.call(DMARequest(.attachBuffer, id: 2, offset: 4096), descriptors: [file])
        #expect(answer.status == .ok && answer.value0 == 20_000 - 4096)
    }

    @Test func aDescriptorThatIsNoMemoryIsRefused() throws {
        let client = try RawDMAClient(daemon.dmaPath)
        let attach = DMARequest(.attachBuffer, id: 2, count: 4096)
        #expect(try client.call(attach).status == .noDescriptor)
        #expect(try client.call(attach, descriptors: [client.descriptor]).status == .parameter)
        let short = memfd("short", 100)
        defer { close(short) }
        #expect(try client.call(attach, descriptors: [short]).status == .range)
        #expect(try client.call(DMARequest(.echo, id: 3)).status == .ok)
    }

    @Test func descriptorsThatNobodyAskedForAreClosed() throws {
        let client = try RawDMAClient(daemon.dmaPath)
        let file = memfd("stray", 4096)
        defer { close(file) }
        let before = try openFiles()
        for id in 0..<100 as Range<UInt64> {
            #expect(try client.call(DMARequest(.echo, id: id), descriptors: [file, file]).status == .ok)
        }
        #expect(try openFiles() == before)
        // The stray ones do not stand in for one that was not sent.
        #expect(try client.call(DMARequest(.attachBuffer, id: 1, count: 4096)).status == .noDescriptor)
    }

    @Test func ramIsLentByItsFile() throws {
        let regions = try dma.memoryRegions()
        try #require(regions.count == 1)
        #expect(regions[0].base == TestBoard.memory)
        #expect(regions[0].length == 0x1000_0000)
        let ram = try dma.map(regions[0])
        ram.bytes[0x4000] = 99
        #expect(try daemon.control().readMemory(1, at: TestBoard.memory + 0x4000) == [99])
        _ = try dma.write([77], requester, at: TestBoard.memory + 0x4001)
        #expect(ram.bytes[0x4001] == 77)
        try expectRefusal(.notFound) {
            _ = try dma.map(DMAMemoryRegion(base: 0, length: 0, fileOffset: 0, index: 1))
        }
    }

    private func openFiles() throws -> Int {
        try ChildProcess.run("ls", ["/proc/\(daemon.process.processID)/fd"]).output.split(separator: "\n")
            .count
    }
}
