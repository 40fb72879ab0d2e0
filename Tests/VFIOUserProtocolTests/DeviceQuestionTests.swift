// What a device is said to be: the cases of the reference library's suite, and those that it lacks.

import Testing

@testable import VFIOUserProtocol

@Suite("Questions about the device are answered from its description")
struct DeviceQuestionTests {
    private func answer(
        _ number: UInt16,
        _ payload: [UInt8],
        _ device: VFIOUserDeviceDescription = .sample,
        json: String? = nil
    ) -> VFIOUserServerAction {
        var session = VFIOUserServerSession.serving(device, json: json)
        return session.answer(command(number, payload))
    }

    private func expectRefusal(_ number: UInt16, _ payload: [UInt8], _ error: UInt32 = einval) {
        #expect(answer(number, payload) == .send(refusal(number, error), attaching: .none))
    }

    @Test("DEVICE_GET_INFO: flags, 9 regions, 5 interrupts, whatever room there is beyond 16 bytes")
    func deviceInfo() {
        let reply = VFIOUserServerAction.send(success(4, words(16, 3, 9, 5)), attaching: .none)
        #expect(answer(4, words(16, 0, 0, 0)) == reply)
        #expect(answer(4, words(32, 0, 0, 0)) == reply)
        #expect(answer(4, words(16, 0, 0, 0) + [UInt8](repeating: 1, count: 100)) == reply)
        expectRefusal(4, [])
        expectRefusal(4, Array(words(16, 0, 0, 0).dropLast()))
        expectRefusal(4, words(8, 0, 0, 0))
    }

    @Test("DEVICE_GET_IRQ_INFO: counts and flags; a kind that is not there has none")
    func interruptInfo() {
        let reply = { (words: [UInt8]) in VFIOUserServerAction.send(success(7, words), attaching: .none) }
        #expect(answer(7, words(16, 0, 0, 0)) == reply(words(16, 7, 0, 1)))
        #expect(answer(7, words(16, 0, 1, 0)) == reply(words(16, 0, 1, 0)))
        #expect(answer(7, words(64, 9, 2, 9)) == reply(words(16, 1, 2, 2048)))
        #expect(answer(7, words(16, 0, 3, 0)) == reply(words(16, 1, 3, 1)))
        #expect(answer(7, words(16, 0, 4, 0)) == reply(words(16, 1, 4, 1)))
        expectRefusal(7, words(16, 0, 5, 0))
        expectRefusal(7, words(16, 0, 0xffff_ffff, 0))
        expectRefusal(7, words(8, 0, 0, 0))
        expectRefusal(7, words(16, 0, 0))
    }

    @Test(
        "DEVICE_GET_REGION_INFO of a sparse region: first how much room it needs, then all and one descriptor"
    )
    func sparseRegion() {
        let short = words(80, 7, 0, 0) + longs(0x8000, 0x10000)
        #expect(answer(5, words(32, 0, 0, 0) + longs(0, 0)) == .send(success(5, short), attaching: .none))
        #expect(answer(5, words(79, 0, 0, 0) + longs(0, 0)) == .send(success(5, short), attaching: .none))
        let full =
            words(80, 15, 0, 32) + longs(0x8000, 0x10000)
            + hex("0100 0100 00000000 02000000 00000000") + longs(0x1000, 0x1000, 0x4000, 0x2000)
        #expect(full.count == 80)
        #expect(answer(5, words(80, 0, 0, 0) + longs(0, 0)) == .send(success(5, full), attaching: .region(0)))
        let roomy = words(4064, 0, 0, 0) + [UInt8](repeating: 0, count: 4048)
        #expect(answer(5, roomy) == .send(success(5, full), attaching: .region(0)))
    }

    @Test("DEVICE_GET_REGION_INFO of a wholly mappable region needs 32 bytes")
    func wholeRegion() {
        let reply = words(32, 7, 1, 0) + longs(0x1000, 0)
        #expect(
            answer(5, words(32, 0, 1, 0) + longs(0, 0)) == .send(success(5, reply), attaching: .region(1))
        )
    }

    @Test("DEVICE_GET_REGION_INFO of plain, read-only and absent regions")
    func plainRegions() {
        let ask = { (index: UInt32) in self.answer(5, words(32, 0, index, 0) + longs(0, 0)) }
        let reply = { (bytes: [UInt8]) in VFIOUserServerAction.send(success(5, bytes), attaching: .none) }
        #expect(ask(7) == reply(words(32, 3, 7, 0) + longs(0x1000, 0)))
        #expect(ask(6) == reply(words(32, 1, 6, 0) + longs(0x800, 0)))
        #expect(ask(3) == reply(words(32, 0, 3, 0) + longs(0, 0)))
        #expect(ask(8) == reply(words(32, 0, 8, 0) + longs(0, 0)))
        expectRefusal(5, words(32, 0, 9, 0) + longs(0, 0))
        expectRefusal(5, words(32, 0, 0xffff_ffff, 0) + longs(0, 0))
        expectRefusal(5, words(8, 0, 0, 0) + longs(0, 0))
        expectRefusal(5, Array((words(32, 0, 0, 0) + longs(0, 0)).dropLast()))
    }

    @Test(
        "DEVICE_GET_REGION_IO_FDS: the entries where there is room, and never more descriptors than the client takes"
    )
    func ioDescriptors() {
        let entries =
            longs(0x10, 4) + words(0, 0, 0, 0) + longs(0) + longs(0x20, 2) + words(1, 0, 1, 0) + longs(3)
        let json = #"{"capabilities":{"max_msg_fds":8}}"#
        let ask = { (index: UInt32, argsz: UInt32, json: String?) in
            self.answer(6, words(argsz, 0, index, 0), json: json)
        }
        #expect(
            ask(2, 96, json)
                == .send(success(6, words(96, 0, 2, 2) + entries), attaching: .ioEvents(region: 2, count: 2))
        )
        #expect(ask(2, 16, json) == .send(success(6, words(96, 0, 2, 0)), attaching: .none))
        #expect(
            ask(2, 96, nil)
                == .send(
                    success(6, words(56, 0, 2, 1) + entries.prefix(40)),
                    attaching: .ioEvents(region: 2, count: 1)
                )
        )
        #expect(ask(7, 16, nil) == .send(success(6, words(16, 0, 7, 0)), attaching: .none))
        for bad in [
            words(96, 1, 2, 0), words(96, 0, 2, 1), words(8, 0, 2, 0), words((1 << 20) + 1, 0, 2, 0),
            words(96, 0, 512, 0), words(96, 0, 3, 0), words(96, 0, 2),
        ] { expectRefusal(6, bad) }
    }

    @Test(
        "DEVICE_FEATURE: nonsense is EINVAL, what nobody has is ENOTTY",
        arguments: [
            ([], 22), (words(8), 22), (words(7, 0x1_0001), 22), (words(8, 1), 22), (words(8, 0x3_0001), 22),
            (words(8, 0x8_0001), 22), (words(16, 0x1_0001), 25), (words(16, 0x2_0002), 25),
            (words(16, 0x5_0001), 25), (words(16, 0x7_0001), 25), (words(32, 0x2_0006), 25),
            (words(32, 0x1_ffff), 25),
        ] as [([UInt8], UInt32)]
    )
    func features(_ payload: [UInt8], _ error: UInt32) {
        expectRefusal(16, payload, error)
    }

    @Test("Migration data is not supported, and says so", arguments: [17, 18])
    func migration(_ number: UInt16) {
        expectRefusal(number, words(8, 4096), 95)
        expectRefusal(number, words(8), 22)
    }
}
