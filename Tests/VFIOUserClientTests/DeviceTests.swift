// What a client asks of a device, and which answers it takes.

import CLinux
import Glibc
import Testing
import VFIOUserClient

/// Region information of two mappable areas, at 0x10000 of the descriptor's file.
private let sparse: [UInt8] =
    words(80, 15, 0, 32) + longs(0x8000, 0x1_0000) + le(UInt16(1)) + le(UInt16(1)) + words(0, 2, 0)
    + longs(0x1000, 0x1000, 0x4000, 0x2000)

@Suite("Asking what a device is")
struct DeviceTests {
    @Test("Device, regions and interrupts: what goes out and what comes back, byte for byte")
    func questions() throws {
        try withServer { server in
            try server.expect(command(4, words(16, 0, 0, 0), id: 0))
            try server.send(success(4, words(16, 3, 9, 5), id: 0))
            try server.expect(command(5, words(32, 0, 7, 0) + longs(0, 0), id: 1))
            try server.send(success(5, words(32, 3, 7, 0) + longs(4096, 0), id: 1))
            try server.expect(command(5, words(32, 0, 6, 0) + longs(0, 0), id: 2))
            try server.send(success(5, words(32, 0, 6, 0) + longs(0, 0), id: 2))
            try server.expect(command(7, words(16, 0, 2, 0), id: 3))
            try server.send(success(7, words(16, 9, 2, 2048), id: 3))
            try server.expect(command(7, words(16, 0, 0, 0), id: 4))
            try server.send(success(7, words(16, 7, 0, 1), id: 4))
            try server.expect(command(13, id: 5))
            try server.send(success(13, id: 5))
        } client: { client in
            let info = try client.deviceInfo()
            #expect(info.canReset && info.isPCI && info.regionCount == 9 && info.interruptKindCount == 5)
            let space = try client.region(.configuration)
            #expect(space.byteCount == 4096 && space.isReadable && space.isWritable)
            #expect(space.mappableAreas.isEmpty)
            #expect(try client.region(.rom).byteCount == 0)
            let msix = try client.interrupts(.msix)
            #expect(msix.vectorCount == 2048 && msix.isEventfd && !msix.isMaskable && !msix.isResizable)
            let intx = try client.interrupts(.intx)
            #expect(intx.vectorCount == 1 && intx.isMaskable && intx.isAutomasked && intx.isResizable)
            try client.reset()
        }
    }

    @Test("Region information in two steps, mapped without a descriptor in the first")
    func twoSteps() throws {
        try withServer { server in
            let file = smmud_memfd_create_sealed("bar", 0x18000)
            defer { close(file) }
            var word: UInt32 = 0x1234_5678
            pwrite(file, &word, 4, 0x1_4010)
            try server.expect(command(5, words(32, 0, 0, 0) + longs(0, 0), id: 0))
            try server.send(success(5, words(80, 7, 0, 0) + longs(0x8000, 0x1_0000), id: 0))
            try server.expect(command(5, words(80, 0, 0, 0) + longs(0, 0), id: 1))
            try server.send(success(5, sparse, id: 1), descriptors: [file])
            try server.expect(command(9, longs(0) + words(0, 0), id: 2))
            pread(file, &word, 4, 0x1_5ffc)
            guard word == 0xcafe else { throw ScriptError(description: "\(word)") }
            try server.send(success(9, id: 2))
        } client: { client in
            let areas = try client.mapRegion(.bar(0))
            #expect(areas.map(\.area.offset) == [0x1000, 0x4000])
            #expect(areas.map(\.byteCount) == [0x1000, 0x2000])
            #expect(try areas[1].load(at: 0x10, as: UInt32.self) == 0x1234_5678)
            try areas[1].store(UInt32(0xcafe), at: 0x1ffc)
            guard case .invalid? = failure({ try areas[1].store(UInt32(0), at: 0x1ffd) }) else {
                Issue.record("wrote beyond the area")
                return
            }
            // An access of no bytes, answered with a header alone: the file has been written by then.
            #expect(try client.read(0, of: .bar(0), at: 0) == [])
        }
    }

    @Test("A region that is mapped whole, and one whose server gives no descriptor")
    func wholeRegion() throws {
        try withServer { server in
            let file = smmud_memfd_create_sealed("bar", 0x1000)
            defer { close(file) }
            for id in [0, 1] as [UInt16] {
                try server.expect(command(5, words(32, 0, 2, 0) + longs(0, 0), id: id))
                try server.send(
                    success(5, words(32, 7, 2, 0) + longs(0x1000, 0), id: id),
                    descriptors: id == 0 ? [file] : []
                )
            }
        } client: { client in
            let areas = try client.mapRegion(.bar(2))
            #expect(areas.map(\.area) == [VFIOUserClient.MappableArea(offset: 0, byteCount: 0x1000)])
            #expect(try client.mapRegion(.bar(2)).isEmpty)
        }
    }

    @Test("A server that truncates what it shares: zeros and a flag, and the process lives")
    func truncation() throws {
        try withServer { server in
            let file = smmud_memfd_create_unsealed("bar", 0x1000)
            defer { close(file) }
            var word: UInt32 = 7
            pwrite(file, &word, 4, 0)
            try server.expect(command(5, words(32, 0, 0, 0) + longs(0, 0), id: 0))
            try server.send(success(5, words(32, 7, 0, 0) + longs(0x1000, 0), id: 0), descriptors: [file])
            try server.expect(command(13, id: 1))
            ftruncate(file, 0)
            try server.send(success(13, id: 1))
        } client: { client in
            let area = try #require(try client.mapRegion(.bar(0)).first)
            #expect(try area.load(at: 0, as: UInt32.self) == 7)
            #expect(!area.isLost)
            try client.reset()
            #expect(try area.load(at: 0, as: UInt32.self) == 0)
            #expect(area.isLost)
        }
    }

    @Test("A descriptor that is no memory is refused, and closed")
    func noMemory() throws {
        let pipe = try Pipe()
        try withServer { server in
            try server.expect(command(5, words(32, 0, 0, 0) + longs(0, 0), id: 0))
            try server.send(
                success(5, words(32, 7, 0, 0) + longs(0x1000, 0), id: 0),
                descriptors: [pipe.writingEnd]
            )
        } client: { client in
            guard case .local? = failure({ _ = try client.mapRegion(.bar(0)) }) else {
                Issue.record("mapped a pipe")
                return
            }
            #expect(pipe.waitUntilClosed())
        }
    }

    @Test(
        "Region information that contradicts itself",
        arguments: [
            // Short; another region; less than its own size; capabilities that are not there.
            [words(32, 7, 0, 0)], [words(32, 7, 1, 0) + longs(0x1000, 0)],
            [words(31, 7, 0, 0) + longs(0x1000, 0)], [words(32, 15, 0, 32) + longs(0x1000, 0)],
            // More than anybody has; an answer that grows.
            [words(0xffff_ffff, 15, 0, 32) + longs(0x1000, 0)],
            [words(40, 7, 0, 0) + longs(0x8000, 0), words(48, 7, 0, 0) + longs(0x8000, 0)],
            // A chain that ends in itself, that runs out, that goes backwards.
            [
                words(48, 7, 0, 0) + longs(0x8000, 0),
                words(48, 15, 0, 32) + longs(0x8000, 0) + le(UInt16(3)) + le(UInt16(1)) + words(32, 0, 0),
            ],
            [
                words(48, 7, 0, 0) + longs(0x8000, 0),
                words(48, 15, 0, 32) + longs(0x8000, 0) + le(UInt16(3)) + le(UInt16(1)) + words(4096, 0, 0),
            ],
            [words(48, 7, 0, 0) + longs(0x8000, 0), words(48, 15, 0, 8) + longs(0x8000, 0, 0, 0)],
            // Areas beyond the region, of no bytes, that leave 64 bits, more than there are.
            [words(80, 7, 0, 0) + longs(0x8000, 0), words(80, 15, 0, 32) + longs(0x5fff, 0) + sparse[32...]],
            [
                words(80, 7, 0, 0) + longs(0x8000, 0),
                Array(sparse[..<48]) + longs(0x1000, 0, 0x4000, 0x2000),
            ],
            [
                words(80, 7, 0, 0) + longs(0x8000, 0),
                Array(sparse[..<48]) + longs(0xffff_ffff_ffff_f000, 0x1000, 0x4000, 0xffff_ffff_ffff_f000),
            ],
            [
                words(80, 7, 0, 0) + longs(0x8000, 0),
                Array(sparse[..<40]) + words(0xffff_ffff, 0) + longs(0, 1, 0, 1),
            ],
        ]
    )
    func badRegions(_ payloads: [[UInt8]]) throws {
        try withServer { server in
            for (index, payload) in payloads.enumerated() {
                _ = try server.receive(48)
                try server.send(success(5, payload, id: UInt16(index)))
            }
            // The connection goes on.
            try server.expect(command(13, id: UInt16(payloads.count)))
            try server.send(success(13, id: UInt16(payloads.count)))
        } client: { client in
            #expect(isViolation(failure { _ = try client.region(.bar(0)) }))
            try client.reset()
        }
    }

    @Test("Two descriptors for one region are one too many; both are closed")
    func twoDescriptors() throws {
        let pipes = [try Pipe(), try Pipe()]
        try withServer { server in
            _ = try server.receive(48)
            try server.send(
                success(5, words(32, 7, 0, 0) + longs(0x1000, 0), id: 0),
                descriptors: pipes.map(\.writingEnd)
            )
        } client: { client in
            #expect(isViolation(failure { _ = try client.region(.bar(0)) }))
            for pipe in pipes { #expect(pipe.waitUntilClosed()) }
        }
    }

    @Test("Answers to other questions that contradict themselves")
    func contradictions() throws {
        let answers: [(UInt16, [UInt8])] = [
            (4, words(16, 3, 9)), (4, words(16, 2, 1025, 5)), (4, words(16, 2, 9, 257)),
            (7, words(16, 1, 1, 1)), (7, words(16, 1, 2)),
        ]
        try withServer { server in
            for (index, (number, payload)) in answers.enumerated() {
                _ = try server.receive(32)
                try server.send(success(number, payload, id: UInt16(index)))
            }
        } client: { client in
            for (number, payload) in answers {
                let error = failure {
                    if number == 4 { _ = try client.deviceInfo() } else { _ = try client.interrupts(.msix) }
                }
                #expect(isViolation(error), "\(payload)")
            }
        }
    }

    @Test("A server's error is its number, and one without a number is EIO")
    func errors() throws {
        try withServer { server in
            for (index, number) in ([22, 95, 0] as [UInt32]).enumerated() {
                _ = try server.receive(32)
                try server.send(refusal(4, number, id: UInt16(index)))
            }
        } client: { client in
            for number in [22, 95, 5] as [Int32] {
                let error = failure { _ = try client.deviceInfo() }
                #expect(error == .failed(command: "DEVICE_GET_INFO", errno: number))
            }
        }
    }

    @Test("ioeventfds in entries of 40 bytes and of 48, sharing descriptors, and without")
    func ioEvents() throws {
        for stride in [40, 48] {
            let size = UInt32(16 + 3 * stride)
            let padding = [UInt8](repeating: 0, count: stride - 40)
            try withServer { server in
                let event = smmud_eventfd()
                defer { close(event) }
                try server.expect(command(6, words(16, 0, 2, 0), id: 0))
                // The reference library counts entries that it leaves out.
                try server.send(success(6, words(size, 0, 2, stride == 48 ? 3 : 0), id: 0))
                try server.expect(command(6, words(size, 0, 2, 0), id: 1))
                let entries = ([(0x10, 0), (0x20, 0), (0x30, 0xffff_ffff)] as [(UInt64, UInt32)]).flatMap {
                    longs($0.0, 4) + words($0.1, 0, 0, 0) + longs(0) + padding
                }
                try server.send(success(6, words(size, 0, 2, 3) + entries, id: 1), descriptors: [event])
                try server.expect(command(13, id: 2))
                var count: UInt64 = 0
                guard read(event, &count, 8) == 8, count == 2 else {
                    throw ScriptError(description: "\(count)")
                }
                try server.send(success(13, id: 2))
            } client: { client in
                let events = try client.ioEvents(of: .bar(2))
                #expect(events.map(\.offset) == [0x10, 0x20, 0x30])
                #expect(events.map { $0.event != nil } == [true, true, false])
                events[0].event?.signal()
                events[1].event?.signal()
                try client.reset()
            }
        }
    }

    @Test("ioeventfds whose descriptor did not come, or of which there are absurdly many")
    func badIOEvents() throws {
        try withServer { server in
            _ = try server.receive(32)
            try server.send(success(6, words(56, 0, 0, 0), id: 0))
            _ = try server.receive(32)
            try server.send(
                success(6, words(56, 0, 0, 1) + longs(0, 4) + words(0, 0, 0, 0) + longs(0), id: 1)
            )
            _ = try server.receive(32)
            try server.send(success(6, words(0x7fff_ffff, 0, 0, 0), id: 2))
        } client: { client in
            #expect(isViolation(failure { _ = try client.ioEvents(of: .bar(0)) }))
            #expect(isViolation(failure { _ = try client.ioEvents(of: .bar(0)) }))
        }
    }

    @Test("Features and migration data are passed through")
    func features() throws {
        try withServer { server in
            // GET of feature 1 (migration), with room for 8 bytes of data.
            try server.expect(command(16, words(16, 0x1_0001), id: 0))
            try server.send(success(16, words(16, 0x1_0001) + longs(5), id: 0))
            try server.expect(command(17, words(12, 4), id: 1))
            try server.send(success(17, words(11, 3) + [1, 2, 3], id: 1))
            try server.expect(command(18, words(10, 2) + [8, 9], id: 2))
            try server.send(success(18, id: 2))
            // Another feature; less than a header; more data than it says.
            _ = try server.receive(24)
            try server.send(success(16, words(8, 0x1_0002), id: 3))
            _ = try server.receive(24)
            try server.send(success(16, words(8), id: 4))
            _ = try server.receive(24)
            try server.send(success(17, words(8, 5) + [1, 2, 3, 4, 5], id: 5))
        } client: { client in
            #expect(try client.feature(1, .get, replyByteCountMax: 8) == [5, 0, 0, 0, 0, 0, 0, 0])
            #expect(try client.readMigrationData(4) == [1, 2, 3])
            try client.writeMigrationData([8, 9])
            #expect(isViolation(failure { _ = try client.feature(1, .get) }))
            #expect(isViolation(failure { _ = try client.feature(1, .get) }))
            #expect(isViolation(failure { _ = try client.readMigrationData(4) }))
        }
    }
}
