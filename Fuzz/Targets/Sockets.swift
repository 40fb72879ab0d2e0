// Fuzzes the decoders of both sockets, on the daemon's side and on the client's.

import ControlProtocol

/// The bytes in pieces, as a socket may deliver them.
private func pieces(of bytes: UnsafeRawBufferPointer, byteCount: Int) -> [UnsafeRawBufferPointer] {
    stride(from: 0, to: bytes.count, by: byteCount).map { start in
        UnsafeRawBufferPointer(rebasing: bytes[start..<min(start + byteCount, bytes.count)])
    }
}

// MARK: The DMA socket

func fuzzDMASocket(_ input: inout FuzzInput) {
    let shape = input.next()
    let bytes = input.rest
    let whole = requests(in: bytes, pieceByteCount: max(1, bytes.count))
    let pieced = requests(in: bytes, pieceByteCount: Int(shape & 0x3F) + 1)
    precondition(whole == pieced, "what comes out depends on how the bytes came in")
    answers(in: bytes)
}

/// What a daemon would make of one client's bytes.
private func requests(in bytes: UnsafeRawBufferPointer, pieceByteCount: Int) -> [DMARequestDecoder.Step] {
    var decoder = DMARequestDecoder(limits: DMALimits(inlineByteCountMax: 4096))
    var buffer = StreamBuffer(capacity: 128)
    var steps: [DMARequestDecoder.Step] = []
    for piece in pieces(of: bytes, byteCount: pieceByteCount) {
        var rest = piece
        while !rest.isEmpty {
            buffer.makeRoom(for: buffer.readable.count + 1)
            let space = buffer.freeSpace()
            let count = min(space.count, rest.count)
            precondition(count > 0, "no room for a byte")
            space.copyMemory(from: UnsafeRawBufferPointer(rebasing: rest[..<count]))
            buffer.filled(count)
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
            guard drain(&decoder, &buffer, &steps) else { return steps }
        }
    }
    return steps
}

/// - Returns: False where the connection ends.
private func drain(
    _ decoder: inout DMARequestDecoder,
    _ buffer: inout StreamBuffer,
    _ steps: inout [DMARequestDecoder.Step]
) -> Bool {
    while true {
        let step = decoder.next(in: buffer.readable)
        switch step {
        case .needs(let byteCount):
            precondition(byteCount > buffer.readable.count, "it wants bytes that are there")
            buffer.makeRoom(for: byteCount)
            return true
        case .request(let request):
            precondition(
                request.payload(in: buffer.readable).count == request.payloadByteCount,
                "a payload is short"
            )
            steps.append(step)
            buffer.consume(Int(request.byteCount))
        case .rejected(let request, let rejection):
            precondition(
                rejection.answer(to: request).count >= DMAProtocol.headerByteCount,
                "an answer is short"
            )
            steps.append(step)
            buffer.consume(Int(request.byteCount))
        case .broken(let request, let rejection):
            precondition(
                rejection.answer(to: request).count >= DMAProtocol.headerByteCount,
                "an answer is short"
            )
            steps.append(step)
            return false
        }
    }
}

/// What a client would make of a daemon's bytes.
private func answers(in bytes: UnsafeRawBufferPointer) {
    let decoder = DMAResponseDecoder(messageByteCountMax: 1 << 20)
    var rest = bytes
    while case .response(let response) = decoder.next(in: rest) {
        precondition(response.payload(in: rest).count == response.payloadByteCount, "a payload is short")
        rest = UnsafeRawBufferPointer(rebasing: rest[Int(response.byteCount)...])
    }
}

// MARK: The control socket

func fuzzControlSocket(_ input: inout FuzzInput) {
    let shape = input.next()
    let bytes = input.rest
    let whole = actions(in: bytes, pieceByteCount: max(1, bytes.count))
    let pieced = actions(in: bytes, pieceByteCount: Int(shape) + 1)
    precondition(whole == pieced, "what comes out depends on how the bytes came in")
    for case .handle(let request) in whole {
        guard let answer = everyMethod.answer(request, ()) else { continue }
        precondition(answer.last == UInt8(ascii: "\n"), "an answer is no line")
        precondition(
            answer.dropLast().allSatisfy { $0 != UInt8(ascii: "\n") },
            "an answer is more than a line"
        )
    }
    var client = ControlClientCodec(lineByteCountMax: 4096)
    _ = client.receive(bytes)
}

private func actions(in bytes: UnsafeRawBufferPointer, pieceByteCount: Int) -> [ControlServerCodec.Action] {
    var codec = ControlServerCodec(lineByteCountMax: 4096)
    return pieces(of: bytes, byteCount: pieceByteCount).flatMap { codec.receive($0) }
}

/// Every method, each answered with an error once its parameters have been read and looked at.
private let everyMethod: ControlDispatcher<Void> = {
    var dispatcher = ControlDispatcher<Void>()
    for method in Methods.all { add(method, to: &dispatcher) }
    return dispatcher
}()

private func add<Method: ControlMethod>(_ method: Method.Type, to dispatcher: inout ControlDispatcher<Void>) {
    dispatcher.on(method) { (parameters, _) throws(ControlError) in
        if let requester = parameters as? any RequesterParameters {
            _ = try requester.requester()
            _ = try requester.substreamID()
        }
        throw .failed("\(Method.name) is not carried out here")
    }
}
