// BARs on the bus: where software put them, and while it wants them there.

import AddressSpace
import DeviceModel
import OSThread
import PCIFunction
import PCIHost
import SeededRandomness
import Synchronization
import SystemBus
import Testing

@Suite struct BARTests {
    @Test func assignedBARsAnswerWhereTheWindowsPutThem() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        #expect(tree.board.barsOnBus == [:])
        scan.assign()
        // Worked out by hand: a at the start; p's window begins at the next MiB, r's at the one after.
        #expect(
            tree.board.barsOnBus == [
                "a BAR 0": 0x5000_0000, "b BAR 0": 0x90_0000_0000, "b BAR 2": 0x5010_0000,
                "c BAR 0": 0x5011_0000,
                "d BAR 0": 0x5020_0000,
            ]
        )
        let cpu = tree.board.cpu
        #expect(cpu.read(.word, at: 0x5000_0FFC) == 0x0100_0FFC)
        #expect(cpu.read(.word, at: 0x90_0000_3FFC) == 0x0200_3FFC)
        #expect(cpu.read(.word, at: 0x5010_FFFC) == 0x0220_FFFC)
        #expect(cpu.read(.word, at: 0x5011_0010) == 0x0300_0010)
        #expect(cpu.read(.word, at: 0x502F_FFFC) == 0x040F_FFFC)
        cpu.write(0xCAFE_F00D, .word, at: 0x502F_FFF0)
        #expect(cpu.read(.word, at: 0x502F_FFF0) == 0xCAFE_F00D)
        #expect(try tree.d.model.readBAR(0, at: 0xF_FFF0, width: .word) == 0xCAFE_F00D)
        // A register that does not take the width: an Unsupported Request. Unaligned: no CPU sends that.
        #expect(try tree.board.bus.load(.halfword, at: PhysicalAddress(0x5000_0000)) == 0xFFFF)
        try tree.board.bus.store(0, .byte, at: PhysicalAddress(0x5000_0000))
        #expect(throws: BusError.refused(PhysicalAddress(0x5000_0001), .misaligned)) {
            try tree.board.bus.load(.word, at: PhysicalAddress(0x5000_0001))
        }
    }

    @Test func eachEnableOnTheWayCloses() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let cpu = tree.board.cpu
        let b = tree.board.configuration(1, 0, 0)
        let p = tree.board.configuration(0, 2, 0)
        let all = tree.board.barsOnBus
        let withoutB = all.filter { !$0.key.hasPrefix("b ") }
        let belowPort = all.filter { !$0.key.hasPrefix("b ") && !$0.key.hasPrefix("c ") }
        cpu.write(0x0004, .halfword, at: b + 4)
        #expect(tree.board.barsOnBus == withoutB)
        #expect(cpu.read(.word, at: 0x5010_0000) == 0xFFFF_FFFF)
        cpu.write(0x0006, .halfword, at: b + 4)
        #expect(tree.board.barsOnBus == all)
        // Memory Space Enable of the port.
        cpu.write(0x0004, .halfword, at: p + 4)
        #expect(tree.board.barsOnBus == belowPort)
        cpu.write(0x0006, .halfword, at: p + 4)
        // The port's power state (PMCSR at 0x44), and the function's.
        cpu.write(3, .halfword, at: p + 0x44)
        #expect(tree.board.barsOnBus == belowPort)
        cpu.write(0, .halfword, at: p + 0x44)
        cpu.write(3, .halfword, at: b + 0x44)
        #expect(tree.board.barsOnBus == withoutB)
        cpu.write(0, .halfword, at: b + 0x44)
        #expect(tree.board.barsOnBus == all)
        // The memory window closes; b's prefetchable BAR stays.
        let window = cpu.read(.word, at: p + 0x20)
        cpu.write(0x0000_FFF0, .word, at: p + 0x20)
        #expect(tree.board.barsOnBus == all.filter { $0.key != "b BAR 2" && $0.key != "c BAR 0" })
        cpu.write(window, .word, at: p + 0x20)
        #expect(tree.board.barsOnBus == all)
    }

    @Test func windowsLetThroughWhatTheyCover() throws {
        let board = try Board()
        let port = Board.port("p")
        try board.bridge.add(port, device: 1)
        let device = board.device("d", tag: 5, bars: [PCIBAR(index: 0, byteCount: 4 << 20)])
        try board.add(device, .below(port, function: 0))
        let cpu = board.cpu
        let p = board.configuration(0, 1, 0)
        cpu.write(0x00_01_01_00, .word, at: p + 0x18)
        cpu.write(0x0006, .halfword, at: p + 4)
        let d = board.configuration(1, 0, 0)
        // At 0x1040_0000, of which the port passes the second and third MiB.
        cpu.write(0x1040_0000, .word, at: d + 0x10)
        cpu.write(0x0006, .halfword, at: d + 4)
        cpu.write(0x1060_1050, .word, at: p + 0x20)
        #expect(cpu.read(.word, at: 0x504F_FFFC) == 0xFFFF_FFFF)
        #expect(cpu.read(.word, at: 0x5050_0000) == TaggedModel.word(5, 0, 0x10_0000))
        #expect(try device.model.readBAR(0, at: 0x10_0000, width: .word) == cpu.read(.word, at: 0x5050_0000))
        cpu.write(0x1234, .word, at: 0x506F_FFFC)
        #expect(try device.model.readBAR(0, at: 0x2F_FFFC, width: .word) == 0x1234)
        #expect(cpu.read(.word, at: 0x5070_0000) == 0xFFFF_FFFF)
        // Two windows that overlap are one.
        cpu.write(0x1070_1060, .word, at: p + 0x24)
        #expect(cpu.read(.word, at: 0x507F_FFFC) == TaggedModel.word(5, 0, 0x3F_FFFC))
        #expect(cpu.read(.word, at: 0x5050_0000) == TaggedModel.word(5, 0, 0x10_0000))
        #expect(board.log.all == [])
        // The bridge's own window ends at 0x1FFF_FFFF.
        cpu.write(0x2000_1FF0, .word, at: p + 0x20)
        cpu.write(0x0000_FFF0, .word, at: p + 0x24)
        cpu.write(0x1FC0_0000, .word, at: d + 0x10)
        #expect(cpu.read(.word, at: 0x5FFF_FFFC) == TaggedModel.word(5, 0, 0x3F_FFFC))
        #expect(board.barsOnBus == ["d BAR 0": 0x5FF0_0000])
        cpu.write(0x2000_0000, .word, at: d + 0x10)
        #expect(board.barsOnBus == [:])
    }

    @Test func barsMoveBetweenWindows() throws {
        let board = try Board()
        let device = board.device("d", tag: 6, bars: [PCIBAR(index: 0, byteCount: 0x1000, space: .memory64)])
        try board.add(device, .rootBus(device: 0, function: 0))
        let cpu = board.cpu
        let d = board.configuration(0, 0, 0)
        cpu.write(0x0002, .halfword, at: d + 4)
        // At 0: no window has that.
        #expect(board.barsOnBus == [:])
        cpu.write(0x1000_2000, .word, at: d + 0x10)
        #expect(board.barsOnBus == ["d BAR 0": 0x5000_2000])
        // The upper half first, as it moves to where nothing is, then arrives.
        cpu.write(0x80, .word, at: d + 0x14)
        #expect(board.barsOnBus == ["d BAR 0": 0x90_1000_2000])
        cpu.write(0x0000_3000, .word, at: d + 0x10)
        #expect(board.barsOnBus == ["d BAR 0": 0x90_0000_3000])
        #expect(cpu.read(.word, at: 0x90_0000_3008) == 0x0600_0008)
        // Sizing while it is visible, as old kernels did.
        cpu.write(0xFFFF_FFFF, .word, at: d + 0x10)
        cpu.write(0xFFFF_FFFF, .word, at: d + 0x14)
        #expect(board.barsOnBus == [:])
    }

    @Test func firstOfTwoThatOverlapAnswers() throws {
        let board = try Board()
        let first = board.device("first", tag: 1, bars: [PCIBAR(index: 0, byteCount: 0x1000)])
        let second = board.device(
            "second",
            tag: 2,
            bars: [PCIBAR(index: 0, byteCount: 0x4000), PCIBAR(index: 1, byteCount: 0x1000)]
        )
        try board.add(first, .rootBus(device: 0, function: 0))
        try board.add(second, .rootBus(device: 1, function: 0))
        let cpu = board.cpu
        let (one, two) = (board.configuration(0, 0, 0), board.configuration(0, 1, 0))
        cpu.write(0x1000_0000, .word, at: two + 0x10)
        cpu.write(0x1000_8000, .word, at: two + 0x14)
        cpu.write(0x0002, .halfword, at: two + 4)
        cpu.write(0x1000_1000, .word, at: one + 0x10)
        cpu.write(0x0002, .halfword, at: one + 4)
        // The one that was there stays; the other BARs are as they were.
        #expect(board.barsOnBus == ["second BAR 0": 0x5000_0000, "second BAR 1": 0x5000_8000])
        #expect(cpu.read(.word, at: 0x5000_1000) == 0x0200_1000)
        #expect(
            board.log.all == [
                "/pcie: first BAR 0 at 0x50001000-0x50001fff is not reached: it overlaps 0x50000000-0x50003fff"
            ]
        )
        // Said once, however often software looks again.
        cpu.write(0x0006, .halfword, at: one + 4)
        #expect(board.log.all.count == 1)
        cpu.write(0x1000_4000, .word, at: two + 0x10)
        #expect(
            board.barsOnBus == [
                "first BAR 0": 0x5000_1000, "second BAR 0": 0x5000_4000, "second BAR 1": 0x5000_8000,
            ]
        )
        #expect(cpu.read(.word, at: 0x5000_1000) == 0x0100_0000)
    }

    @Test func barOverWhatElseIsOnTheBusStaysOut() throws {
        let board = try Board()
        let device = board.device("d", tag: 1, bars: [PCIBAR(index: 0, byteCount: 0x1000)])
        try board.add(device, .rootBus(device: 0, function: 0))
        let taken = try #require(AddressRange(start: 0x5000_0800, byteCount: 0x10))
        try board.bus.addWindow(Constant(), at: taken, name: "uart")
        let d = board.configuration(0, 0, 0)
        board.cpu.write(0x1000_0000, .word, at: d + 0x10)
        board.cpu.write(0x0002, .halfword, at: d + 4)
        #expect(board.cpu.read(.word, at: 0x5000_0800) == 0x42)
        #expect(board.cpu.read(.word, at: 0x5000_0000) == 0xFFFF_FFFF)
        #expect(board.log.all.count == 1)
    }

    @Test func peersReachBARsByDMA() throws {
        let tree = try Tree()
        var scan = KernelScan(tree.board)
        scan.assign()
        let port = tree.d.function.makePort()
        try port.store(0x7777, .word, at: IOVirtualAddress(0x5000_0020))
        #expect(try tree.a.model.readBAR(0, at: 0x20, width: .word) == 0x7777)
        #expect(try port.load(.word, at: IOVirtualAddress(0x90_0000_0010)) == 0x0200_0010)
    }

    @Test(arguments: [7, 8] as [UInt64])
    func readersSeeARegisterOrNobodyWhileBARsMove(seed: UInt64) throws {
        let board = try Board()
        let port = Board.port("p")
        try board.bridge.add(port, device: 1)
        let device = board.device("d", tag: 3, bars: [PCIBAR(index: 0, byteCount: 0x1_0000)])
        try board.add(device, .below(port, function: 0))
        let reader = board.device("reader", tag: 4)
        try board.add(reader, .rootBus(device: 2, function: 0))
        let cpu = board.cpu
        let p = board.configuration(0, 1, 0)
        let d = board.configuration(1, 0, 0)
        cpu.write(0x0006, .halfword, at: board.configuration(0, 2, 0) + 4)
        cpu.write(0x00_01_01_00, .word, at: p + 0x18)
        cpu.write(0x0006, .halfword, at: p + 4)
        cpu.write(0x1020_1010, .word, at: p + 0x20)
        let places: [UInt64] = [0x1010_0000, 0x1015_0000, 0x1020_0000]
        let watch = Watch(places.map { KernelScan.cpuAddress($0) + 0x1234 }, right: 0x0300_1234)
        let byCPU = OSThread { watch.run { try? board.bus.load(.word, at: PhysicalAddress($0)) } }
        let byDMA = OSThread {
            let port = reader.function.makePort()
            watch.run { try? port.load(.word, at: IOVirtualAddress($0)) }
        }
        var random = SplitMix(seed: seed)
        var rounds = 0
        while rounds < 2_000 || (watch.answers == 0 && rounds < 1_000_000) {
            rounds += 1
            switch Int.random(in: 0..<4, using: &random) {
            case 0: cpu.write(UInt64.random(in: 0...1, using: &random) << 1 | 4, .halfword, at: d + 4)
            case 1: cpu.write(UInt64.random(in: 0...1, using: &random) << 1 | 4, .halfword, at: p + 4)
            default:
                cpu.write(places.randomElement(using: &random) ?? 0, .word, at: d + 0x10)
                cpu.write(0x0006, .halfword, at: d + 4)
                cpu.write(0x0006, .halfword, at: p + 4)
            }
        }
        watch.stop()
        byCPU.join()
        byDMA.join()
        #expect(watch.wrong == 0, "seed \(seed)")
        #expect(watch.answers > 0, "seed \(seed)")
    }
}

/// Reads some registers over and over, and counts what came back.
private final class Watch: Sendable {
    private let addresses: [UInt64]
    private let right: UInt64
    private let isDone = Atomic(false)
    private let counts = Mutex((answers: 0, wrong: 0))

    init(_ addresses: [UInt64], right: UInt64) {
        self.addresses = addresses
        self.right = right
    }

    var answers: Int { counts.withLock { $0.answers } }
    var wrong: Int { counts.withLock { $0.wrong } }
    func stop() { isDone.store(true, ordering: .releasing) }

    func run(_ read: (UInt64) -> UInt64?) {
        while !isDone.load(ordering: .acquiring) {
            for address in addresses {
                guard let value = read(address), value != 0xFFFF_FFFF else { continue }
                counts.withLock { counts in
                    counts.answers += 1
                    if value != right { counts.wrong += 1 }
                }
            }
        }
    }
}

private final class Constant: RegisterTarget {
    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0x42 }
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {}
}
