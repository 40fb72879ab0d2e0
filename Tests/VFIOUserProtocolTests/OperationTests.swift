// Commands that change something: what is carried out, and what is refused.

import Testing

@testable import VFIOUserProtocol

private func answer(
    _ number: UInt16,
    _ payload: [UInt8],
    descriptors: Int = 0,
    json: String? = nil,
    _ device: VFIOUserDeviceDescription = .sample
) -> VFIOUserServerAction {
    var session = VFIOUserServerSession.serving(device, json: json)
    return session.answer(command(number, payload), descriptors: descriptors)
}

private func expectRefusal(
    _ number: UInt16,
    _ payload: [UInt8],
    descriptors: Int = 0,
    json: String? = nil,
    _ error: UInt32 = einval,
    at location: SourceLocation = #_sourceLocation
) {
    let action = answer(number, payload, descriptors: descriptors, json: json)
    #expect(action == .send(refusal(number, error), attaching: .none), sourceLocation: location)
}

private func operation(_ action: VFIOUserServerAction) -> VFIOUserOperation? {
    guard case .perform(let operation, let header) = action else { return nil }
    return header.messageID == 7 ? operation : nil
}

@Suite("DMA_MAP and DMA_UNMAP")
struct MemoryOperationTests {
    private func map(_ argsz: UInt32, _ flags: UInt32, _ offset: UInt64, _ address: UInt64, _ size: UInt64)
        -> [UInt8]
    {
        words(argsz, flags) + longs(offset, address, size)
    }

    @Test("With a descriptor, without, read-only, tiny, unaligned, up to the last byte of 64 bits")
    func maps() {
        let expect = { (flags: UInt32, offset: UInt64, address: UInt64, size: UInt64, descriptors: Int) in
            let action = answer(2, map(32, flags, offset, address, size), descriptors: descriptors)
            let request = VFIOUserDMAMap(
                flags: VFIOUserDMAFlags(rawValue: flags),
                offset: offset,
                address: address,
                size: size
            )
            #expect(operation(action) == .mapDMA(request, hasDescriptor: descriptors == 1))
        }
        expect(3, 0, 0x4000_0000, 0x1000_0000, 1)
        expect(1, 0, 0, 0x1000, 0)
        expect(0, 0, 0, 1, 0)
        expect(7, 0x123, 0x456, 0x789, 1)
        expect(3, 0, 0xffff_ffff_ffff_f000, 0x1000, 0)
    }

    @Test("A longer payload or argsz is taken, as one client sends")
    func longer() {
        let action = answer(2, map(48, 3, 0, 0, 0x1000) + [UInt8](repeating: 9, count: 16), descriptors: 1)
        #expect(operation(action) != nil)
    }

    @Test("Maps that make no sense")
    func badMaps() {
        expectRefusal(2, Array(map(32, 3, 0, 0, 0x1000).dropLast()), descriptors: 1)
        expectRefusal(2, [])
        expectRefusal(2, map(31, 3, 0, 0, 0x1000), descriptors: 1)
        expectRefusal(2, map(32, 3, 0, 0, 0), descriptors: 1)
        expectRefusal(2, map(32, 3, 0, 0xffff_ffff_ffff_f000, 0x1001), descriptors: 1)
        expectRefusal(2, map(32, 3, 0xffff_ffff_ffff_f000, 0, 0x1001), descriptors: 1)
        expectRefusal(2, map(32, 0x13, 0, 0, 0x1000), descriptors: 1)
        expectRefusal(2, map(32, 7, 0, 0, 0x1000), descriptors: 0)
        expectRefusal(2, map(32, 11, 0, 0, 0x1000), descriptors: 0)
        expectRefusal(2, map(32, 15, 0, 0, 0x1000), descriptors: 1)
        expectRefusal(2, map(32, 3, 0, 0, 0x1000), descriptors: 2)
        expectRefusal(2, map(32, 11, 0, 0, 0x1000), descriptors: 1, 95)
        expectRefusal(2, map(32, 3, 0, 0, (8 << 40) + 1), descriptors: 1, 28)
    }

    @Test("Unmapping a range, with the descriptor that one client sends again, and everything")
    func unmaps() {
        let range = VFIOUserDMAUnmap(address: 0x1000, size: 0x2000)
        #expect(operation(answer(3, words(24, 0) + longs(0x1000, 0x2000))) == .unmapDMA(range))
        let again = answer(3, words(24, 0) + longs(0x1000, 0x2000), descriptors: 1)
        #expect(operation(again) == .unmapDMA(range))
        let all = VFIOUserDMAUnmap(flags: .all, address: 0, size: 0)
        #expect(operation(answer(3, words(24, 2) + longs(0, 0))) == .unmapAllDMA(all))
    }

    @Test("Unmaps that make no sense")
    func badUnmaps() {
        expectRefusal(3, words(24, 0))
        expectRefusal(3, words(8, 0) + longs(0x1000, 0x1000))
        expectRefusal(3, words((1 << 20) + 1, 0) + longs(0x1000, 0x1000))
        expectRefusal(3, words(24, 0) + longs(0x1000, 0))
        expectRefusal(3, words(24, 0) + longs(0xffff_ffff_ffff_f000, 0x1001))
        expectRefusal(3, words(24, 1) + longs(0x1000, 0x1000))
        expectRefusal(3, words(24, 4) + longs(0x1000, 0x1000))
        expectRefusal(3, words(24, 2) + longs(0x1000, 0))
        expectRefusal(3, words(24, 2) + longs(0, 0x1000))
        expectRefusal(3, words(24, 3) + longs(0, 0))
    }
}

@Suite("REGION_READ, REGION_WRITE and REGION_WRITE_MULTI")
struct RegionOperationTests {
    private func access(_ region: UInt32, _ offset: UInt64, _ count: UInt32) -> [UInt8] {
        longs(offset) + words(region, count)
    }

    @Test("Accesses inside a region, to its last byte")
    func inside() {
        #expect(
            operation(answer(9, access(7, 0, 4096)))
                == .readRegion(VFIOUserRegionAccess(offset: 0, region: 7, count: 4096))
        )
        #expect(
            operation(answer(10, access(7, 4095, 1) + [0xab]))
                == .writeRegion(VFIOUserRegionAccess(offset: 4095, region: 7, count: 1), [0xab])
        )
        #expect(
            operation(answer(9, access(0, 0x1000, 8)))
                == .readRegion(.init(offset: 0x1000, region: 0, count: 8))
        )
    }

    @Test("An access of no bytes succeeds with a header alone")
    func zeroCount() {
        #expect(answer(9, access(7, 0, 0)) == .send(success(9), attaching: .none))
        #expect(answer(10, access(7, 4096, 0)) == .send(success(10), attaching: .none))
    }

    @Test("Accesses outside, too long, of the wrong length, of a region that is not there or not for that")
    func outside() {
        for number: UInt16 in [9, 10] {
            let data = { (count: Int) in number == 10 ? [UInt8](repeating: 0, count: count) : [] }
            expectRefusal(number, access(7, 4096, 1) + data(1))
            expectRefusal(number, access(7, 4093, 4) + data(4))
            expectRefusal(number, access(7, 0xffff_ffff_ffff_ffff, 4) + data(4))
            expectRefusal(number, access(7, 0xffff_ffff_ffff_fffc, 4) + data(4))
            expectRefusal(number, access(9, 0, 4) + data(4))
            expectRefusal(number, access(0xffff_ffff, 0, 4) + data(4))
            expectRefusal(number, access(3, 0, 4) + data(4))
            expectRefusal(number, access(3, 0, 0))
            expectRefusal(number, Array(access(7, 0, 4).dropLast()))
            expectRefusal(number, [])
        }
        expectRefusal(9, access(7, 0, 4) + [0])
        expectRefusal(10, access(7, 0, 4) + [0, 0, 0])
        expectRefusal(10, access(7, 0, 4) + [0, 0, 0, 0, 0])
        expectRefusal(10, access(6, 0, 1) + [0])
        expectRefusal(9, access(7, 0, 0xffff_ffff))
    }

    @Test("A count of the largest transfer is taken, one more is not", arguments: [(0, true), (1, false)])
    func largest(_ beyond: UInt32, _ isTaken: Bool) {
        var device = VFIOUserDeviceDescription.sample
        device.regions[3] = VFIOUserRegionDescription(size: 1 << 30)
        let action = answer(9, access(3, 0, (1 << 20) + beyond), device)
        #expect((operation(action) != nil) == isTaken)
    }

    private let multiple = #"{"capabilities":{"write_multiple":true}}"#

    @Test("REGION_WRITE_MULTI: the writes up to the first that is not permitted")
    func multi() {
        let good = access(7, 0x10, 4) + longs(0xdead_beef)
        let better = access(0, 0, 8) + longs(1)
        let first = VFIOUserSmallWrite(offset: 0x10, region: 7, count: 4, data: 0xdead_beef)
        let second = VFIOUserSmallWrite(offset: 0, region: 0, count: 8, data: 1)
        let send = { (payload: [UInt8]) in operation(answer(15, payload, json: multiple)) }
        #expect(send(longs(2) + good + better) == .writeRegions([first, second]))
        #expect(send(longs(1) + good + better) == .writeRegions([first]))
        #expect(send(longs(0)) == .writeRegions([]))
        for bad in [
            access(7, 4096, 1), access(9, 0, 1), access(6, 0, 1), access(7, 0, 0), access(7, 0, 9),
        ] {
            #expect(send(longs(3) + good + bad + longs(0) + better) == .writeRegions([first]))
            expectRefusal(15, longs(1) + bad + longs(0), json: multiple)
        }
    }

    @Test("REGION_WRITE_MULTI whose count does not fit, or that was not agreed upon")
    func badMulti() {
        let good = access(7, 0x10, 4) + longs(0xdead_beef)
        expectRefusal(15, [], json: multiple)
        expectRefusal(15, longs(2) + good, json: multiple)
        expectRefusal(15, longs(0xffff_ffff_ffff_ffff) + good, json: multiple)
        expectRefusal(15, longs(1) + good.dropLast(), json: multiple)
        expectRefusal(15, longs(1) + good)
    }
}

@Suite("DEVICE_RESET")
struct ResetTests {
    @Test("Has no payload, and only a device that says so can do it")
    func reset() {
        #expect(operation(answer(13, [])) == .reset)
        expectRefusal(13, [0])
        var device = VFIOUserDeviceDescription.sample
        device.flags = .pci
        #expect(answer(13, [], device) == .send(refusal(13, 95), attaching: .none))
    }
}

@Suite("DEVICE_SET_IRQS")
struct InterruptOperationTests {
    private static let none: UInt32 = 1
    private static let bool: UInt32 = 2
    private static let eventfd: UInt32 = 4
    private static let mask: UInt32 = 8
    private static let unmask: UInt32 = 16
    private static let trigger: UInt32 = 32

    private func change(
        _ flags: UInt32,
        _ index: UInt32,
        _ start: UInt32,
        _ count: UInt32,
        _ data: [UInt8] = [],
        descriptors: Int = 0
    ) -> VFIOUserInterruptChange? {
        let payload = words(20 + UInt32(data.count), flags, index, start, count) + data
        guard case .setInterrupts(let change) = operation(answer(8, payload, descriptors: descriptors)) else {
            return nil
        }
        return change
    }

    @Test("Binding one, a run, sixteen; unbinding by range; disabling")
    func bind() {
        let flags = Self.eventfd | Self.trigger
        #expect(change(flags, 0, 0, 1, descriptors: 1) == .bind(.trigger, .intx, vectors: 0..<1))
        #expect(change(flags, 2, 8, 16, descriptors: 16) == .bind(.trigger, .msix, vectors: 8..<24))
        #expect(change(flags, 2, 2047, 1, descriptors: 1) == .bind(.trigger, .msix, vectors: 2047..<2048))
        #expect(change(flags, 3, 0, 1, descriptors: 1) == .bind(.trigger, .error, vectors: 0..<1))
        #expect(change(flags, 2, 5, 3) == .unbind(.trigger, .msix, vectors: 5..<8))
        #expect(change(Self.none | Self.trigger, 2, 0, 0) == .disable(.msix))
        #expect(change(Self.none | Self.trigger, 1, 0, 0) == .disable(.msi))
    }

    @Test("Firing, masking and unmasking, all of a range or those with a byte")
    func perform() {
        #expect(
            change(Self.none | Self.trigger, 2, 4, 3) == .perform(.trigger, .msix, vectors: [4, 5, 6])
        )
        #expect(
            change(Self.bool | Self.trigger, 2, 4, 3, [1, 0, 255])
                == .perform(.trigger, .msix, vectors: [4, 6])
        )
        #expect(change(Self.none | Self.mask, 0, 0, 1) == .perform(.mask, .intx, vectors: [0]))
        #expect(change(Self.bool | Self.unmask, 0, 0, 1, [1]) == .perform(.unmask, .intx, vectors: [0]))
        #expect(
            change(Self.eventfd | Self.unmask, 0, 0, 1, descriptors: 1)
                == .bind(.unmask, .intx, vectors: 0..<1)
        )
    }

    @Test("Everything that the reference library refuses")
    func refusals() {
        let refuse = {
            (
                flags: UInt32,
                index: UInt32,
                start: UInt32,
                count: UInt32,
                data: [UInt8],
                descriptors: Int,
                location: SourceLocation
            ) in
            let payload = words(20 + UInt32(data.count), flags, index, start, count) + data
            expectRefusal(8, payload, descriptors: descriptors, at: location)
        }
        // No payload, a short one, a short argsz.
        expectRefusal(8, [])
        expectRefusal(8, words(20, 33, 0, 0))
        expectRefusal(8, words(19, 33, 0, 0, 1))
        // No kind of data or action, or several, or bits beyond.
        for flags: UInt32 in [
            0, 1, 32, Self.none | Self.mask | Self.unmask, Self.none | Self.mask | Self.trigger,
            Self.none | Self.bool | Self.trigger, Self.none | Self.eventfd | Self.trigger, 7 | 56, 64 | 33,
            0x8000_0021,
        ] { refuse(flags, 2, 0, 1, flags & 2 != 0 ? [1] : [], 0, #_sourceLocation) }
        // Index, start and count.
        refuse(Self.none | Self.trigger, 5, 0, 1, [], 0, #_sourceLocation)
        refuse(Self.none | Self.trigger, 0xffff_ffff, 0, 1, [], 0, #_sourceLocation)
        refuse(Self.none | Self.trigger, 2, 2048, 1, [], 0, #_sourceLocation)
        refuse(Self.none | Self.trigger, 2, 2047, 2, [], 0, #_sourceLocation)
        refuse(Self.none | Self.trigger, 2, 0, 2049, [], 0, #_sourceLocation)
        refuse(Self.none | Self.trigger, 2, 1, 0xffff_ffff, [], 0, #_sourceLocation)
        refuse(Self.none | Self.trigger, 2, 0xffff_ffff, 1, [], 0, #_sourceLocation)
        refuse(Self.none | Self.trigger, 1, 0, 1, [], 0, #_sourceLocation)
        // ERR and REQ only fire, and only one.
        for index: UInt32 in [3, 4] {
            refuse(Self.none | Self.mask, index, 0, 1, [], 0, #_sourceLocation)
            refuse(Self.none | Self.unmask, index, 0, 1, [], 0, #_sourceLocation)
            refuse(Self.none | Self.trigger, index, 0, 2, [], 0, #_sourceLocation)
        }
        // A count of 0 is for disabling alone.
        refuse(Self.none | Self.trigger, 2, 1, 0, [], 0, #_sourceLocation)
        refuse(Self.none | Self.mask, 2, 0, 0, [], 0, #_sourceLocation)
        refuse(Self.bool | Self.trigger, 2, 0, 0, [], 0, #_sourceLocation)
        refuse(Self.eventfd | Self.trigger, 2, 0, 0, [], 0, #_sourceLocation)
        // Bytes for each vector, no fewer and no more.
        refuse(Self.bool | Self.trigger, 2, 0, 3, [1, 1], 0, #_sourceLocation)
        refuse(Self.bool | Self.trigger, 2, 0, 3, [1, 1, 1, 1], 0, #_sourceLocation)
        refuse(Self.bool | Self.trigger, 2, 0, 3, [], 0, #_sourceLocation)
        // Descriptors for each vector, no fewer and no more, and with no other data.
        refuse(Self.eventfd | Self.trigger, 2, 0, 3, [], 2, #_sourceLocation)
        refuse(Self.eventfd | Self.trigger, 2, 0, 3, [], 4, #_sourceLocation)
        refuse(Self.none | Self.trigger, 2, 0, 1, [], 1, #_sourceLocation)
        refuse(Self.bool | Self.trigger, 2, 0, 1, [1], 1, #_sourceLocation)
        refuse(Self.none | Self.trigger, 2, 0, 0, [], 1, #_sourceLocation)
    }
}

@Suite("DMA_READ and DMA_WRITE")
struct ServerCommandTests {
    private func complete(_ commands: inout VFIOUserServerCommands, _ bytes: [UInt8])
        -> VFIOUserServerCommands.Outcome?
    {
        VFIOUserHeader(bytes).map { commands.complete($0, Array(bytes.dropFirst(16))) }
    }

    @Test("The messages, and their answers")
    func roundTrip() throws {
        var commands = VFIOUserServerCommands()
        let sentRead = commands.read(VFIOUserDMAAccess(address: 0x1000, count: 4))
        let read = try #require(sentRead)
        #expect(read.message == command(11, longs(0x1000, 4), id: 0))
        let data: [UInt8] = [1, 2, 3]
        let sentWrite = data.withUnsafeBytes { commands.write($0, at: 0x2000) }
        let write = try #require(sentWrite)
        #expect(write.message == command(12, longs(0x2000, 3) + [1, 2, 3], id: 1))
        #expect(commands.isWaiting)
        #expect(
            complete(&commands, success(12, longs(0x2000, 3), id: 1)) == .wrote(messageID: 1, byteCount: 3)
        )
        let answer = success(11, longs(0x1000, 4) + [9, 8, 7, 6], id: 0)
        #expect(complete(&commands, answer) == .read(messageID: 0, [9, 8, 7, 6]))
        #expect(!commands.isWaiting)
    }

    @Test("Fewer bytes than asked for are what they are; more, or others, are a violation")
    func wrongAnswers() throws {
        let answers: [([UInt8], VFIOUserServerCommands.Outcome)] = [
            (success(11, longs(0x1000, 2) + [9, 8], id: 0), .read(messageID: 0, [9, 8])),
            (success(11, longs(0x1000, 0), id: 0), .read(messageID: 0, [])),
            (
                success(11, longs(0x1000, 5) + [1, 2, 3, 4, 5], id: 0),
                .failed(messageID: 0, .protocolViolation)
            ),
            (success(11, longs(0x1000, 4) + [1, 2, 3], id: 0), .failed(messageID: 0, .protocolViolation)),
            (success(11, longs(0x1001, 4) + [1, 2, 3, 4], id: 0), .failed(messageID: 0, .protocolViolation)),
            (success(11, [], id: 0), .failed(messageID: 0, .protocolViolation)),
            (refusal(11, 14, id: 0), .failed(messageID: 0, .badAddress)),
            (refusal(11, 0, id: 0), .failed(messageID: 0, .inputOutput)),
            (success(12, longs(0x1000, 4), id: 0), .unexpected(.unexpectedReply(.writeDMA))),
            (success(11, longs(0x1000, 4), id: 1), .unexpected(.unexpectedReply(.readDMA))),
            (success(9, longs(0x1000, 4), id: 0), .unexpected(.unexpectedReply(.readRegion))),
        ]
        for (answer, outcome) in answers {
            var commands = VFIOUserServerCommands()
            _ = commands.read(VFIOUserDMAAccess(address: 0x1000, count: 4))
            #expect(complete(&commands, answer) == outcome)
        }
    }

    @Test("A write that is answered by a header alone went to the wrong place: old clients do that")
    func oldLayout() {
        var commands = VFIOUserServerCommands()
        _ = [UInt8](repeating: 1, count: 4).withUnsafeBytes { commands.write($0, at: 0) }
        #expect(complete(&commands, success(12, id: 0)) == .failed(messageID: 0, .protocolViolation))
    }

    @Test("An answer that nobody waits for any more is late, once")
    func late() {
        var commands = VFIOUserServerCommands()
        _ = commands.read(VFIOUserDMAAccess(address: 0x1000, count: 1))
        commands.abandon(0)
        #expect(!commands.isWaiting)
        #expect(complete(&commands, success(11, longs(0x1000, 1) + [1], id: 0)) == .late)
        #expect(
            complete(&commands, success(11, longs(0x1000, 1) + [1], id: 0))
                == .unexpected(.unexpectedReply(.readDMA))
        )
    }

    @Test("Numbers are not given twice, and when all are taken there are no more")
    func allNumbers() {
        var commands = VFIOUserServerCommands()
        var ids: Set<UInt16> = []
        for _ in 0..<65536 {
            if let (id, _) = commands.read(VFIOUserDMAAccess(address: 0, count: 1)) { ids.insert(id) }
        }
        #expect(ids.count == 65536)
        #expect(commands.read(VFIOUserDMAAccess(address: 0, count: 1)) == nil)
        _ = complete(&commands, refusal(11, 5, id: 0x1234))
        #expect(commands.read(VFIOUserDMAAccess(address: 0, count: 1))?.messageID == 0x1234)
    }
}
