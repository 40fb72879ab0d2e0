// The network device: frames in and out, over a loop, a datagram socket and a stream.

import DeviceModel
import Glibc
import PCIFunction
import Synchronization
import Testing
import Virtio

/// A started network device.
final class NetDriver {
    let driver: PCIDriver
    let machine: TestMachine
    let net: VirtioNet
    let receive: DriverQueue
    let transmit: DriverQueue

    init(
        _ machine: TestMachine,
        _ backend: any NetBackend,
        features: UInt64 = .max,
        mtu: UInt16 = 1500,
        isPacked: Bool = false
    )
        throws
    {
        self.machine = machine
        net = VirtioNet(backend: backend, address: try #require(MACAddress("52:54:00:12:34:56")), mtu: mtu)
        driver = try PCIDriver(machine, net)
        let queues = try driver.start(features: features, queues: 2, size: 64, isPacked: isPacked)
        (receive, transmit) = (queues[0], queues[1])
    }

    /// Sends a frame behind a header of 12 bytes.
    func send(_ frame: [UInt8]) throws {
        let buffer = machine.allocate(12 + frame.count, alignment: 16)
        machine.put([UInt8](repeating: 0, count: 12) + frame, buffer)
        transmit.add([.out(buffer, 12), .out(buffer + 12, frame.count)])
        driver.notify(1)
        _ = try transmit.await()
    }

    /// Gives the device a buffer; what it holds then is at the address.
    func offer(_ byteCount: Int) -> UInt64 {
        let buffer = machine.allocate(byteCount, alignment: 16)
        receive.add([.into(buffer, byteCount)])
        driver.notify(0)
        return buffer
    }
}

@Suite struct NetTests {
    let machine: TestMachine

    init() throws { machine = try TestMachine() }

    private func frame(_ seed: Int, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ seed) }
    }

    /// virtio_net_hdr: everything zero but num_buffers, le16 at offset 10.
    private func header(buffers: UInt8 = 1) -> [UInt8] { [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, buffers, 0] }

    @Test func configurationAndFeatures_areThoseOfThisDevice() throws {
        let (near, _) = try NetPackets.loop()
        let driver = try NetDriver(machine, near, mtu: 9000).driver
        let bytes = (0..<12).map { UInt8(driver.configuration($0, .byte)) }
        #expect(bytes == [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0x28, 0x23])
        // MTU 3, MAC 5, MRG_RXBUF 15, STATUS 16, and no offload.
        #expect(driver.offeredFeatures() & 0xFFF_FFFF == 0x1_8028)
        #expect(driver.function.readConfiguration(at: 0, byteCount: 4) == 0x1041_1AF4)
    }

    @Test func addresses_areReadAsPeopleWriteThem() {
        #expect(MACAddress("02:00:00:00:00:ff")?.bytes == [2, 0, 0, 0, 0, 255])
        for bad in [
            "", "02:00:00:00:00", "02:00:00:00:00:00:00", "01:00:00:00:00:00", "2:0:0:0:0:0",
            "02:00:00:00:00:0g",
        ] {
            #expect(MACAddress(bad) == nil)
        }
    }

    @Test func twoDevicesOnALoop_exchangeFramesBothWays() throws {
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near)
        let two = try NetDriver(machine, far)
        for round in 0..<40 {
            let count = [60, 61, 1514, 1518, 333][round % 5]
            let there = two.offer(1536)
            try one.send(frame(round, count))
            #expect(try two.receive.await().length == UInt32(12 + count))
            #expect(machine.bytes(12 + count, there) == header() + frame(round, count))
            let back = one.offer(1536)
            try two.send(frame(round + 1, count))
            #expect(try one.receive.await().length == UInt32(12 + count))
            #expect(machine.bytes(12 + count, back) == header() + frame(round + 1, count))
        }
        #expect(one.net.statistics["drops"] == 0)
    }

    @Test func frames_waitForBuffersInTheirOrder() throws {
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near)
        let two = try NetDriver(machine, far)
        for index in 0..<5 { try one.send(frame(index, 100)) }
        for index in 0..<5 {
            let buffer = two.offer(1536)
            #expect(try two.receive.await().length == 112)
            #expect(machine.bytes(100, buffer + 12) == frame(index, 100))
        }
    }

    @Test func aFrameIsSpreadOverBuffersWhereTheyMayBeMerged() throws {
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near)
        let two = try NetDriver(machine, far)
        let buffers = (0..<3).map { _ in two.offer(512) }
        try one.send(frame(9, 1200))
        let lengths = try (0..<3).map { _ in try two.receive.await().length }
        #expect(lengths == [512, 512, 188])
        let all =
            machine.bytes(512, buffers[0]) + machine.bytes(512, buffers[1]) + machine.bytes(188, buffers[2])
        #expect(all == header(buffers: 3) + frame(9, 1200))
    }

    @Test(arguments: [false, true])
    func aLongFrameTakesMoreBuffersThanOneBatchHas(isPacked: Bool) throws {
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near, mtu: 9000, isPacked: isPacked)
        let two = try NetDriver(machine, far, mtu: 9000, isPacked: isPacked)
        let place = machine.allocate(64 * 256)
        for index in 0..<60 as Range<UInt64> {
            two.receive.add([.into(place + 256 * index, 256)])
        }
        try one.send(frame(3, 9000))
        // 9012 bytes in buffers of 256 are 36 buffers.
        for index in 0..<36 { #expect(try two.receive.await().length == (index < 35 ? 256 : 52)) }
        #expect(machine.bytes(9012, place) == header(buffers: 36) + frame(3, 9000))
    }

    @Test func aFrameTooLongForItsBuffer_isDroppedWhereBuffersAreNotMerged() throws {
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near)
        let two = try NetDriver(machine, far, features: ~(1 << 15))
        let buffer = two.offer(512)
        try one.send(frame(1, 1200))
        try one.send(frame(2, 400))
        #expect(try two.receive.await().length == 412)
        #expect(machine.bytes(412, buffer) == header() + frame(2, 400))
        #expect(two.net.statistics["drops"] == 1)
    }

    @Test func framesBeyondTheMTU_passNeitherWay() throws {
        let (near, far) = try NetPackets.loop()
        let large = try NetDriver(machine, near, mtu: 9000)
        let small = try NetDriver(machine, far, mtu: 1500)
        let buffer = small.offer(16384)
        try small.send(frame(1, 1519))
        #expect(small.net.statistics["drops"] == 1)
        try large.send(frame(2, 1519))
        try large.send(frame(3, 1518))
        #expect(try small.receive.await().length == 1530)
        #expect(machine.bytes(1518, buffer + 12) == frame(3, 1518))
    }

    @Test func transmissionsWithoutAFrame_areGivenBack() throws {
        let (near, _) = try NetPackets.loop()
        let one = try NetDriver(machine, near)
        let buffer = machine.allocate(16)
        for length in [1, 12] {
            one.transmit.add([.out(buffer, length)])
            one.driver.notify(1)
            #expect(try one.transmit.await().length == 0)
        }
        #expect(one.net.statistics["drops"] == 2)
        #expect(one.driver.status == 15)
    }

    @Test func aReceiveBufferWithoutRoomForAHeader_needsAReset() throws {
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near)
        let two = try NetDriver(machine, far)
        _ = two.offer(11)
        try one.send(frame(1, 60))
        #expect(eventually { two.driver.status & 64 != 0 })
    }

    @Test func pulledCable_stopsFramesAndTellsTheDriver() throws {
        let (near, far) = try NetPackets.loop()
        let one = try NetDriver(machine, near)
        let two = try NetDriver(machine, far)
        one.net.setLink(isUp: false)
        #expect(one.driver.configuration(6, .halfword) == 0)
        #expect(one.driver.pin.level)
        #expect(one.driver.takeInterrupts() == 2)
        try one.send(frame(1, 60))
        one.net.setLink(isUp: true)
        let buffer = two.offer(1536)
        try one.send(frame(2, 60))
        _ = try two.receive.await()
        #expect(machine.bytes(60, buffer + 12) == frame(2, 60))
    }

    @Test func datagramSockets_carryFrames() throws {
        let directory = try TestDirectory()
        let (here, there) = (directory.path + "/here", directory.path + "/there")
        let one = try NetDriver(machine, try NetPackets.datagram(path: here, remotePath: there))
        // Nobody is there yet: the frame is lost, as on a cable that leads nowhere.
        try one.send(frame(1, 60))
        #expect(one.net.statistics["drops"] == 1)
        let two = try NetDriver(machine, try NetPackets.datagram(path: there, remotePath: here))
        let buffer = two.offer(1536)
        try one.send(frame(2, 60))
        #expect(try two.receive.await().length == 72)
        #expect(machine.bytes(60, buffer + 12) == frame(2, 60))
        #expect(throws: (any Error).self) { try NetPackets.datagram(path: here, remotePath: there) }
    }

    @Test func streams_carryFramesBehindTheirLength() throws {
        let directory = try TestDirectory()
        let path = directory.path + "/wire"
        let one = try NetDriver(machine, try NetStream(listeningAt: path))
        let peer = try TestSocket(connectingTo: path)
        // Big-endian length, then the frame; two of them, the second in two pieces.
        peer.send([0, 0, 0, 60] + frame(1, 60) + [0, 0])
        let first = one.offer(1536)
        #expect(try one.receive.await().length == 72)
        #expect(machine.bytes(60, first + 12) == frame(1, 60))
        peer.send([0, 70] + frame(2, 70))
        let second = one.offer(1536)
        #expect(try one.receive.await().length == 82)
        #expect(machine.bytes(70, second + 12) == frame(2, 70))
        try one.send(frame(3, 64))
        #expect(peer.receive(68) == [0, 0, 0, 64] + frame(3, 64))
        // A length that cannot be ends the connection, and the next peer is taken.
        peer.send([0xFF, 0, 0, 0])
        #expect(peer.receive(1) == [])
        let next = try TestSocket(connectingTo: path)
        next.send([0, 0, 0, 60] + frame(4, 60))
        let third = one.offer(1536)
        _ = try one.receive.await()
        #expect(machine.bytes(60, third + 12) == frame(4, 60))
    }

    @Test func streams_connectToOneAnother() throws {
        let directory = try TestDirectory()
        let path = directory.path + "/wire"
        let one = try NetDriver(machine, try NetStream(listeningAt: path))
        let two = try NetDriver(machine, try NetStream(connectingTo: path))
        let there = one.offer(1536)
        try two.send(frame(5, 99))
        _ = try one.receive.await()
        #expect(machine.bytes(99, there + 12) == frame(5, 99))
        let back = two.offer(1536)
        try one.send(frame(6, 98))
        _ = try two.receive.await()
        #expect(machine.bytes(98, back + 12) == frame(6, 98))
    }
}
