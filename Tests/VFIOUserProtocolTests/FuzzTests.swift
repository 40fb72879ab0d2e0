// Bytes that nobody means: whatever comes, the sessions answer or close, and never trap.

import SeededRandomness
import Testing

@testable import VFIOUserProtocol

@Suite("No bytes trap")
struct FuzzTests {
    private static func interesting(_ random: inout SplitMix) -> UInt32 {
        let values: [UInt32] = [
            0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 20, 24, 31, 32, 33, 80, 96, 0x1000, 0x8000, 0xffff, 1 << 20,
            (1 << 20) + 1, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff,
        ]
        return Bool.random(using: &random)
            ? values[Int.random(in: 0..<values.count, using: &random)]
            : UInt32.random(in: 0...40, using: &random)
    }

    private static func message(_ random: inout SplitMix) -> [UInt8] {
        var payload: [UInt8] = []
        for _ in 0..<Int.random(in: 0...24, using: &random) { payload += le(interesting(&random)) }
        if Int.random(in: 0..<8, using: &random) == 0 {
            payload.append(UInt8.random(in: 0...255, using: &random))
        }
        let size =
            Int.random(in: 0..<40, using: &random) == 0
            ? Int(interesting(&random)) : 16 + payload.count
        let flags: UInt32 = [0, 0, 0, 0, 0x10, 1, 0x21, 2][Int.random(in: 0..<8, using: &random)]
        let id = UInt16.random(in: 0...3, using: &random)
        return header(id, UInt16.random(in: 0...20, using: &random), size: size, flags: flags) + payload
    }

    @Test("Random messages to a server's session", arguments: 1...200 as ClosedRange<UInt64>)
    func server(_ seed: UInt64) {
        var random = SplitMix(seed: seed)
        let json = #"{"capabilities":{"max_msg_fds":16,"write_multiple":true}}"#
        var session = VFIOUserServerSession.serving(json: json)
        var commands = VFIOUserServerCommands()
        for _ in 0..<100 where session.byteCountWanted > 0 {
            if Bool.random(using: &random) { _ = commands.read(VFIOUserDMAAccess(address: 16, count: 32)) }
            let bytes = Self.message(&random)
            let descriptors = Int.random(in: 0...3, using: &random)
            for action in session.feed(
                bytes,
                descriptors: descriptors,
                pieces: Int.random(in: 1...64, using: &random)
            ) {
                if case .deliver(let header, let payload) = action { _ = commands.complete(header, payload) }
            }
        }
    }

    @Test(
        "Random bytes to a server's session, VERSION's text among them",
        arguments: 1...100 as ClosedRange<UInt64>
    )
    func garbage(_ seed: UInt64) {
        var random = SplitMix(seed: seed)
        var session = VFIOUserServerSession(device: .sample)
        let alphabet = Array(#"{}[]":,0123456789.eE-+tfn\u "capabilities""max_msg_fds""#.utf8)
        let text = (0..<Int.random(in: 0...200, using: &random)).map { _ in
            alphabet[Int.random(in: 0..<alphabet.count, using: &random)]
        }
        _ = session.feed(command(1, le(UInt32(0)) + text + [0]))
        _ = session.feed((0..<4096).map { _ in UInt8.random(in: 0...255, using: &random) })
    }

    @Test("Random replies to a client's session", arguments: 1...200 as ClosedRange<UInt64>)
    func client(_ seed: UInt64) {
        var random = SplitMix(seed: seed)
        var session = VFIOUserClientSession.serving()
        let requests: [VFIOUserClientRequest] = [
            .deviceInfo, .regionInfo(index: 0, argsz: 96), .interruptInfo(index: 1),
            .regionIODescriptors(index: 2, argsz: 4096), .readRegion(.init(offset: 0, region: 0, count: 32)),
            .writeRegions([]), .other(.deviceFeature, []), .reset,
        ]
        for _ in 0..<100 where session.byteCountWanted > 0 {
            let request = requests[Int.random(in: 0..<requests.count, using: &random)]
            guard let (id, _) = session.send(request) else { return }
            var reply = Self.message(&random)
            // Mostly one that is taken for an answer.
            if Int.random(in: 0..<10, using: &random) > 0 {
                reply.replaceSubrange(0..<4, with: le(id) + le(request.command.rawValue))
                reply.replaceSubrange(8..<12, with: le(UInt32(1)))
            }
            _ = session.feed(reply, descriptors: Int.random(in: 0...2, using: &random))
        }
    }
}
