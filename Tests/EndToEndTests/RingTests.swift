// DMA by a ring in shared memory, by the client library, by the example in C, and by who breaks its rules.

import CLinux
import ControlProtocol
import Glibc
import SMMUClient
import Testing

/// Submits a request and waits for its answer.
private func call(_ ring: DMARingClient, _ request: DMARequest, _ payload: [UInt8] = [], answer: Int = 0)
    throws -> (response: DMAResponse, payload: [UInt8])
{
    var request = request
    request.byteCount = UInt32(DMAProtocol.headerByteCount + payload.count)
    ring.nextPayload()?.copyBytes(from: payload)
    try #require(ring.submit(request, answerByteCount: answer))
    ring.flush()
    try ring.wait(timeoutMilliseconds: Int(ChildProcess.patienceMilliseconds))
    var result: (DMAResponse, [UInt8])?
    try ring.reap { result = ($0, Array($1)) }
    return try #require(result)
}

@Suite(.timeLimit(.minutes(20)))
struct RingTests {
    private let daemon: Daemon
    private let dma: DMAClient
    /// With the SMMU not enabled it reaches RAM untranslated.
    private let requester = DMARequester.stream(smmu: 0, stream: TestBoard.stream)

    init() throws {
        daemon = try Daemon()
        dma = try daemon.dma()
    }

    private func transfer(_ opcode: DMAOpcode, at iova: UInt64, _ count: UInt64) -> DMARequest {
        dma.transferRequest(opcode, requester, iova, count, DMAAttributes())
    }

    // MARK: What it does

    @Test(arguments: [0, UInt64.max]) func dataGoesBothWays(pollNanoseconds: UInt64) throws {
        let ring = try DMARingClient(dma, slotCount: 4, dataByteCount: 5000, pollNanoseconds: pollNanoseconds)
        let bytes = (0..<5000).map { UInt8(truncatingIfNeeded: $0 &* 13) }
        let written = try call(ring, transfer(.write, at: TestBoard.memory + 3, 5000), bytes)
        #expect(written.response.status == .ok && written.response.transferred == 5000)
        #expect(try daemon.control().readMemory(5000, at: TestBoard.memory + 3) == bytes)
        let read = try call(ring, transfer(.read, at: TestBoard.memory + 3, 5000), answer: 5000)
        #expect(read.response.status == .ok && read.payload == bytes)
        #expect(try call(ring, DMARequest(.echo, id: 9), [1, 2, 3], answer: 3).payload == [1, 2, 3])
        try ring.close()
        #expect(try dma.echo([1]) == [1])
    }

    @Test func theIndicesGoRoundAndEveryRequestIsAnsweredOnce() throws {
        let ring = try DMARingClient(dma, slotCount: 64, dataByteCount: 8)
        let total: UInt64 = 70_000
        let (first, request) = (UInt64(1) << 40, transfer(.write, at: TestBoard.memory, 8))
        var (submitted, answered): (UInt64, UInt64) = (0, 0)
        while answered < total {
            while submitted < total, let space = ring.nextPayload() {
                var request = request
                (request.id, request.iova) = (first + submitted, TestBoard.memory + submitted % 4096 * 8)
                request.byteCount = 72
                space.storeBytes(of: submitted, as: UInt64.self)
                guard ring.submit(request) else { break }
                submitted += 1
            }
            ring.flush()
            try ring.wait(timeoutMilliseconds: Int(ChildProcess.patienceMilliseconds))
            try ring.reap { response, _ in
                if response.id != first + answered || response.status != .ok {
                    Issue.record("answer \(answered): id \(response.id - first), status \(response.status)")
                }
                answered += 1
            }
        }
        #expect(answered == total && ring.outstandingCount == 0)
        let memory = try daemon.control().readMemory(4096 * 8, at: TestBoard.memory)
        memory.withUnsafeBytes { bytes in
            for place in 0..<4096 as Range<UInt64> {
                let last = (total - 1 - place) / 4096 * 4096 + place
                #expect(bytes.load(fromByteOffset: Int(place) * 8, as: UInt64.self) == last)
            }
        }
    }

    @Test func endpointsOfARingAreItsOwn() throws {
        let ring = try DMARingClient(dma, slotCount: 2, dataByteCount: 64)
        let elsewhere = try dma.open(TestBoard.device)
        let unknown = DMARequest(.read, id: 1, endpoint: elsewhere.handle, iova: TestBoard.memory, count: 4)
        let refused = try call(ring, unknown, answer: 4)
        #expect(refused.response.status == .notFound)
        #expect(String(decoding: refused.payload, as: UTF8.self).contains("is not open"))
        let opened = try call(ring, DMARequest(.open, id: 2), Array(TestBoard.device.utf8)).response
        #expect(opened.status == .ok && opened.value0 == UInt64(TestBoard.stream))
        let read = DMARequest(.read, id: 3, endpoint: opened.handle, iova: TestBoard.memory, count: 4)
        #expect(try call(ring, read, answer: 4).response.status == .ok)
        #expect(try call(ring, DMARequest(.close, id: 4, endpoint: opened.handle)).response.status == .ok)
        #expect(try call(ring, read, answer: 4).response.status == .notFound)
    }

    @Test func aFaultSaysWhereAndWhy() throws {
        let byHand = try SMMUByHand(daemon.control())
        _ = byHand
        let ring = try DMARingClient(dma, slotCount: 2, dataByteCount: 64)
        let beyond = SMMUByHand.iova + SMMUByHand.byteCount
        // The second one finds its requester chosen already.
        for _ in 0..<2 {
            let (response, payload) = try call(ring, transfer(.read, at: beyond - 8, 16), answer: 16)
            #expect(response.status == .fault && response.event == 0x10)
            #expect(response.address == beyond && response.transferred == 8)
            #expect(payload.count == 8)
        }
    }

    @Test func requestsThatMakeNoSenseCostOneAnswerEach() throws {
        let ring = try DMARingClient(dma, slotCount: 2, dataByteCount: 64)
        func status(_ request: DMARequest, answer: Int = 0) throws -> DMAStatus {
            try call(ring, request, answer: answer).response.status
        }
        var buffered = transfer(.read, at: TestBoard.memory, 4)
        buffered.flags.insert(.buffer)
        var fetch = transfer(.write, at: TestBoard.memory, 0)
        fetch.flags.insert(.instruction)
        #expect(try status(buffered, answer: 4) == .parameter)
        #expect(try status(fetch) == .parameter)
        #expect(try status(transfer(.read, at: TestBoard.memory, 1 << 63)) == .range)
        #expect(try status(transfer(.read, at: TestBoard.memory, 193)) == .range)
        #expect(try status(transfer(.write, at: TestBoard.memory, 8)) == .parameter)
        #expect(try status(transfer(.read, at: .max, 2), answer: 2) == .range)
        for opcode: DMAOpcode in [.hello, .attachBuffer, .ramFile, .ringOpen, .ringClose] {
            #expect(try status(DMARequest(opcode, id: 1)) == .unsupported)
        }
        #expect(try status(DMARequest(DMAOpcode(rawValue: 77), id: 1)) == .unsupported)
        #expect(try status(transfer(.read, at: TestBoard.memory, 4), answer: 4) == .ok)
        try ring.close()
    }

    @Test func manyRingsServeSideBySideAndThereAreNoMoreThanSixteen() throws {
        let path = daemon.dmaPath
        let errors = onThreads(4) { index in
            let client = try DMAClient(path: path)
            let requester = DMARequester.stream(smmu: 0, stream: UInt32(index))
            let ring = try DMARingClient(client, slotCount: 1, dataByteCount: 4096)
            let address = TestBoard.memory + UInt64(index) << 16
            for round in 0..<50 {
                let bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: index &* 50 &+ round), count: 4096)
                var write = client.transferRequest(.write, requester, address, 4096, DMAAttributes())
                write.byteCount = 64 + 4096
                let read = client.transferRequest(.read, requester, address, 4096, DMAAttributes())
                guard try call(ring, write, bytes).response.status == .ok,
                    try call(ring, read, answer: 4096).payload == bytes
                else { throw TestFailure("ring \(index), round \(round)") }
            }
        }
        #expect(errors.isEmpty, "\(errors)")
        let rings = try (0..<16).map { _ in try DMARingClient(dma, slotCount: 1, dataByteCount: 0) }
        #expect(throws: ClientError.self) { try DMARingClient(dma, slotCount: 1, dataByteCount: 0) }
        try rings[7].close()
        _ = try DMARingClient(dma, slotCount: 1, dataByteCount: 0)
    }

    @Test(arguments: [[], ["--poll"]]) func theExampleInCReadsWhatItWrote(options: [String]) throws {
        let outcome = try ChildProcess.run(
            Paths.programs + "/smmud-dma-ring-example",
            [daemon.dmaPath, "dma@a000000", "0x80001000", "--count", "2000", "--batch", "16"] + options
        )
        #expect(outcome.exitCode == 0, "\(outcome.errors)")
        #expect(outcome.output.hasPrefix("2000 reads of 64 bytes, 16 outstanding: "))
        let memory = try daemon.control().readMemory(64, at: TestBoard.memory + 0x1000)
        #expect(memory == (0..<64).map { UInt8(truncatingIfNeeded: $0 * 7 + 1) })
    }

    // MARK: The end of a ring

    @Test func nothingOfADeadClientStays() throws {
        func openFiles() throws -> Int {
            try ChildProcess.run("ls", ["/proc/\(daemon.process.processID)/fd"]).output
                .split(separator: "\n").count
        }
        // The first ring makes what all rings signal with.
        try DMARingClient(dma, slotCount: 1, dataByteCount: 0).close()
        let before = try openFiles()
        try leaveBehind()
        // A connection's end is seen when the daemon's thread has its turn.
        var left = 10_000
        while try openFiles() != before, left > 0 { left -= 1 }
        #expect(try openFiles() == before)
        #expect(try daemon.serves())
    }

    /// Connects, opens a ring that both sides poll, and goes in the middle of it.
    private func leaveBehind() throws {
        let client = try daemon.dma()
        let ring = try DMARingClient(client, slotCount: 8, dataByteCount: 64, pollNanoseconds: .max)
        for _ in 0..<8 { #expect(ring.submit(DMARequest(.echo, id: 1))) }
        ring.flush()
    }

    @Test(arguments: [0, UInt64.max]) func theDaemonStopsThoughARingIsOpen(pollNanoseconds: UInt64) throws {
        let ring = try DMARingClient(dma, slotCount: 8, dataByteCount: 64, pollNanoseconds: pollNanoseconds)
        #expect(try call(ring, DMARequest(.echo, id: 1), [5], answer: 1).payload == [5])
        #expect(try daemon.stop().exitCode == 0)
    }
}

/// A ring that is written word by word.
struct RawRing {
    let client: RawDMAClient
    let file: CInt
    let memory: UnsafeMutableRawBufferPointer
    let kick = smmud_eventfd()
    let call = smmud_eventfd()
    static let byteCount = 64 << 10
    static let size: UInt16 = 4
    let buffer: UInt32

    init(_ daemon: Daemon) throws {
        client = try RawDMAClient(daemon.dmaPath)
        file = memfd("ring", Self.byteCount)
        guard let base = mmap(nil, Self.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) else {
            throw TestFailure("mmap")
        }
        memory = UnsafeMutableRawBufferPointer(start: base, count: Self.byteCount)
        buffer = try client.call(DMARequest(.attachBuffer, id: 2), descriptors: [file]).handle
    }

    func open(_ size: UInt64 = UInt64(size), at offset: UInt64 = 0, descriptors: [CInt]? = nil) throws
        -> DMAResponse
    {
        try client.call(
            DMARequest(.ringOpen, id: 3, buffer: buffer, count: size, offset: offset),
            descriptors: descriptors ?? [kick, call]
        )
    }

    func descriptor(_ index: Int, _ offset: UInt64, _ byteCount: UInt32, _ flags: UInt16, next: UInt16 = 0) {
        memory.storeBytes(of: offset, toByteOffset: index * 16, as: UInt64.self)
        memory.storeBytes(of: byteCount, toByteOffset: index * 16 + 8, as: UInt32.self)
        memory.storeBytes(of: flags, toByteOffset: index * 16 + 12, as: UInt16.self)
        memory.storeBytes(of: next, toByteOffset: index * 16 + 14, as: UInt16.self)
    }

    /// Makes one chain available, or what is to be believed to be as many.
    func offer(_ head: UInt16, index: UInt16 = 1) {
        let available = Int(Self.size) * 16
        memory.storeBytes(of: head, toByteOffset: available + 4, as: UInt16.self)
        memory.baseAddress.map { smmud_store_u16($0 + available + 2, index) }
        smmud_signal_eventfd(kick)
    }

    /// Waits to be signalled.
    func wait() throws {
        var entry = pollfd(fd: call, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, Int32(ChildProcess.patienceMilliseconds)) == 1 else {
            throw TestFailure("no signal")
        }
    }

    /// The used ring's flags and index.
    var used: (flags: UInt16, index: UInt16) {
        // Descriptors, the available ring, and up to the next line.
        let place = (Int(Self.size) * 16 + 4 + Int(Self.size) * 2 + 2 + 63) & ~63
        return (
            memory.load(fromByteOffset: place, as: UInt16.self),
            memory.load(fromByteOffset: place + 2, as: UInt16.self)
        )
    }

    func close() {
        munmap(memory.baseAddress, memory.count)
        for descriptor in [file, kick, call] { _ = Glibc.close(descriptor) }
    }
}

@Suite(.timeLimit(.minutes(20)))
struct BrokenRingTests {
    private let daemon: Daemon

    init() throws { daemon = try Daemon() }

    @Test func theAnswerSaysWhereThePartsAre() throws {
        let ring = try RawRing(daemon)
        defer { ring.close() }
        let answer = try ring.open(256, at: 4096)
        // VIRTIO's split virtqueue: 16 bytes, 2 bytes and 8 bytes an entry; 4 before and 2 after each ring.
        #expect(answer.value0 == 4096 + 256 * 16)
        #expect(answer.value1 == (4096 + 256 * 16 + 4 + 512 + 2 + 63) / 64 * 64)
        #expect(answer.value2 == answer.value1 + 4 + 256 * 8 + 2)
    }

    @Test func aRingThatCannotBeIsRefused() throws {
        let ring = try RawRing(daemon)
        defer { ring.close() }
        #expect(try ring.open(3).status == .parameter)
        #expect(try ring.open(1).status == .parameter)
        #expect(try ring.open(1 << 40).status == .parameter)
        #expect(try ring.open(4, at: 8).status == .parameter)
        #expect(try ring.open(4, at: 1 << 63).status == .range)
        #expect(try ring.open(32768).status == .range)
        #expect(try ring.open(descriptors: []).status == .noDescriptor)
        #expect(try ring.open(descriptors: [ring.kick]).status == .noDescriptor)
        #expect(try ring.open(descriptors: [ring.kick, ring.file]).status == .parameter)
        let elsewhere = DMARequest(.ringOpen, id: 3, buffer: 9, count: 4)
        #expect(try ring.client.call(elsewhere, descriptors: [ring.kick, ring.call]).status == .notFound)
        #expect(try ring.client.call(DMARequest(.ringClose, id: 3, endpoint: 1)).status == .notFound)
        #expect(try ring.open().status == .ok)
    }

    /// What a client can write into a ring that means nothing.
    enum Mistake: CaseIterable {
        case indexTooFar, noSuchDescriptor, noSuchNext, loop, outsideOfBuffer, offsetWraps, readAfterWrite
        case noHeader, noRoomForAnswer, headerCutInTwo

        func write(to ring: borrowing RawRing) -> (head: UInt16, index: UInt16) {
            ring.descriptor(0, 4096, 64, 1, next: 1)
            ring.descriptor(1, 8192, 64, 2)
            switch self {
            case .indexTooFar: return (0, 5)
            case .noSuchDescriptor: return (4, 1)
            case .noSuchNext: ring.descriptor(0, 4096, 64, 1, next: 0xFFFF)
            case .loop: ring.descriptor(1, 8192, 64, 3, next: 1)
            case .outsideOfBuffer: ring.descriptor(1, UInt64(RawRing.byteCount) - 63, 64, 2)
            case .offsetWraps: ring.descriptor(1, .max - 8, 64, 2)
            case .readAfterWrite:
                ring.descriptor(1, 8192, 64, 3, next: 2)
                ring.descriptor(2, 4096, 64, 0)
            case .noHeader: ring.descriptor(0, 8192, 64, 2)
            case .noRoomForAnswer: ring.descriptor(0, 4096, 64, 0)
            case .headerCutInTwo:
                ring.descriptor(0, 4096, 32, 1, next: 2)
                ring.descriptor(2, 4128, 32, 1, next: 1)
            }
            return (0, 1)
        }
    }

    @Test(arguments: Mistake.allCases) func aRingThatMakesNoSenseIsServedNoFurther(mistake: Mistake) throws {
        let ring = try RawRing(daemon)
        defer { ring.close() }
        let opened = try ring.open()
        try #require(opened.status == .ok)
        let (head, index) = mistake.write(to: ring)
        ring.offer(head, index: index)
        try ring.wait()
        #expect(ring.used.flags == 1 << 15)
        #expect(ring.used.index == 0)
        let closed = try ring.client.call(DMARequest(.ringClose, id: 4, endpoint: opened.handle))
        #expect(closed.status == .failed)
        #expect(closed.payloadByteCount > 20)
        #expect(try ring.client.call(DMARequest(.echo, id: 5)).status == .ok)
        #expect(try daemon.serves())
    }

    @Test func aMessageWhoseLengthIsNotItsDescriptorsIsRefused() throws {
        let ring = try RawRing(daemon)
        defer { ring.close() }
        try #require(try ring.open().status == .ok)
        ring.descriptor(0, 4096, 64, 1, next: 1)
        ring.descriptor(1, 8192, 256, 2)
        var request = DMARequest(.echo, id: 6)
        request.byteCount = .max
        request.write(to: UnsafeMutableRawBufferPointer(rebasing: ring.memory[4096..<4160]))
        ring.offer(0)
        try ring.wait()
        #expect(ring.used.index == 1)
        let answer = DMAResponse(header: UnsafeRawBufferPointer(rebasing: ring.memory[8192..<8448]))
        #expect(answer.status == .parameter && answer.id == 6)
    }

    @Test func dataMayBeInManyPieces() throws {
        let ring = try RawRing(daemon)
        defer { ring.close() }
        try #require(try ring.open().status == .ok)
        let text = Array("in three pieces".utf8)
        try daemon.control().writeMemory(text, at: TestBoard.memory)
        ring.descriptor(0, 4096, 64, 1, next: 1)
        ring.descriptor(1, 8192, 66, 3, next: 2)
        ring.descriptor(2, 12288, 0, 3, next: 3)
        ring.descriptor(3, 16384, 100, 2)
        DMARequest(
            .read,
            id: 7,
            flags: .direct,
            stream: TestBoard.stream,
            iova: TestBoard.memory,
            count: UInt64(text.count)
        ).write(to: UnsafeMutableRawBufferPointer(rebasing: ring.memory[4096..<4160]))
        ring.offer(0)
        try ring.wait()
        #expect(Array(ring.memory[8256..<8258]) + Array(ring.memory[16384..<16397]) == text)
    }

    @Test func aRingWhoseFileIsTruncatedEndsItAndNothingElse() throws {
        let ring = try RawRing(daemon)
        let opened = try ring.open()
        try #require(opened.status == .ok)
        // Ours goes first: it would be lost as well.
        munmap(ring.memory.baseAddress, ring.memory.count)
        ftruncate(ring.file, 0)
        smmud_signal_eventfd(ring.kick)
        try ring.wait()
        let closed = try ring.client.call(DMARequest(.ringClose, id: 4, endpoint: opened.handle))
        #expect(closed.status == .failed)
        #expect(try daemon.serves())
        for descriptor in [ring.file, ring.kick, ring.call] { _ = Glibc.close(descriptor) }
    }
}
