// VERSION as clients of all kinds send it, and as none should.

import Testing

@testable import VFIOUserProtocol

@Suite("A connection begins with VERSION")
struct NegotiationTests {
    /// What QEMU's client sends, as the fact sheet has it.
    static let qemu = #"""
        {"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 16, \#
        "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}
        """#

    private func text(of action: VFIOUserServerAction) -> String? {
        guard case .send(let bytes, _) = action, bytes.last == 0 else { return nil }
        return String(decoding: bytes.dropFirst(20).dropLast(), as: UTF8.self)
    }

    @Test("QEMU gets minor 0, the request's id, and a text that fits into the request's length")
    func qemuClient() {
        var session = VFIOUserServerSession(device: .sample)
        let request = command(1, versionPayload(Self.qemu), id: 0x55)
        let text =
            #"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":1024,"#
            + #""pgsizes":4096,"write_multiple":true}}"#
        let expected = success(1, versionPayload(text), id: 0x55)
        #expect(session.answer(request) == .send(expected, attaching: .none))
        #expect(expected.count <= request.count)
        #expect(session.client?.descriptorCountMax == 16)
        #expect(session.client?.writeMultiple == true)
    }

    @Test(
        "Without a text, or without capabilities in it, the reply has a terminated text all the same",
        arguments: [nil, "{}", #"{"capabilities":{}}"#, #"{"other":[1,{"a":null}]}"#]
    )
    func noCapabilities(_ json: String?) {
        var session = VFIOUserServerSession(device: .sample)
        let action = session.answer(command(1, versionPayload(json, minor: 1)))
        #expect(text(of: action) == #"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}"#)
        #expect(session.client == .default)
    }

    @Test(
        "The minor version of the reply is the lesser of both",
        arguments: [(0, 0), (1, 1), (2, 1), (9, 1)]
    )
    func minorVersion(_ theirs: UInt16, _ agreed: UInt16) {
        var session = VFIOUserServerSession(device: .sample)
        guard case .send(let bytes, _) = session.answer(command(1, versionPayload("{}", minor: theirs)))
        else {
            Issue.record("no reply")
            return
        }
        #expect(Array(bytes[16..<20]) == le(UInt16(0)) + le(agreed))
    }

    @Test("A smaller transfer size of the client's is what holds")
    func smallerTransfers() {
        var session = VFIOUserServerSession(device: .sample)
        let json = #"{"capabilities":{"max_data_xfer_size":4096,"max_msg_fds":1}}"#
        let action = session.answer(command(1, versionPayload(json)))
        #expect(text(of: action) == #"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":4096}}"#)
        #expect(session.client?.dataByteCountMax == 4096)
    }

    @Test("A client that can have a twin socket gets one, and no other client does")
    func twinSocket() {
        var session = VFIOUserServerSession(device: .sample)
        let offer = #"{"capabilities":{"twin_socket":{"supported":true}}}"#
        let action = session.answer(command(1, versionPayload(offer)))
        #expect(text(of: action)?.contains(#""twin_socket":{"supported":true,"fd_index":0}"#) == true)
        guard case .send(_, let attachment) = action else { return }
        #expect(attachment == .twinSocket)
        var other = VFIOUserServerSession(device: .sample)
        let without = other.answer(
            command(1, versionPayload(#"{"capabilities":{"twin_socket":{"supported":false}}}"#))
        )
        #expect(text(of: without)?.contains("twin_socket") == false)
    }

    @Test(
        "A version that makes no sense is refused with EINVAL, and the connection ends",
        arguments: [
            [],
            [0], [0, 0, 0],
            versionPayload("{}", major: 1),
            Array(versionPayload("{}").dropLast()),
            versionPayload(#"{"capabilities":{"#), versionPayload(#"{"capabilities":{"max_msg_fds":1}"#),
            versionPayload(#"{"capabilities":{"max_msg_fds:1}}"#), versionPayload(#"[]"#),
            versionPayload("1"),
            versionPayload(""),
            versionPayload(#"{"capabilities":"yes"}"#), versionPayload(#"{"capabilities":[]}"#),
            versionPayload(#"{"capabilities":{"max_msg_fds":"1"}}"#),
            versionPayload(#"{"capabilities":{"max_msg_fds":-1}}"#),
            versionPayload(#"{"capabilities":{"max_msg_fds":1025}}"#),
            versionPayload(#"{"capabilities":{"max_msg_fds":1e300}}"#),
            versionPayload(#"{"capabilities":{"max_data_xfer_size":{}}}"#),
            versionPayload(#"{"capabilities":{"migration":7}}"#),
            versionPayload(#"{"capabilities":{"migration":{"pgsize":"x"}}}"#),
            versionPayload(#"{"capabilities":{"write_multiple":3}}"#),
            versionPayload(#"{"capabilities":{"twin_socket":true}}"#),
            versionPayload(String(repeating: "[", count: 100_000)),
            versionPayload("{\"capabilities\":\u{1}}"),
            le(UInt32(0)) + [0xff, 0xfe, 0],
        ] as [[UInt8]]
    )
    func nonsense(_ payload: [UInt8]) {
        var session = VFIOUserServerSession(device: .sample)
        #expect(session.answer(command(1, payload)) == .close(refusal(1, einval), .badVersion))
    }

    @Test("Descriptors do not belong to VERSION")
    func descriptors() {
        var session = VFIOUserServerSession(device: .sample)
        let action = session.answer(command(1, versionPayload("{}")), descriptors: 1)
        #expect(action == .close(refusal(1, einval), .badVersion))
    }

    @Test("Anything before VERSION ends the connection", arguments: [0, 2, 3, 4, 9, 13, 14, 15, 19, 0xffff])
    func versionFirst(_ number: UInt16) {
        var session = VFIOUserServerSession(device: .sample)
        let action = session.answer(command(number, [UInt8](repeating: 0, count: 40)))
        #expect(action == .close(refusal(number, einval), .notGreeted(VFIOUserCommand(rawValue: number))))
    }

    @Test("A second VERSION ends the connection")
    func twice() {
        var session = VFIOUserServerSession.serving()
        #expect(session.answer(command(1, versionPayload("{}"))) == .close(refusal(1, einval), .greetedTwice))
    }

    @Test("A reply before VERSION ends the connection without an answer")
    func replyFirst() {
        var session = VFIOUserServerSession(device: .sample)
        let action = session.answer(success(11))
        #expect(action == .close(nil, .notGreeted(.readDMA)))
    }
}

@Suite("The stream stays in step, or ends")
struct FramingTests {
    private let info = command(4, words(16, 0, 0, 0))
    private let infoReply = success(4, words(16, 3, 9, 5))

    @Test("Messages in pieces of any size, and many in one write, give the same answers", arguments: 1...40)
    func pieces(_ size: Int) {
        var session = VFIOUserServerSession(device: .sample)
        let stream = command(1, versionPayload("{}")) + info + command(13) + info
        let actions = session.feed(stream, pieces: size)
        let header = VFIOUserHeader(messageID: 7, command: .reset)
        #expect(
            Array(actions.dropFirst()) == [
                .send(infoReply, attaching: .none), .perform(.reset, header),
                .send(infoReply, attaching: .none),
            ]
        )
    }

    @Test("A message that is shorter than a header ends the connection", arguments: [0, 1, 15])
    func tooShort(_ size: Int) {
        var session = VFIOUserServerSession.serving()
        let action = session.answer(header(7, 4, size: size))
        #expect(action == .close(refusal(4, einval), .messageTooShort(byteCount: UInt32(size))))
        #expect(session.byteCountWanted == 0)
    }

    @Test("A message of no known type ends the connection", arguments: [2, 3, 15])
    func unknownType(_ type: UInt32) {
        var session = VFIOUserServerSession.serving()
        let action = session.answer(header(7, 4, size: 32, flags: type))
        #expect(action == .close(refusal(4, einval), .unknownType(type)))
    }

    @Test("A message beyond the limit is read past and refused, and the next one is understood")
    func oversize() {
        var session = VFIOUserServerSession.serving()
        let size = (1 << 20) + 33
        let actions = session.feed(
            header(7, 10, size: size) + [UInt8](repeating: 0x5a, count: size - 16) + info
        )
        #expect(
            actions == [.send(refusal(10, einval), attaching: .none), .send(infoReply, attaching: .none)]
        )
    }

    @Test("A message at the limit is taken")
    func atTheLimit() {
        var device = VFIOUserDeviceDescription.sample
        device.regions[3] = VFIOUserRegionDescription(size: 1 << 21)
        var session = VFIOUserServerSession.serving(device)
        let data = [UInt8](repeating: 1, count: 1 << 20)
        let action = session.answer(command(10, longs(0) + words(3, 1 << 20) + data))
        let access = VFIOUserRegionAccess(offset: 0, region: 3, count: 1 << 20)
        guard case .perform(.writeRegion(access, let written), _) = action else {
            Issue.record("not performed")
            return
        }
        #expect(written == data)
    }

    @Test("A message of a length that nobody means ends the connection")
    func absurdLength() {
        var session = VFIOUserServerSession.serving()
        let action = session.answer(header(7, 9, size: 0xffff_ffff))
        guard case .close(let reply, .messageTooLong) = action else {
            Issue.record("not closed")
            return
        }
        #expect(reply == refusal(9, einval))
    }

    @Test("A command that nobody knows is refused and read past", arguments: [0, 11, 12, 14, 19, 20, 0x8000])
    func unknownCommand(_ number: UInt16) {
        var session = VFIOUserServerSession.serving()
        let actions = session.feed(command(number, [1, 2, 3, 4, 5]) + info)
        #expect(
            actions == [.send(refusal(number, einval), attaching: .none), .send(infoReply, attaching: .none)]
        )
    }

    @Test("Replies are handed on, for whoever waits for them")
    func replies() {
        var session = VFIOUserServerSession.serving()
        let action = session.answer(success(11, longs(0x1000, 0)))
        let header = VFIOUserHeader(messageID: 7, command: .readDMA, payloadByteCount: 16, flags: .reply)
        #expect(action == .deliver(header, payload: longs(0x1000, 0)))
    }

    @Test("Ids may repeat, also among commands in flight")
    func repeatedIDs() {
        var session = VFIOUserServerSession.serving()
        let message = command(4, words(16, 0, 0, 0), id: 0)
        let reply = VFIOUserServerAction.send(success(4, words(16, 3, 9, 5), id: 0), attaching: .none)
        #expect(session.feed(message + message + message) == [reply, reply, reply])
    }

    @Test("No_reply: not a byte comes back, whatever is asked and however wrong it is", arguments: 2...20)
    func noReply(_ number: UInt16) {
        for payload in [[], [UInt8](repeating: 0xff, count: 8), [UInt8](repeating: 0, count: 64)] {
            var session = VFIOUserServerSession.serving()
            let action = session.answer(command(number, payload, flags: 0x10))
            if case .perform(_, let header) = action {
                #expect(!header.wantsReply)
            } else {
                #expect(action == .more)
            }
        }
        var session = VFIOUserServerSession.serving()
        #expect(
            session.answer(header(7, number, size: 3, flags: 0x10))
                == .close(nil, .messageTooShort(byteCount: 3))
        )
    }

    @Test("A message whose descriptors did not all fit is refused, and the next one is understood")
    func lostDescriptors() {
        var session = VFIOUserServerSession.serving()
        let map = command(2, words(32, 3) + longs(0, 0x1000, 0x1000))
        #expect(session.answer(map, lost: true) == .send(refusal(2, einval), attaching: .none))
        #expect(session.answer(info) == .send(infoReply, attaching: .none))
    }

    @Test(
        "Descriptors where none belong are refused",
        arguments: [
            (4, words(16, 0, 0, 0)), (5, words(32, 0, 0, 0) + longs(0, 0)), (7, words(16, 0, 0, 0)),
            (9, longs(0) + words(7, 4)), (10, longs(0) + words(7, 1) + [0]), (13, []), (15, longs(0)),
            (16, words(8, 0x10001)),
        ] as [(UInt16, [UInt8])]
    )
    func strayDescriptors(_ number: UInt16, _ payload: [UInt8]) {
        var session = VFIOUserServerSession.serving()
        #expect(
            session.answer(command(number, payload), descriptors: 1)
                == .send(refusal(number, einval), attaching: .none)
        )
    }
}
