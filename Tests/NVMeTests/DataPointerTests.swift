// PRPs and SGLs: where bytes land, and what malformed lists end with.

import NVMe
import Testing

@Suite struct DataPointerTests {
    let machine: TestMachine
    let driver: TestDriver
    let pair: TestQueuePair
    let data = TestDriver.buffer
    let list = TestDriver.buffer + 0x40_0000
    /// What the image holds.
    let content = DataPointerTests.content
    static let content = (0..<1 << 20).map { UInt8(truncatingIfNeeded: $0 ^ $0 >> 8 &* 7) }

    init() throws {
        machine = try TestMachine()
        machine.file.fill(content, at: 0)
        driver = TestDriver(machine)
        pair = driver.createQueues(1)
    }

    private func read(_ count: UInt32, _ prp1: UInt64, _ prp2: UInt64 = 0) -> TestCompletion {
        pair.execute(TestDriver.transfer(2, block: 0, count: count, prp1, prp2))
    }

    // MARK: PRPs

    @Test(arguments: [0, 4, 512, 3584, 4092] as [UInt64])
    func twoPRPsCoverTwoPagesFromAnyOffset(offset: UInt64) {
        let second = data + 0x8000
        let first = 4096 - offset
        #expect(read(8, data + offset, second).status == 0)
        #expect(machine.holds(content[..<Int(first)], at: data + offset))
        if offset > 0 {
            #expect(machine.holds(content[Int(first)..<4096], at: second))
        }
    }

    @Test(arguments: [0, 8, 2048, 4080, 4088] as [UInt64])
    func listsFromAnyOffsetLeadToFurtherLists(offset: UInt64) {
        // 257 pages with the first at an offset of 512 bytes, which is MDTS: every second page, backwards.
        func page(_ index: Int) -> UInt64 { data + UInt64(256 - index) * 8192 }
        var place = list + offset
        var next = list + 0x1_0000
        for index in 1...256 {
            if place & 4095 == 4088, index < 256 {
                machine.store64(next, place)
                place = next
                next += 0x1_0000
            }
            machine.store64(page(index), place)
            place += 8
        }
        #expect(read(2048, page(0) + 512, list + offset).status == 0)
        #expect(machine.holds(content[..<3584], at: page(0) + 512))
        for index in 1..<256 {
            let start = 3584 + (index - 1) * 4096
            #expect(machine.holds(content[start..<start + 4096], at: page(index)))
        }
        #expect(machine.holds(content[(1 << 20) - 512..<1 << 20], at: page(256)))
    }

    @Test func pagesOf64KiBAreCountedAsSuch() throws {
        let machine = try TestMachine()
        machine.file.fill(content, at: 0)
        let driver = TestDriver(machine, memoryPageSize: 4)
        let pair = TestQueuePair(machine, id: 1, entryCount: 64, at: TestMachine.ramBase + 0x40_0000)
        let size: UInt32 = 63 << 16 | 1
        let completions = TestCommand(0x05).prp1(pair.completionBase).with(10, size).with(11, 1)
        #expect(driver.admin.execute(completions).status == 0)
        let commands = TestCommand(0x01).prp1(pair.submissionBase).with(10, size).with(11, 1 | 1 << 16)
        #expect(driver.admin.execute(commands).status == 0)
        let command = TestDriver.transfer(2, block: 0, count: 248, data + 0x1000, data + 0x4_0000)
        #expect(pair.execute(command).status == 0)
        #expect(machine.holds(content[..<0xF000], at: data + 0x1000))
        #expect(machine.holds(content[0xF000..<0x1_F000], at: data + 0x4_0000))
        let misplaced = TestDriver.transfer(2, block: 0, count: 256, data + 0x1000, data + 0x1000)
        #expect(pair.execute(misplaced).status == 0x013)
    }

    @Test func misplacedPRPsAreInvalid() {
        #expect(read(1, data + 1).status == 0x013)
        #expect(read(1, data + 2).status == 0x013)
        #expect(read(16, data, data + 0x1008).status == 0x013)
        // A list at no multiple of 8, one whose entry has an offset, one that leads to an offset.
        #expect(read(24, data, list + 4).status == 0x013)
        machine.store64(data + 0x1000, list)
        machine.store64(data + 0x2200, list + 8)
        #expect(read(24, data, list).status == 0x013)
        machine.store64(list + 0x1008, list + 4088)
        #expect(read(24, data, list + 4088).status == 0x013)
    }

    @Test func aListThatLeadsToItselfEnds() {
        // Each page of it is read, and holds 511 pages of data: the transfer ends before the list.
        for index in 0..<511 { machine.store64(data, list + UInt64(index) * 8) }
        machine.store64(list, list + 4088)
        #expect(read(2048, data, list + 4088).status == 0)
        #expect(machine.holds(content[(1 << 20) - 4096..<(1 << 20) - 3584], at: data))
    }

    @Test func memoryThatIsNotThereIsADataTransferError() {
        for completion in [
            read(1, 0x1000), read(16, data, 0x1000), read(24, data, 0x1000), read(1, 0xFFFF_FFFF_FFFF_F000),
        ] {
            #expect(completion.status == 0x004)
            #expect(!completion.isPermanent)
        }
        let write = pair.execute(TestDriver.transfer(1, block: 0, count: 16, data, 0x1000))
        #expect(write.status == 0x004)
        // The queues live on.
        #expect(read(1, data).status == 0)
        #expect(machine.read32(0x1C) == 1)
    }

    @Test func dataForRegistersIsCopiedInWords() {
        // No memory can be lent of a register window.
        #expect(read(1, TestMachine.doorbellBase).status == 0)
        let words: [UInt32] = content[..<512].withUnsafeBytes { bytes in
            (0..<64).map { UInt32(littleEndian: bytes.load(fromByteOffset: $0 * 8, as: UInt32.self)) }
        }
        // The bus writes doublewords, of which the window keeps the low halves.
        #expect(machine.doorbell.received == words)
    }

    // MARK: SGLs

    /// struct nvme_sgl_desc of Linux: address, length, type in the top nibble of the last byte.
    private func describe(_ address: UInt64, _ length: UInt32, _ type: UInt8, at place: UInt64) {
        machine.store64(address, place)
        machine.store64(UInt64(length) | UInt64(type) << 56, place + 8)
    }

    private func readSGL(_ count: UInt32, _ address: UInt64, _ length: UInt32, _ type: UInt8)
        -> TestCompletion
    {
        let command = TestDriver.transfer(2, block: 0, count: count, address)
        return pair.execute(command.with(0, 0x4002).with(8, length).with(9, UInt32(type) << 24))
    }

    @Test func oneDataBlockIsAllOfIt() {
        #expect(readSGL(8, data + 3, 4096, 0x00).status == 0)
        #expect(machine.holds(content[..<4096], at: data + 3))
    }

    @Test func segmentsLeadToTheLast() {
        describe(data + 0x9001, 100, 0x00, at: list)
        describe(data, 3996, 0x00, at: list + 16)
        describe(list + 0x800, 48, 0x30, at: list + 32)
        describe(0, 0, 0x00, at: list + 0x800)
        describe(data + 0x4000, 512, 0x00, at: list + 0x810)
        describe(data + 0x2000, 3584, 0x00, at: list + 0x820)
        #expect(readSGL(16, list, 48, 0x20).status == 0)
        #expect(machine.holds(content[..<100], at: data + 0x9001))
        #expect(machine.holds(content[100..<4096], at: data))
        #expect(machine.holds(content[4096..<4608], at: data + 0x4000))
        #expect(machine.holds(content[4608..<8192], at: data + 0x2000))
    }

    @Test func aSegmentOfManyDescriptorsIsReadInPieces() {
        for index in 0..<2048 {
            describe(data + UInt64(2047 - index) * 1024, 512, 0x00, at: list + UInt64(index) * 16)
        }
        #expect(readSGL(2048, list, 2048 * 16, 0x30).status == 0)
        for index in [0, 1, 255, 256, 2047] {
            let expected = content[index * 512..<(index + 1) * 512]
            #expect(machine.holds(expected, at: data + UInt64(2047 - index) * 1024))
        }
    }

    @Test func malformedSGLsEndWithTheStatusOfTheirFault() {
        // Lengths that are not the data's.
        #expect(readSGL(8, data, 4095, 0x00).status == 0x00F)
        #expect(readSGL(8, data, 4097, 0x00).status == 0x00F)
        #expect(readSGL(8, data, .max, 0x00).status == 0x00F)
        // Bit bucket, keyed, and a sub type.
        #expect(readSGL(8, data, 4096, 0x10).status == 0x011)
        #expect(readSGL(8, data, 4096, 0x40).status == 0x011)
        #expect(readSGL(8, data, 4096, 0x01).status == 0x011)
        // Segments of no length, of half a descriptor, of far too many.
        #expect(readSGL(8, list, 0, 0x30).status == 0x00D)
        #expect(readSGL(8, list, 24, 0x30).status == 0x00D)
        #expect(readSGL(8, list, 0xFFFF_FFF0, 0x30).status == 0x00E)
        // A pointer that is not last, one in the last segment, and a segment without one.
        describe(list + 0x100, 16, 0x30, at: list)
        describe(data, 4096, 0x00, at: list + 16)
        #expect(readSGL(8, list, 32, 0x20).status == 0x00D)
        #expect(readSGL(8, list, 16, 0x30).status == 0x00D)
        describe(data, 4096, 0x00, at: list)
        #expect(readSGL(8, list, 16, 0x20).status == 0x00D)
        // PSDT 11b.
        #expect(
            pair.execute(TestDriver.transfer(2, block: 0, count: 1, data).with(0, 0xC002)).status == 0x002
        )
        #expect(readSGL(8, 0x1000, 16, 0x30).status == 0x004)
    }

    @Test func segmentsWithoutEndAreCutOff() {
        describe(0, 0, 0x00, at: list)
        describe(list, 32, 0x20, at: list + 16)
        #expect(readSGL(8, list, 32, 0x20).status == 0x00E)
    }
}
