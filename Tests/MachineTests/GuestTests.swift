// What a guest of QEMU gets: its interrupts by qtest, and our registers through a window.

import AddressSpace
import DeviceModel
import Glibc
import Logging
import Machine
import SMMUv3
import SMMUv3Spec
import Synchronization
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// A QEMU that listens at a qtest socket and notes what it is told.
private final class FakeQEMU: @unchecked Sendable {
    // SAFETY of @unchecked Sendable: used by the one thread of its test.
    let path: String
    private let listener: CInt
    private var connection: CInt = -1
    private var rest = ""

    init() throws {
        path = "/tmp/smmud-qtest-\(getpid())-\(UInt32.random(in: 0...UInt32.max)).sock"
        listener = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        let isBound = withUnsafePointer(to: address) { address in
            address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            }
        }
        try #require(isBound && listen(listener, 4) == 0)
        Self.limitPatience(listener)
    }

    /// A line that never comes is to fail its test, not to hold up all others.
    private static func limitPatience(_ descriptor: CInt) {
        var limit = timeval(tv_sec: 60, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit {
        hangUp()
        close(listener)
        unlink(path)
    }

    /// The next line, which is answered.
    func line() throws -> String {
        if connection < 0 {
            connection = accept(listener, nil, nil)
            try #require(connection >= 0)
            Self.limitPatience(connection)
        }
        while !rest.contains("\n") {
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = recv(connection, &bytes, bytes.count, 0)
            try #require(count > 0)
            rest += String(decoding: bytes[..<count], as: UTF8.self)
        }
        let end = try #require(rest.firstIndex(of: "\n"))
        defer { rest = String(rest[rest.index(after: end)...]) }
        "OK\n".withCString { _ = send(connection, $0, 3, CInt(MSG_NOSIGNAL)) }
        return String(rest[..<end])
    }

    func hangUp() {
        if connection >= 0 { close(connection) }
        connection = -1
        rest = ""
    }
}

@Suite("Interrupts by qtest")
struct QtestTests {
    private let machine: Machine
    private let logger = Logger(label: "test")

    init() throws {
        var options = MachineOptions()
        options.memory = .client
        options.driver = .none
        machine = try Machine(board: try TestBoard.load(guestBoard), options: options)
    }

    @Test("an edge is two lines, a level one for each change, with the SPI that the tree names")
    func lines() throws {
        let guest = try FakeQEMU()
        let client = try QtestClient(path: guest.path, controller: "/machine/gic", logger: logger)
        try client.start()
        defer { client.stop() }
        #expect(machine.connect(client).isEmpty)
        let eventq = try #require(machine.interrupts.first { $0.label == "eventq" })
        eventq.line.pulse()
        #expect(try guest.line() == "set_irq_in /machine/gic unnamed-gpio-in 74 1")
        #expect(try guest.line() == "set_irq_in /machine/gic unnamed-gpio-in 74 0")
        let input = InterruptLevelInput(of: eventq.line)
        input.set(true)
        #expect(try guest.line() == "set_irq_in /machine/gic unnamed-gpio-in 74 1")
        input.set(false)
        #expect(try guest.line() == "set_irq_in /machine/gic unnamed-gpio-in 74 0")
    }

    @Test("edges and messages from before QEMU was there are not lost, and come in their order")
    func earlyEdges() throws {
        let guest = try FakeQEMU()
        let client = try QtestClient(path: guest.path, controller: "/gic", logger: logger)
        _ = machine.connect(client)
        let eventq = try #require(machine.interrupts.first { $0.label == "eventq" })
        eventq.line.pulse()
        let port = machine.makePort(for: RequesterIdentity(smmuIndex: nil, streamID: StreamID(0)))
        try port.store(0x51, .word, at: IOVirtualAddress(0x0802_0040))
        try client.start()
        defer { client.stop() }
        #expect(try guest.line() == "set_irq_in /gic unnamed-gpio-in 74 1")
        #expect(try guest.line() == "set_irq_in /gic unnamed-gpio-in 74 0")
        #expect(try guest.line() == "writel 0x8020040 0x51")
    }

    @Test("a QEMU that comes later, or again, is told the levels that stand")
    func reconnect() throws {
        let guest = try FakeQEMU()
        let client = try QtestClient(path: guest.path, controller: "/gic", logger: logger)
        _ = machine.connect(client)
        let gerror = try #require(machine.interrupts.first { $0.label == "gerror" })
        let input = InterruptLevelInput(of: gerror.line)
        input.set(true)
        try client.start()
        defer { client.stop() }
        #expect(try guest.line() == "set_irq_in /gic unnamed-gpio-in 75 1")
        guest.hangUp()
        #expect(try guest.line() == "set_irq_in /gic unnamed-gpio-in 75 1")
        withExtendedLifetime(input) {}
    }

    @Test("a DMA write to the doorbell of the GICv2m frame is passed on, and counted")
    func doorbell() throws {
        let guest = try FakeQEMU()
        let client = try QtestClient(path: guest.path, controller: "/gic", logger: logger)
        try client.start()
        defer { client.stop() }
        _ = machine.connect(client)
        let port = machine.makePort(for: RequesterIdentity(smmuIndex: nil, streamID: StreamID(0)))
        try port.store(0x53, .word, at: IOVirtualAddress(0x0802_0040))
        #expect(try guest.line() == "writel 0x8020040 0x53")
        let doorbell = try #require(machine.doorbells.first)
        #expect(doorbell.messages.count == 1)
        #expect(doorbell.messages.last == 0x53)
        #expect(throws: DMAFault.self) { try port.store(1, .word, at: IOVirtualAddress(0x0802_0044)) }
    }

    @Test("a QEMU that is slow gets every line in its order, and nobody waits for it")
    func slow() throws {
        let guest = try FakeQEMU()
        let client = try QtestClient(path: guest.path, controller: "/gic", logger: logger)
        try client.start()
        defer { client.stop() }
        _ = machine.connect(client)
        let port = machine.makePort(for: RequesterIdentity(smmuIndex: nil, streamID: StreamID(0)))
        // First more than may be without an answer, from before the connection on; then some at a time.
        var said: UInt32 = 0
        var heard: UInt32 = 0
        for count in [2000, 1, 3, 700, 1, 1, 300] {
            for _ in 0..<count {
                try port.store(UInt64(said), .word, at: IOVirtualAddress(0x0802_0040))
                said += 1
            }
            while heard < said {
                #expect(try guest.line() == "writel 0x8020040 0x\(String(heard, radix: 16))")
                heard += 1
            }
        }
    }

    @Test("a line that waits for answers is not overtaken by one that is said once they are there")
    func order() {
        var order = QtestOrder()
        order.open(7)
        for number in 0..<QtestOrder.outstandingMax { #expect(order.admit(["\(number)"]) == 7) }
        #expect(order.admit(["first"]) == nil)
        // The thread has taken answers, and has not come to sending yet.
        order.answer(10)
        #expect(order.admit(["second"]) == nil)
        #expect(order.take() == ["first", "second"])
        #expect(order.admit(["third"]) == nil, "the thread is still sending")
        #expect(order.take() == ["third"])
        order.open(7)
        #expect(order.admit(["fourth"]) == 7)
        #expect(order.outstanding == QtestOrder.outstandingMax - 10 + 4)
    }

    @Test("a line that the guest's controller has not is named, and not sent")
    func unknownLine() throws {
        var options = MachineOptions()
        options.driver = .none
        options.memory = .client
        let text = guestBoard.replacing("<0 74 1>", with: "<0 300 1>")
        let machine = try Machine(board: try TestBoard.load(text), options: options)
        let guest = try FakeQEMU()
        let client = try QtestClient(path: guest.path, controller: "/gic", logger: logger)
        let complaints = machine.connect(client)
        #expect(complaints.count == 1)
        #expect(complaints.first?.contains("/iommu@2b400000: eventq") == true, "\(complaints)")
        client.stop()
    }
}

/// Where a client's interrupts go, noted.
private final class NotedInterrupts: VFIOUserInterrupts {
    private let notes = Mutex<[Bool]>([])
    private let signals = Mutex<[Int]>([])
    var levels: [Bool] { notes.withLock { $0 } }
    /// The vectors of MSI-X that were signalled.
    var vectors: [Int] { signals.withLock { $0 } }
    func signal(_ index: VFIOUserInterruptIndex, vector: Int) {
        guard index == .msix else { return }
        signals.withLock { $0.append(vector) }
    }
    func setINTx(_ isAsserted: Bool) { notes.withLock { $0.append(isAsserted) } }
}

@Suite("The machine's window")
struct WindowTests {
    private let machine: Machine
    private let window: MachineWindow

    init() throws {
        var options = MachineOptions()
        options.memory = .client
        options.driver = .none
        machine = try Machine(board: try TestBoard.load(guestBoard), options: options)
        window = try #require(machine.makeWindow())
    }

    private func read(_ count: Int, at offset: UInt64, _ region: UInt32 = 0) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0x11, count: count)
        try bytes.withUnsafeMutableBytes {
            try window.readRegion(VFIOUserRegionIndex(rawValue: region), at: offset, into: $0)
        }
        return bytes
    }

    private func write(_ bytes: [UInt8], at offset: UInt64, _ region: UInt32 = 0) throws {
        try bytes.withUnsafeBytes {
            try window.writeRegion(VFIOUserRegionIndex(rawValue: region), at: offset, $0)
        }
    }

    @Test("it is the smallest power of two, at a multiple of itself, that shows every register of ours")
    func range() throws {
        #expect(window.range == AddressRange(start: 0x2B40_0000, byteCount: 0x2_0000))
        func enclosing(_ ranges: [(UInt64, UInt64)]) -> AddressRange? {
            MachineWindow.enclosing(ranges.compactMap { AddressRange(first: $0.0, last: $0.1) })
        }
        #expect(enclosing([(0x1000_0000, 0x1001_FFFF), (0x1002_0000, 0x1002_0FFF)])?.byteCount == 0x4_0000)
        #expect(enclosing([(0x1001_0000, 0x1002_FFFF)])?.first == 0x1000_0000)
        #expect(enclosing([]) == nil)
        #expect(enclosing([(0, 0xFFF), (0xF000_0000, 0xF000_0FFF)]) == nil)
        #expect(enclosing([(1 << 32, (1 << 32) + 0xFFF)]) == nil)
    }

    @Test("registers are read and written at the offsets of the window; where nobody is, all ones")
    func registers() throws {
        let idr0 = try read(4, at: 0)
        #expect(idr0 != [0xFF, 0xFF, 0xFF, 0xFF])
        #expect(try read(8, at: 0)[..<4] == idr0[...])
        try write([0x07, 0, 0, 0], at: 0x28)
        #expect(try read(4, at: 0x28) == [0x07, 0, 0, 0])
        // A register of 4 bytes takes no access of 1.
        #expect(try read(1, at: 0x28) == [0xFF])
        #expect(try read(3, at: 0x1_FFFD) == [0xFF, 0xFF, 0xFF])
    }

    @Test("configuration space is a function of its own class, whose BAR answers sizing with its size")
    func configuration() throws {
        let bytes = try read(256, at: 0, 7)
        #expect(bytes[0x0B] == 0xFF && bytes[0x3D] == 1)
        try write([0xFF, 0xFF, 0xFF, 0xFF], at: 0x10, 7)
        #expect(try read(4, at: 0x10, 7) == [0x00, 0x00, 0xFE, 0xFF])
        try write([0, 0, 0x40, 0x2B, 0x06, 0x04], at: 0x10, 7)
        #expect(try read(6, at: 0x10, 7) == [0, 0, 0x40, 0x2B, 0, 0])
        try write([0xFF, 0xFF], at: 0x04, 7)
        #expect(try read(2, at: 0x04, 7) == [0x06, 0x04])
        window.reset()
        #expect(try read(256, at: 0, 7) == bytes)
        // The machine behind it is not what was reset.
        #expect(try read(4, at: 0x28) == [0, 0, 0, 0])
    }

    @Test("the function has MSI-X, with a vector for each SPI and its table in BAR 2")
    func vectors() throws {
        // Capabilities List; the first at 0x40: ID 11h, the last, a table of 256; table at 0 and pending bits at 4096
        // of BAR 2.
        #expect(try read(2, at: 0x06, 7) == [0x10, 0x00])
        #expect(try read(1, at: 0x34, 7) == [0x40])
        let capability: [UInt8] = [0x11, 0, 0xFF, 0x00, 2, 0, 0, 0, 2, 0x10, 0, 0]
        #expect(try read(12, at: 0x40, 7) == capability)
        try write([UInt8](repeating: 0xFF, count: 12), at: 0x40, 7)
        var enabled = capability
        enabled[3] = 0xC0
        #expect(try read(12, at: 0x40, 7) == enabled)
        try write([0xFF, 0xFF, 0xFF, 0xFF], at: 0x18, 7)
        #expect(try read(4, at: 0x18, 7) == [0x00, 0xE0, 0xFF, 0xFF])
        #expect(window.description.regions[2].size == 8192)
        #expect(window.description.interrupts[2] == VFIOUserInterruptDescription(count: 256))
        // The client keeps the table.
        try write([1, 2, 3, 4], at: 0, 2)
        #expect(try read(4, at: 0, 2) == [0, 0, 0, 0])
    }

    @Test("a message goes by the vector of its SPI where the client has bound it, and by qtest where not")
    func messages() throws {
        let guest = try FakeQEMU()
        let client = try QtestClient(path: guest.path, controller: "/gic", logger: Logger(label: "test"))
        try client.start()
        defer { client.stop() }
        _ = machine.connect(client)
        let port = machine.makePort(for: RequesterIdentity(smmuIndex: nil, streamID: StreamID(0)))
        func send(_ data: UInt64) throws {
            try port.store(data, .word, at: IOVirtualAddress(0x0802_0040))
        }
        let interrupts = NotedInterrupts()
        try send(0x50)
        window.clientAttached(interrupts)
        try send(0x51)
        window.interruptsChanged(.msix, boundVectors: 49)
        try send(0x50)
        try send(0x20)
        // Beyond the last that is bound; no SPI; no word of 32 bits less 32.
        try send(0x51)
        try send(0x1F)
        try send(0xFFFF_FFFF)
        window.interruptsChanged(.msix, boundVectors: 0)
        try send(0x50)
        window.interruptsChanged(.msix, boundVectors: 256)
        window.clientDetached()
        window.clientAttached(interrupts)
        try send(0x52)
        #expect(interrupts.vectors == [48, 0])
        for data in ["50", "51", "51", "1f", "ffffffff", "50", "52"] {
            #expect(try guest.line() == "writel 0x8020040 0x\(data)")
        }
        #expect(machine.doorbells.first?.messages.count == 9)
    }

    @Test("without qtest an edge is one occurrence of the pin, and levels are its levels")
    func pin() throws {
        let interrupts = NotedInterrupts()
        window.clientAttached(interrupts)
        let line = try #require(machine.interrupts.first { $0.label == "eventq" }).line
        let other = try #require(machine.interrupts.first { $0.label == "gerror" }).line
        let pin = window.pin
        line.connect(pin)
        other.connect(pin)
        line.pulse()
        #expect(interrupts.levels == [true, false])
        let input = InterruptLevelInput(of: line)
        let second = InterruptLevelInput(of: other)
        input.set(true)
        second.set(true)
        line.pulse()
        input.set(false)
        second.set(false)
        #expect(interrupts.levels == [true, false, true, false])
        window.clientDetached()
        line.pulse()
        #expect(interrupts.levels.count == 4)
    }
}

/// The small board with a GICv2m frame.
private let guestBoard = TestBoard.small.replacing(
    "smmu: iommu@2b400000 {",
    with: """
        v2m@8020000 { compatible = "arm,gic-v2m-frame"; reg = <0 0x08020000 0 0x1000>; msi-controller; };
        smmu: iommu@2b400000 {
        """
)
