// Software that writes anything anywhere, from several threads.

import AddressSpace
import DeviceModel
import OSThread
import PCIFunction
import PCIHost
import SeededRandomness
import Synchronization
import SystemBus
import Testing

@Suite struct HostileTests {
    private static let bars = [
        PCIBAR(index: 0, byteCount: 0x1000), PCIBAR(index: 1, byteCount: 0x1_0000),
        PCIBAR(index: 2, byteCount: 1 << 36, space: .memory64, isPrefetchable: true),
        PCIBAR(index: 4, byteCount: 16, space: .memory64),
    ]
    private static let capabilities: [PCICapability] = [
        .powerManagement, .msi(vectorCount: 8),
        .msix(
            PCIMSIXLayout(vectorCount: 4, tableBAR: 1, tableOffset: 0, pendingBAR: 1, pendingOffset: 0x800)
        ),
        .express(.endpoint), .ats(invalidateQueueDepth: 4), .acs(bits: 0x1D),
    ]

    /// Two functions on the bridge's bus and three below two ports.
    private func populated() throws -> (Board, [Device]) {
        let board = try Board(buses: 0...3)
        let ports = [Board.port("p"), Board.port("q")]
        let devices = (0..<5 as Range<UInt32>).map { index in
            board.device("d\(index)", tag: index, bars: Self.bars, Self.capabilities, isMultiFunction: true)
        }
        try board.bridge.add(ports[0], device: 2)
        try board.bridge.add(ports[1], device: 3)
        try board.add(devices[0], .rootBus(device: 0, function: 0))
        try board.add(devices[1], .rootBus(device: 1, function: 7))
        try board.add(devices[2], .below(ports[0], function: 0))
        try board.add(devices[3], .below(ports[0], function: 5))
        try board.add(devices[4], .below(ports[1], function: 0))
        return (board, devices)
    }

    /// An address in the ECAM window that hits somebody more often than not.
    private static func configuration(_ random: inout SplitMix) -> UInt64 {
        let places: [UInt64] = [0x000, 0x00F, 0x010, 0x018, 0x100, 0x105, 0x200, 0x205, 0x300]
        let place = places.randomElement(using: &random) ?? 0
        let register =
            Bool.random(using: &random) ? UInt64.random(in: 0..<0x100, using: &random) : random.next() & 0xFFF
        return Board.ecam + place << 12 + register
    }

    /// A value that means something to a header more often than not.
    private static func value(_ random: inout SplitMix) -> UInt64 {
        switch Int.random(in: 0..<6, using: &random) {
        case 0: 0x0000_0006
        case 1: 0x1000_0000 | random.next() & 0x0FFF_F000
        case 2: 0x0003_0100 | random.next() & 0x0003_0300
        case 3: 0x1FF0_1000
        case 4: Board.ecam + random.next() & 0x3F_FFFF
        default: random.next()
        }
    }

    private static func attack(_ board: Board, _ devices: [Device], _ seed: UInt64, _ rounds: Int) {
        var random = SplitMix(seed: seed)
        let ports = devices.map { $0.function.makePort() }
        for _ in 0..<rounds {
            guard let width = AccessWidth.allCases.randomElement(using: &random) else { return }
            let address =
                Bool.random(using: &random)
                ? configuration(&random) : 0x5000_0000 + random.next() & 0x0FFF_FFFF
            let index = Int.random(in: devices.indices, using: &random)
            switch Int.random(in: 0..<12, using: &random) {
            case 0...4: board.cpu.write(value(&random), width, at: address)
            case 5...7: _ = board.cpu.read(width, at: address)
            case 8: try? ports[index].store(value(&random), width, at: IOVirtualAddress(address))
            case 9: devices[index].function.signal(vector: Int.random(in: 0..<8, using: &random))
            case 10: devices[index].function.setINTx(Bool.random(using: &random))
            default: _ = try? ports[index].load(width, at: IOVirtualAddress(address))
            }
        }
    }

    /// After a reset it all still works, once those resets are over that software has asked for.
    private func expectAllFound(_ board: Board, _ seed: UInt64) {
        board.bridge.reset()
        let all: [[UInt8]] = [[0, 0, 0], [0, 2, 0], [0, 3, 0], [1, 0, 0], [1, 0, 5], [2, 0, 0]]
        let isFound = eventually { KernelScan(board).found.map { [$0.bus, $0.device, $0.function] } == all }
        #expect(isFound, "seed \(seed)")
    }

    @Test(arguments: [11, 12, 13] as [UInt64])
    func randomSoftwareNeverTraps(seed: UInt64) throws {
        let (board, devices) = try populated()
        Self.attack(board, devices, seed, 20_000)
        #expect(board.log.all.count <= 64, "seed \(seed)")
        expectAllFound(board, seed)
        board.bridge.shutDown()
        #expect(board.bus.entries.map(\.name) == ["ram"], "seed \(seed)")
    }

    @Test(arguments: [21, 22] as [UInt64])
    func randomSoftwareOnSeveralThreadsNeverTraps(seed: UInt64) throws {
        let (board, devices) = try populated()
        let first = OSThread { Self.attack(board, devices, seed, 8_000) }
        let second = OSThread { Self.attack(board, devices, seed &+ 100, 8_000) }
        let third = OSThread { Self.attack(board, devices, seed &+ 200, 8_000) }
        first.join()
        second.join()
        third.join()
        expectAllFound(board, seed)
        for device in devices { device.function.setINTx(false) }
        #expect(board.lines.allSatisfy { !$0.isAsserted }, "seed \(seed)")
    }
}
