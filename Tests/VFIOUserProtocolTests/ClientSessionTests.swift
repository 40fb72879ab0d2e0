// A client's side: what it sends, and what it believes.

import Testing

@testable import VFIOUserProtocol

extension VFIOUserClientSession {
    mutating func feed(_ bytes: [UInt8], descriptors: Int = 0, pieces: Int = .max) -> [VFIOUserClientAction] {
        var actions: [VFIOUserClientAction] = []
        var rest = bytes[...]
        var isFirst = true
        while !rest.isEmpty, byteCountWanted > 0 {
            let piece = Array(rest.prefix(min(byteCountWanted, pieces)))
            rest = rest.dropFirst(piece.count)
            let action = piece.withUnsafeBytes { receive($0, descriptorCount: isFirst ? descriptors : 0) }
            isFirst = false
            if action != .more { actions.append(action) }
        }
        return actions
    }

    static func serving() -> Self {
        var session = Self()
        _ = session.greet()
        _ = session.feed(success(1, versionPayload("{}"), id: 0))
        return session
    }
}

@Suite("The client's side of a connection")
struct ClientSessionTests {
    @Test("Greets with version 0.1 and a text, and takes a server's reply")
    func greeting() {
        var session = VFIOUserClientSession()
        let text =
            #"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"#
            + #""pgsizes":4096,"write_multiple":true}}"#
        #expect(session.greet() == command(1, versionPayload(text, minor: 1), id: 0))
        let reply =
            #"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":65536,"migration":{"pgsize":4096}}}"#
        #expect(session.feed(success(1, versionPayload(reply), id: 0), pieces: 3) == [.negotiated])
        #expect(session.server?.descriptorCountMax == 8)
        #expect(session.server?.dataByteCountMax == 65536)
        #expect(session.server?.writeMultiple == false)
        #expect(session.minorVersion == 0)
    }

    @Test(
        "Does not take a refusal, another major, a higher minor, a twin socket that it did not ask for",
        arguments: [
            refusal(1, 22, id: 0), success(1, versionPayload("{}", major: 1), id: 0),
            success(1, versionPayload("{}", minor: 2), id: 0), success(1, [], id: 0),
            success(4, versionPayload("{}"), id: 0), success(1, versionPayload("{}"), id: 1),
            success(
                1,
                versionPayload(#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#),
                id: 0
            ),
            command(11, longs(0, 1), id: 0),
        ]
    )
    func badGreetings(_ reply: [UInt8]) {
        var session = VFIOUserClientSession()
        _ = session.greet()
        #expect(session.feed(reply) == [.close(.badVersion)])
    }

    @Test("Sends each command with a number of its own, and knows the answers by them, in any order")
    func commands() throws {
        var session = VFIOUserClientSession.serving()
        let sentInfo = session.send(.deviceInfo)
        let info = try #require(sentInfo)
        #expect(info.message == command(4, words(16, 0, 0, 0), id: 0))
        let access = VFIOUserRegionAccess(offset: 0x10, region: 7, count: 4)
        let sentRead = session.send(.readRegion(access))
        let read = try #require(sentRead)
        #expect(read.message == command(9, longs(0x10) + words(7, 4), id: 1))
        let sentWrite = session.send(.writeRegion(offset: 8, region: 0, [1, 2]), noReply: true)
        let write = try #require(sentWrite)
        #expect(write.message == command(10, longs(8) + words(0, 2) + [1, 2], id: 2, flags: 0x10))
        #expect(session.pendingCount == 2)
        let answer = success(9, longs(0x10) + words(7, 4) + [1, 2, 3, 4], id: 1)
        #expect(
            session.feed(answer + success(4, words(16, 3, 9, 5), id: 0)) == [
                .reply(messageID: 1, .data([1, 2, 3, 4]), descriptorCount: 0),
                .reply(
                    messageID: 0,
                    .deviceInfo(
                        VFIOUserDeviceInfo(flags: [.pci, .reset], regionCount: 9, interruptCount: 5)
                    ),
                    descriptorCount: 0
                ),
            ]
        )
    }

    @Test("Region information in two steps")
    func regionInfo() throws {
        var session = VFIOUserClientSession.serving()
        _ = session.send(.regionInfo(index: 0, argsz: 32))
        let short = words(80, 7, 0, 0) + longs(0x8000, 0)
        let info = try #require(VFIOUserRegionInfo(short))
        #expect(
            session.feed(success(5, short, id: 0)) == [
                .reply(messageID: 0, .regionInfo(info, []), descriptorCount: 0)
            ]
        )
        _ = session.send(.regionInfo(index: 0, argsz: 80))
        let full =
            words(80, 15, 0, 32) + longs(0x8000, 0) + hex("0100 0100 00000000 02000000 00000000")
            + longs(0x1000, 0x1000, 0x4000, 0x2000)
        let areas = [
            VFIOUserMappableArea(offset: 0x1000, size: 0x1000),
            VFIOUserMappableArea(offset: 0x4000, size: 0x2000),
        ]
        let fullInfo = try #require(VFIOUserRegionInfo(full))
        #expect(
            session.feed(success(5, full, id: 1), descriptors: 1) == [
                .reply(messageID: 1, .regionInfo(fullInfo, [.sparseMapping(areas)]), descriptorCount: 1)
            ]
        )
    }

    @Test("ioeventfds by the reply's own stride: 40 bytes of the specification, 48 of the reference library")
    func ioEvents() {
        for stride in [40, 48] {
            var session = VFIOUserClientSession.serving()
            let size = UInt32(16 + 2 * stride)
            _ = session.send(.regionIODescriptors(index: 2, argsz: size))
            let padding = [UInt8](repeating: 0, count: stride - 40)
            let entry = { (offset: UInt64) in longs(offset, 4) + words(0, 0, 0, 0) + longs(0) + padding }
            let reply = success(6, words(size, 0, 2, 2) + entry(0x10) + entry(0x20), id: 0)
            let events = [0x10, 0x20].map { VFIOUserIOEvent(offset: $0, size: 4, descriptorIndex: 0) }
            #expect(
                session.feed(reply) == [
                    .reply(messageID: 0, .ioEvents(argsz: size, events), descriptorCount: 0)
                ]
            )
        }
    }

    @Test(
        "An answer that contradicts its question is a failure",
        arguments: [
            (.deviceInfo, []), (.regionInfo(index: 0, argsz: 32), words(32, 0, 1, 0) + longs(0, 0)),
            (.regionInfo(index: 0, argsz: 32), words(31, 0, 0, 0) + longs(0, 0)),
            (.regionInfo(index: 0, argsz: 32), words(40, 8, 0, 32) + longs(0, 0) + longs(0)),
            (.regionInfo(index: 0, argsz: 80), words(80, 8, 0, 0xffff_fff8) + longs(0, 0)),
            (.regionInfo(index: 0, argsz: 80), words(80, 8, 0, 4) + longs(0, 0)),
            (.interruptInfo(index: 1), words(16, 0, 0, 0)),
            (.readRegion(VFIOUserRegionAccess(offset: 0, region: 0, count: 4)), []),
            (
                .readRegion(VFIOUserRegionAccess(offset: 0, region: 0, count: 4)),
                longs(0) + words(0, 5) + [1, 2, 3, 4, 5]
            ),
            (
                .readRegion(VFIOUserRegionAccess(offset: 0, region: 0, count: 4)),
                longs(0) + words(0, 4) + [1, 2, 3]
            ),
            (
                .readRegion(VFIOUserRegionAccess(offset: 0, region: 0, count: 4)),
                longs(0) + words(1, 4) + [1, 2, 3, 4]
            ),
            (.writeRegions([]), longs(1)),
            (.regionIODescriptors(index: 0, argsz: 4096), words(56, 0, 0, 2) + longs(0, 0, 0, 0, 0)),
            (.regionIODescriptors(index: 0, argsz: 4096), words(16, 0, 0, 0xffff_ffff)),
            (.regionIODescriptors(index: 0, argsz: 4096), words(0, 0, 0, 0)),
        ] as [(VFIOUserClientRequest, [UInt8])]
    )
    func contradictions(_ request: VFIOUserClientRequest, _ payload: [UInt8]) {
        var session = VFIOUserClientSession.serving()
        _ = session.send(request)
        let reply = success(request.command.rawValue, payload, id: 0)
        #expect(session.feed(reply) == [.failed(messageID: 0, .protocolViolation)])
    }

    @Test("Header-only replies to what needs no more, and failures")
    func headerOnly() {
        let requests: [VFIOUserClientRequest] = [
            .mapDMA(VFIOUserDMAMap(flags: .readable, address: 0, size: 1)),
            .unmapDMA(VFIOUserDMAUnmap(address: 0, size: 1)),
            .setInterrupts(VFIOUserInterruptSet(flags: [.none, .trigger], index: 0), []), .reset,
        ]
        for request in requests {
            var session = VFIOUserClientSession.serving()
            _ = session.send(request)
            let number = request.command.rawValue
            #expect(session.feed(success(number, id: 0)) == [.reply(messageID: 0, .done, descriptorCount: 0)])
            _ = session.send(request)
            #expect(session.feed(refusal(number, 17, id: 1)) == [.failed(messageID: 1, .exists)])
        }
    }

    @Test("A reply to nothing ends the connection")
    func unexpected() {
        var session = VFIOUserClientSession.serving()
        #expect(session.feed(success(4, id: 3)) == [.close(.unexpectedReply(.deviceInfo))])
    }

    @Test("The server's accesses to memory, between our question and its answer")
    func serverCommands() {
        var session = VFIOUserClientSession.serving()
        _ = session.send(.deviceInfo)
        let read = VFIOUserHeader(messageID: 5, command: .readDMA, payloadByteCount: 16)
        let write = VFIOUserHeader(messageID: 5, command: .writeDMA, payloadByteCount: 18)
        let stream =
            command(11, longs(0x1000, 64), id: 5) + command(12, longs(0x2000, 2) + [1, 2], id: 5)
            + success(4, words(16, 2, 9, 5), id: 0)
        let actions = session.feed(stream)
        #expect(actions.count == 3)
        #expect(actions.first == .readMemory(read, VFIOUserDMAAccess(address: 0x1000, count: 64)))
        #expect(
            actions.dropFirst().first
                == .writeMemory(write, VFIOUserDMAAccess(address: 0x2000, count: 2), [1, 2])
        )
    }

    @Test("Commands of a server that make no sense are refused")
    func badServerCommands() {
        for (number, payload) in [
            (11, longs(0)), (11, longs(0, 1 << 21)), (11, longs(0xffff_ffff_ffff_ffff, 2)),
            (12, longs(0, 2) + [1]), (12, longs(0, 1) + [1, 2]), (4, words(16, 0, 0, 0)), (0, []),
        ] as [(UInt16, [UInt8])] {
            var session = VFIOUserClientSession.serving()
            #expect(session.feed(command(number, payload)) == [.send(refusal(number, einval))])
        }
    }
}
