// The DMA socket: the layout byte for byte, and that no bytes bring the decoders down.

import ControlProtocol
import SeededRandomness
import Testing

/// The table of requests in docs/dma-protocol.md, typed out by hand: a READ of 4096 bytes at 0x1122_3344_5566_7788
/// on endpoint 0x0a0b0c0d into buffer 7 at 0x2000, SubstreamID 0x12345, privileged.
private let readBytes: [UInt8] = [
    0x40, 0, 0, 0,  // length: 64
    0x05, 0x00,  // opcode: READ
    0x0b, 0x00,  // flags: SUBSTREAM | PRIVILEGED | BUFFER
    0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,  // id
    0x0d, 0x0c, 0x0b, 0x0a,  // endpoint
    0x00, 0x00, 0x00, 0x00,  // stream
    0x45, 0x23, 0x01, 0x00,  // substream
    0x07, 0x00, 0x00, 0x00,  // buffer
    0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,  // iova
    0x00, 0x10, 0, 0, 0, 0, 0, 0,  // count
    0x00, 0x20, 0, 0, 0, 0, 0, 0,  // offset
    0, 0, 0, 0, 0, 0, 0, 0,  // reserved
]

private let readRequest = DMARequest(
    .read,
    id: 0x0123_4567_89ab_cdef,
    flags: [.substream, .privileged, .buffer],
    endpoint: 0x0a0b_0c0d,
    substream: 0x12345,
    buffer: 7,
    iova: 0x1122_3344_5566_7788,
    count: 0x1000,
    offset: 0x2000
)

/// HELLO as a client in any language sends it.
private let helloBytes: [UInt8] =
    [0x40, 0, 0, 0, 0x01, 0, 0, 0] + [1, 0, 0, 0, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 16)
    + Array("SMMUDDMA".utf8) + [1, 0, 0, 0, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 16)

/// A fault: 16 of 64 bytes read, F_TRANSLATION (0x10) at 0x1010, as docs/dma-protocol.md lays it out.
private let faultBytes: [UInt8] = [
    0x50, 0, 0, 0,  // length: 64 + 16
    0x05, 0x80,  // opcode: READ, answer
    0x01, 0x00,  // status: fault
    0x2a, 0, 0, 0, 0, 0, 0, 0,  // id
    0x10, 0, 0, 0, 0, 0, 0, 0,  // transferred
    0x10, 0x10, 0, 0, 0, 0, 0, 0,  // address
    0x10, 0, 0, 0,  // event
    0, 0, 0, 0,  // handle
    1, 0, 0, 0, 0, 0, 0, 0,  // value 0
    2, 0, 0, 0, 0, 0, 0, 0,  // value 1
    3, 0, 0, 0, 0, 0, 0, 0x80,  // value 2
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
]

/// A decoder that has had its HELLO.
private func greetedDecoder(limits: DMALimits = DMALimits()) -> DMARequestDecoder {
    var decoder = DMARequestDecoder(limits: limits)
    _ = helloBytes.withUnsafeBytes { decoder.next(in: $0) }
    return decoder
}

/// The first step for a request on a greeted connection.
private func firstStep(_ request: DMARequest, payload: [UInt8] = []) -> DMARequestDecoder.Step {
    var decoder = greetedDecoder()
    return DMARequestEncoder.message(request, payload: payload).withUnsafeBytes { decoder.next(in: $0) }
}

private func rejectedStatus(_ step: DMARequestDecoder.Step) -> DMAStatus? {
    if case .rejected(_, let rejection) = step { return rejection.status }
    return nil
}

@Suite("DMA socket, layout")
struct DMALayoutTests {
    @Test("A request's header has the bytes of the table in the documentation")
    func requestHeaderHasTheDocumentedBytes() {
        #expect(DMARequestEncoder.message(readRequest) == readBytes)
        readBytes.withUnsafeBytes { #expect(DMARequest(header: $0) == readRequest) }
    }

    @Test("HELLO has the bytes of the table in the documentation")
    func helloHasTheDocumentedBytes() {
        #expect(DMARequestEncoder.message(.hello(id: 1)) == helloBytes)
    }

    @Test("An answer's header has the bytes of the table in the documentation")
    func answerHeaderHasTheDocumentedBytes() {
        let answer = DMAResponse(
            to: DMARequest(.read, id: 42),
            .fault,
            transferred: 16,
            address: 0x1010,
            event: 0x10,
            value0: 1,
            value1: 2,
            value2: 0x8000_0000_0000_0003
        )
        #expect(DMAResponseEncoder.message(answer, payload: Array(0..<16)) == faultBytes)
        faultBytes.withUnsafeBytes { bytes in
            guard case .response(let decoded) = DMAResponseDecoder().next(in: bytes) else {
                Issue.record("no answer")
                return
            }
            #expect(decoded.status == .fault && decoded.event == 0x10 && decoded.address == 0x1010)
            #expect(decoded.opcode == .read && decoded.id == 42 && decoded.transferred == 16)
            #expect(Array(decoded.payload(in: bytes)) == Array(0..<16))
        }
    }

    @Test("HELLO's answer states the limits where the documentation says")
    func helloAnswerStatesTheLimits() {
        let limits = DMALimits(
            inlineByteCountMax: 0x10_0000,
            requestsInFlightMax: 64,
            buffersMax: 5,
            endpointsMax: 9
        )
        let answer = DMAResponse.hello(to: .hello(id: 1), limits)
        let bytes = DMAResponseEncoder.message(answer)
        #expect(Array(bytes[24..<32]) == Array("SMMUDDMA".utf8))
        #expect(Array(bytes[36..<40]) == [1, 0, 0, 0])
        #expect(Array(bytes[40..<48]) == [0, 0, 0x10, 0, 0, 0, 0, 0])
        #expect(Array(bytes[48..<56]) == [64, 0, 0, 0, 0, 0, 0, 0])
        #expect(Array(bytes[56..<64]) == [5, 0, 0, 0, 9, 0, 0, 0])
        #expect(answer.limits == limits)
    }

    @Test("A region of RAM takes 32 bytes")
    func regionsHaveTheDocumentedBytes() {
        let region = DMAMemoryRegion(base: 0x8000_0000, length: 0x4000_0000, fileOffset: 0x1000, index: 2)
        let bytes: [UInt8] = [
            0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0,
            0, 0,
        ]
        #expect(DMAMemoryRegion.payload(of: [region]) == bytes)
        (bytes + bytes + [1, 2, 3]).withUnsafeBytes {
            #expect(DMAMemoryRegion.regions(in: $0) == [region, region])
        }
    }

    @Test("Opcodes, flags and statuses have the numbers of the documentation")
    func numbersAreAsDocumented() {
        let opcodes: [DMAOpcode] = [
            .hello, .echo, .open, .close, .read, .write, .attachBuffer, .detachBuffer, .ramInfo, .ramFile,
        ]
        #expect(opcodes.map(\.rawValue) == Array(1...10))
        let flags: [DMAFlags] = [.substream, .privileged, .instruction, .buffer, .direct, .stream]
        #expect(flags.map(\.rawValue) == [1, 2, 4, 8, 16, 32])
        let statuses: [DMAStatus] = [
            .ok, .fault, .aborted, .busError, .malformed, .handshake, .unsupported, .parameter, .range,
            .notFound,
            .noDescriptor, .limit, .failed,
        ]
        #expect(statuses.map(\.rawValue) == [0, 1, 2, 3, 16, 17, 18, 19, 20, 21, 22, 23, 24])
    }
}

@Suite("DMA socket, decoder")
struct DMADecoderTests {
    @Test("A message that is cut anywhere is asked for until it is whole")
    func cutMessagesAreIncomplete() {
        let message = DMARequestEncoder.message(
            DMARequest(.write, id: 1, iova: 0x1000, count: 9),
            payload: Array(1...9)
        )
        var decoder = greetedDecoder()
        message.withUnsafeBytes { bytes in
            for count in 0..<message.count {
                let step = decoder.next(in: UnsafeRawBufferPointer(rebasing: bytes[..<count]))
                guard case .needs(let needed) = step else {
                    Issue.record("\(step) after \(count) bytes")
                    return
                }
                #expect(needed > count && needed <= message.count)
            }
            guard case .request(let request) = decoder.next(in: bytes) else {
                Issue.record("the whole message is no request")
                return
            }
            #expect(Array(request.payload(in: bytes)) == Array(1...9))
        }
    }

    @Test("A length of 2^63 is rejected and the connection goes on", arguments: [DMAOpcode.read, .write])
    func hugeLengthsAreRejected(opcode: DMAOpcode) {
        let inline = firstStep(DMARequest(opcode, id: 1, iova: 0x1000, count: 1 << 63))
        #expect(rejectedStatus(inline) == .range)
        let wrapping = firstStep(
            DMARequest(opcode, id: 1, flags: .buffer, iova: 1 << 63, count: (1 << 63) + 1)
        )
        #expect(rejectedStatus(wrapping) == .range)
        let offset = firstStep(DMARequest(opcode, id: 1, flags: .buffer, count: 1 << 63, offset: 1 << 63))
        #expect(rejectedStatus(offset) == .range)
        // In a buffer and inside the address space it is the daemon's to judge: only it knows the buffer.
        let shared = firstStep(DMARequest(opcode, id: 1, flags: .buffer, count: 1 << 63))
        #expect(rejectedStatus(shared) == nil)
    }

    @Test("A transfer may end at the last byte of the address space")
    func transfersReachTheLastByte() {
        let request = DMARequest(.read, id: 1, iova: UInt64.max - 7, count: 8)
        #expect(firstStep(request) == .request(request))
    }

    @Test("What a header says that makes no sense is rejected with a status that says so")
    func senselessHeadersAreRejected() {
        #expect(rejectedStatus(firstStep(DMARequest(DMAOpcode(rawValue: 0), id: 1))) == .unsupported)
        #expect(rejectedStatus(firstStep(DMARequest(DMAOpcode(rawValue: 17), id: 1))) == .unsupported)
        #expect(
            rejectedStatus(firstStep(DMARequest(.read, id: 1, flags: DMAFlags(rawValue: 64)))) == .parameter
        )
        #expect(rejectedStatus(firstStep(DMARequest(.write, id: 1, count: 4), payload: [1])) == .parameter)
        #expect(rejectedStatus(firstStep(DMARequest(.read, id: 1, count: 1), payload: [1])) == .parameter)
        #expect(rejectedStatus(firstStep(DMARequest(.ramInfo, id: 1), payload: [1])) == .parameter)
        #expect(rejectedStatus(firstStep(DMARequest(.open, id: 1))) == .parameter)
        #expect(
            rejectedStatus(firstStep(DMARequest(.read, id: 1, flags: .substream, substream: 1 << 20)))
                == .parameter
        )
        var reserved = DMARequest(.read, id: 1)
        reserved.reserved = 1
        #expect(rejectedStatus(firstStep(reserved)) == .parameter)
    }

    @Test(
        "A length that no message can have breaks the connection as soon as it is seen",
        arguments: [0, 63, 1 << 30]
    )
    func impossibleLengthsBreak(length: UInt32) {
        var decoder = greetedDecoder()
        let step = withUnsafeBytes(of: length.littleEndian) { decoder.next(in: $0) }
        guard case .broken(let request, let rejection) = step else {
            Issue.record("\(step)")
            return
        }
        #expect(rejection.status == .malformed && rejection.status.endsConnection && request.id == 0)
    }

    @Test("A connection that does not open with HELLO of this version is broken")
    func connectionsOpenWithHello() {
        var wrongMagic = DMARequest.hello(id: 1)
        wrongMagic.iova = 0
        var wrongVersion = DMARequest.hello(id: 1)
        wrongVersion.count = 2
        for request in [readRequest, wrongMagic, wrongVersion] {
            var decoder = DMARequestDecoder()
            let step = DMARequestEncoder.message(request).withUnsafeBytes { decoder.next(in: $0) }
            guard case .broken(_, let rejection) = step else {
                Issue.record("\(step)")
                return
            }
            #expect(rejection.status == .handshake)
        }
    }

    @Test("Text of another protocol is told apart from a message")
    func foreignTextBreaks() {
        var decoder = DMARequestDecoder()
        let step = Array("GET / HTTP/1.1\r\n\r\n".utf8).withUnsafeBytes { decoder.next(in: $0) }
        guard case .broken = step else {
            Issue.record("\(step)")
            return
        }
    }

    @Test("A rejection's answer carries its sentence")
    func rejectionsAreAnswered() {
        let bytes = DMARejection(.range, "too long").answer(to: readRequest)
        bytes.withUnsafeBytes { bytes in
            guard case .response(let answer) = DMAResponseDecoder().next(in: bytes) else {
                Issue.record("no answer")
                return
            }
            #expect(answer.status == .range && answer.id == readRequest.id && !answer.status.isOutcome)
            #expect(String(decoding: answer.payload(in: bytes), as: UTF8.self) == "too long")
        }
    }

    @Test("No bytes trap either decoder", arguments: [1, 2, 3, 0x5eed] as [UInt64])
    func noBytesTrap(seed: UInt64) {
        var random = SplitMix(seed: seed)
        for _ in 0..<20_000 {
            // Mostly right messages with a few bytes replaced: random bytes alone never get past the length.
            var bytes = Bool.random(using: &random) ? readBytes : helloBytes
            bytes[4] = UInt8.random(in: 0...12, using: &random)
            bytes.append(contentsOf: [UInt8](repeating: 0x5a, count: Int.random(in: 0...16, using: &random)))
            bytes[0] = UInt8(truncatingIfNeeded: bytes.count)
            for _ in 0..<Int.random(in: 0...6, using: &random) {
                bytes[Int.random(in: bytes.indices, using: &random)] = UInt8.random(
                    in: .min ... .max,
                    using: &random
                )
            }
            bytes.removeLast(Int.random(in: 0...bytes.count, using: &random) & 7)
            var decoder = greetedDecoder(limits: DMALimits(inlineByteCountMax: 4096))
            bytes.withUnsafeBytes { bytes in
                _ = DMAResponseDecoder().next(in: bytes)
                switch decoder.next(in: bytes) {
                case .needs(let count): #expect(count > bytes.count)
                case .request(let request), .rejected(let request, _):
                    #expect(request.byteCount <= bytes.count)
                    #expect(request.payload(in: bytes).count == request.payloadByteCount)
                case .broken: break
                }
            }
        }
    }
}

@Suite("Stream buffer")
struct StreamBufferTests {
    @Test("Bytes come out as they went in, however they are cut", arguments: [1, 7, 0xbee] as [UInt64])
    func bytesKeepTheirOrder(seed: UInt64) {
        var random = SplitMix(seed: seed)
        var buffer = StreamBuffer(capacity: 50)
        var written: UInt8 = 0
        var read: UInt8 = 0
        for _ in 0..<5_000 {
            if Bool.random(using: &random), buffer.readable.count < 50 {
                let space = buffer.freeSpace()
                let count = Int.random(in: 1...space.count, using: &random)
                for place in 0..<count {
                    space[place] = written
                    written &+= 1
                }
                buffer.filled(count)
            } else if Bool.random(using: &random) {
                buffer.makeRoom(for: Int.random(in: 0...50, using: &random))
            } else {
                let count = Int.random(in: 0...buffer.readable.count, using: &random)
                for byte in buffer.readable.prefix(count) {
                    #expect(byte == read)
                    read &+= 1
                }
                buffer.consume(count)
            }
        }
    }

    @Test("Room for a message larger than the buffer is made, and keeps what is there")
    func roomIsMade() {
        var buffer = StreamBuffer(capacity: 8)
        buffer.freeSpace().copyBytes(from: [1, 2, 3, 4])
        buffer.filled(4)
        buffer.consume(1)
        buffer.makeRoom(for: 100)
        #expect(Array(buffer.readable) == [2, 3, 4])
        #expect(buffer.freeSpace().count >= 97)
    }
}
