// The block device, driven through registers and rings.

import DeviceModel
import Testing
import Virtio

@Suite struct BlockTests {
    @Test func configuration_isAsTheSpecificationLaysItOut() throws {
        let fixture = try TestDisk(queueCount: 3)
        let driver = fixture.driver
        // struct virtio_blk_config: offsets from section 5.2.4.
        #expect(driver.configuration(0, .doubleword) == 8192)
        #expect(driver.configuration(12, .word) == 254)
        #expect(driver.configuration(20, .word) == 512)
        #expect(driver.configuration(24, .byte) == 3)
        #expect(driver.configuration(26, .halfword) == 8)
        #expect(driver.configuration(32, .byte) == 1)
        #expect(driver.configuration(34, .halfword) == 3)
        #expect(driver.configuration(36, .word) == 0x20_0000)
        #expect(driver.configuration(40, .word) == 16)
        #expect(driver.configuration(44, .word) == 8)
        #expect(driver.configuration(48, .word) == 0x20_0000)
        #expect(driver.configuration(52, .word) == 16)
        #expect(driver.configuration(56, .byte) == 1)
        #expect(driver.configuration(60, .word) == 0)
        // SEG_MAX 2, BLK_SIZE 6, FLUSH 9, TOPOLOGY 10, CONFIG_WCE 11, MQ 12, DISCARD 13, WRITE_ZEROES 14,
        // INDIRECT_DESC 28, EVENT_IDX 29, VERSION_1 32, ACCESS_PLATFORM 33, RING_PACKED 34, RING_RESET 40.
        #expect(driver.offeredFeatures() == 0x0000_0107_3000_7E44)
    }

    @Test(arguments: [false, true])
    func whatIsWrittenIsInTheFileAndIsReadBack(isIndirect: Bool) throws {
        let fixture = try TestDisk()
        let machine = fixture.machine
        let out = machine.allocate(4096)
        let pattern = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ 5) }
        machine.put(pattern, out)
        // Two pieces, neither of whole blocks.
        let pieces: [DriverBuffer] = [.out(out, 1000), .out(out + 1000, 3096)]
        #expect(try fixture.disk.request(1, sector: 3, pieces, isIndirect: isIndirect) == Outcome(0, 1))
        #expect(fixture.file.content(at: 3 * 512, 4096) == pattern)
        let into = machine.allocate(4096)
        let read: [DriverBuffer] = [.into(into, 7), .into(into + 7, 4089)]
        #expect(try fixture.disk.request(0, sector: 3, read, isIndirect: isIndirect) == Outcome(0, 4097))
        #expect(machine.bytes(4096, into) == pattern)
    }

    @Test func aRequestLongerThanOneLoanGoesThrough() throws {
        let fixture = try TestDisk()
        let machine = fixture.machine
        let count = 3 << 20
        let out = machine.allocate(count)
        var pattern = [UInt8](repeating: 0, count: count)
        // No two blocks are alike.
        for index in stride(from: 0, to: count, by: 509) {
            pattern[index] = UInt8(truncatingIfNeeded: index / 509)
        }
        machine.put(pattern, out)
        #expect(try fixture.disk.request(1, sector: 8, [.out(out, count)]) == Outcome(0, 1))
        #expect(fixture.file.content(at: 4096, count) == pattern)
        let into = machine.allocate(count)
        let result = try fixture.disk.request(0, sector: 8, [.into(into, count)])
        #expect(result == Outcome(0, UInt32(count + 1)))
        #expect(machine.bytes(count, into) == pattern)
    }

    @Test func memoryThatCannotBeLentIsCopied() throws {
        let valve = SlowPort.Valve(page: 0)
        let fixture = try TestDisk { SlowPort($0, valve) }
        let machine = fixture.machine
        let count = 400 * 512
        let out = machine.allocate(count)
        let pattern = (0..<count).map { UInt8(truncatingIfNeeded: $0 / 3) }
        machine.put(pattern, out)
        #expect(try fixture.disk.request(1, sector: 1, [.out(out, count)]) == Outcome(0, 1))
        #expect(fixture.file.content(at: 512, count) == pattern)
        let into = machine.allocate(count)
        #expect(try fixture.disk.request(0, sector: 1, [.into(into, count)]).status == 0)
        #expect(machine.bytes(count, into) == pattern)
    }

    @Test func identification_isTwentyBytesAtMost() throws {
        let fixture = try TestDisk()
        let buffer = fixture.machine.allocate(64)
        fixture.machine.put([UInt8](repeating: 0xAA, count: 64), buffer)
        #expect(try fixture.disk.request(8, sector: 0, [.into(buffer, 20)]) == Outcome(0, 21))
        #expect(fixture.machine.bytes(21, buffer) == Array("serial-0123456789-an".utf8) + [0xAA])
        #expect(try fixture.disk.request(8, sector: 0, [.into(buffer + 32, 4)]) == Outcome(0, 5))
        #expect(fixture.machine.bytes(5, buffer + 32) == Array("seri".utf8) + [0xAA])
    }

    @Test func requestsThatCannotBeAreAnsweredWithAnError() throws {
        let fixture = try TestDisk()
        let data = fixture.machine.allocate(4096)
        let last: UInt64 = 8191
        #expect(try fixture.disk.request(0, sector: last, [.into(data, 512)]).status == 0)
        #expect(try fixture.disk.request(0, sector: last, [.into(data, 1024)]) == Outcome(1, 0))
        #expect(try fixture.disk.request(1, sector: last + 1, [.out(data, 512)]) == Outcome(1, 1))
        #expect(try fixture.disk.request(0, sector: 0, [.into(data, 100)]).status == 1)
        #expect(try fixture.disk.request(1, sector: 0, [.out(data, 513)]).status == 1)
        #expect(try fixture.disk.request(0, sector: .max, [.into(data, 512)]).status == 1)
        #expect(try fixture.disk.request(0, sector: 1 << 55, [.into(data, 512)]).status == 1)
        #expect(try fixture.disk.request(2, sector: 0).status == 2)
        #expect(try fixture.disk.request(.max, sector: 0).status == 2)
        #expect(fixture.block.statistics["errors"] == 8)
        #expect(!fixture.needsReset)
    }

    @Test func flushIsAnsweredAndCounts() throws {
        let fixture = try TestDisk()
        #expect(try fixture.disk.request(4, sector: 0) == Outcome(0, 1))
        #expect(fixture.block.statistics["requests"] == 1)
    }

    /// virtio_blk_discard_write_zeroes: le64 sector, le32 num_sectors, le32 flags.
    private func segment(_ sector: UInt64, _ count: UInt64, flags: UInt64) -> [UInt8] {
        little(sector, 8) + little(count, 4) + little(flags, 4)
    }

    @Test(arguments: [UInt32(11), 13])
    func clearedBlocksReadAsZeros(type: UInt32) throws {
        let fixture = try TestDisk()
        let data = fixture.machine.allocate(16384)
        fixture.machine.put([UInt8](repeating: 0x5A, count: 16384), data)
        #expect(try fixture.disk.request(1, sector: 0, [.out(data, 16384)]).status == 0)
        let segments = fixture.machine.allocate(32)
        fixture.machine.put(segment(1, 2, flags: 0) + segment(16, 8, flags: type == 13 ? 1 : 0), segments)
        #expect(try fixture.disk.request(type, sector: 0, [.out(segments, 32)]) == Outcome(0, 1))
        var expected = [UInt8](repeating: 0x5A, count: 16384)
        for index in 512..<1536 { expected[index] = 0 }
        for index in 8192..<12288 { expected[index] = 0 }
        #expect(fixture.file.content(at: 0, 16384) == expected)
    }

    @Test func clearingIsRefusedWhereItIsNotAsTheSpecificationHasIt() throws {
        let fixture = try TestDisk()
        let place = fixture.machine.allocate(17 * 16)
        func status(_ type: UInt32, _ bytes: [UInt8]) throws -> UInt8 {
            fixture.machine.put(bytes, place)
            return try fixture.disk.request(type, sector: 0, [.out(place, bytes.count)]).status
        }
        #expect(try status(11, segment(0, 1, flags: 1)) == 2)
        #expect(try status(13, segment(0, 1, flags: 2)) == 2)
        #expect(try status(11, segment(8191, 2, flags: 0)) == 1)
        #expect(try status(13, segment(.max, 1, flags: 0)) == 1)
        #expect(try status(13, segment(0, 0x20_0001, flags: 0)) == 1)
        #expect(try status(11, Array(segment(0, 1, flags: 0).dropLast())) == 1)
        #expect(try status(11, (0..<17).flatMap { _ in segment(0, 1, flags: 0) }) == 1)
        #expect(try fixture.disk.request(11, sector: 0).status == 1)
    }

    @Test func readOnlyDisk_saysSoAndRefusesEveryChange() throws {
        let fixture = try TestDisk(isReadOnly: true)
        // RO is feature 5; DISCARD 13 and WRITE_ZEROES 14 are not offered.
        #expect(fixture.driver.offeredFeatures() & 0x6020 == 0x20)
        let data = fixture.machine.allocate(512)
        #expect(try fixture.disk.request(0, sector: 0, [.into(data, 512)]).status == 0)
        #expect(try fixture.disk.request(1, sector: 0, [.out(data, 512)]).status == 1)
        fixture.machine.put(segment(0, 1, flags: 0), data)
        #expect(try fixture.disk.request(13, sector: 0, [.out(data, 16)]).status == 1)
    }

    @Test func writeBack_isTheDriversToSwitchWhereItNegotiatedThat() throws {
        let fixture = try TestDisk()
        fixture.driver.setConfiguration(0, 32, .byte)
        #expect(fixture.driver.configuration(32, .byte) == 0)
        let data = fixture.machine.allocate(512)
        #expect(try fixture.disk.request(1, sector: 0, [.out(data, 512)]) == Outcome(0, 1))
        try fixture.driver.start(features: ~(1 << 11), queues: 1)
        #expect(fixture.driver.configuration(32, .byte) == 1)
        fixture.driver.setConfiguration(0, 32, .byte)
        #expect(fixture.driver.configuration(32, .byte) == 1)
    }

    @Test func queuesServeTheirOwnRequests() throws {
        let fixture = try TestDisk(queueCount: 4)
        let disks = fixture.queues.enumerated().map { DiskDriver(fixture.driver, $1, index: $0) }
        let buffers = disks.indices.map { index in
            let buffer = fixture.machine.allocate(512)
            fixture.machine.put([UInt8](repeating: UInt8(index + 1), count: 512), buffer)
            return buffer
        }
        for (index, disk) in disks.enumerated() {
            disk.add(1, sector: UInt64(index), [.out(buffers[index], 512)])
        }
        for index in disks.indices { fixture.driver.notify(index) }
        for disk in disks { _ = try disk.queue.await() }
        for index in disks.indices {
            #expect(
                fixture.file.content(at: 512 * index, 512) == [UInt8](repeating: UInt8(index + 1), count: 512)
            )
        }
    }

    @Test func aBufferThatFaultsFailsItsRequestAndNoOther() throws {
        let fixture = try TestDisk()
        let outcome = try fixture.disk.request(0, sector: 0, [.into(TestMachine.nowhere, 512)])
        #expect(outcome == Outcome(1, 0))
        #expect(fixture.block.statistics["dma-faults"] == 1)
        #expect(!fixture.needsReset)
        #expect(try fixture.disk.request(4, sector: 0).status == 0)
    }
}
