// A root port's configuration space, and what it says it forwards.

import AddressSpace
import PCIFunction
import SeededRandomness
import Synchronization
import Testing

private final class PortHost: PCIRootPortHost {
    let changes = Atomic(0)
    let falls = Atomic(0)
    func forwardingChanged(of port: PCIRootPort) { changes.add(1, ordering: .relaxed) }
    func linkWentDown(of port: PCIRootPort) { falls.add(1, ordering: .relaxed) }
}

@Suite struct RootPortTests {
    private static let identity = PCIIdentity(
        vendorID: 0x1B36,
        deviceID: 0x000C,
        subsystemVendorID: 0xCAFE,
        subsystemID: 0x0001,
        classCode: 0,
        revisionID: 1
    )

    // Typed from the PCI-to-PCI Bridge Architecture Specification 1.2 (3.2) and the PCI Express Base Specification
    // (7.5.1.3, 7.5.3, 7.7.8).
    private static let golden: [Int: UInt32] = [
        0x000: 0x000C_1B36,
        0x004: 0x0010_0000,  // Capabilities List
        0x008: 0x0604_0001,  // PCI-to-PCI bridge
        0x00C: 0x0081_0000,  // Multi-function, type 1
        0x024: 0x0001_0001,  // Prefetchable memory: 64 bits
        0x034: 0x0000_0040,
        0x03C: 0x0000_0100,  // INTA
        0x040: 0x0003_4801,  // Power management
        0x044: 0x0000_0008,
        0x048: 0x0142_8410,  // PCI Express: version 2, root port, slot
        0x04C: 0x0000_8020,  // No function-level reset
        0x050: 0x0000_2810,
        0x054: 0x0010_0011,  // Link Active Reporting, 2.5 GT/s, x1
        0x058: 0x0011_0000,
        0x05C: 0x0028_0000,  // Slot 5
        0x06C: 0x0060_0010,  // One end-end TLP prefix; time-outs can be disabled
        0x074: 0x0000_0002,
        0x078: 0x0000_0001,
        0x084: 0x0000_000D,  // Subsystem IDs of a bridge
        0x088: 0x0001_CAFE,
        0x100: 0x0001_000D,  // ACS
        0x104: 0x0000_001D,  // SV, RR, CR, UF
    ]

    private func port() -> PCIRootPort {
        PCIRootPort(name: "port", identity: Self.identity, slotNumber: 5, isMultiFunction: true)
    }

    @Test func resetValuesAreTheSpecifications() {
        let port = port()
        #expect(nonzeroWords { port.readConfiguration(at: $0, byteCount: 4) } == Self.golden)
    }

    @Test func writableBitsAreTheSpecifications() {
        let port = port()
        for offset in stride(from: 0, to: 4096, by: 4) where offset != 0x44 {
            port.writeConfiguration(0xFFFF_FFFF, at: offset, byteCount: 4)
        }
        let changed = nonzeroWords { port.readConfiguration(at: $0, byteCount: 4) ^ (Self.golden[$0] ?? 0) }
        #expect(
            changed == [
                0x004: 0x0000_0546,
                0x00C: 0x0000_00FF,
                0x018: 0x00FF_FFFF,  // Bus numbers; no Secondary Latency Timer
                0x020: 0xFFF0_FFF0,  // Memory; nothing at 0x1C: no I/O
                0x024: 0xFFF0_FFF0,
                0x028: 0xFFFF_FFFF,
                0x02C: 0xFFFF_FFFF,
                0x03C: 0x0043_00FF,  // Parity, SERR#, Secondary Bus Reset
                0x050: 0x0000_57EF,
                0x058: 0x0000_00D3,  // ASPM, Link Disable, common clock, extended synch
                0x064: 0x0000_000F,  // Root Control
                0x070: 0x0000_0010,
                0x078: 0x0000_000E,
                0x104: 0x001D_0000,
            ]
        )
    }

    @Test func busNumbersAreForwardedAsProgrammed() {
        let port = port()
        // As after reset: bus 0 and nothing else.
        #expect(port.forwarding.buses == 0...0)
        port.writeConfiguration(0x00_05_03_01, at: 0x18, byteCount: 4)
        #expect(port.forwarding.secondaryBus == 3)
        #expect(port.forwarding.buses == 3...5)
        port.writeConfiguration(2, at: 0x1A, byteCount: 1)
        #expect(port.forwarding.buses == nil)
    }

    @Test func windowsOpenWithMemorySpaceEnable() throws {
        let port = port()
        // 0x5010_0000 to 0x502F_FFFF; 0x80_4000_0000 to 0x80_7FFF_FFFF.
        port.writeConfiguration(0x5020_5010, at: 0x20, byteCount: 4)
        port.writeConfiguration(0x7FF0_4000, at: 0x24, byteCount: 4)
        port.writeConfiguration(0x80, at: 0x28, byteCount: 4)
        port.writeConfiguration(0x80, at: 0x2C, byteCount: 4)
        #expect(port.forwarding.memory == [])
        port.writeConfiguration(0x0002, at: 0x04, byteCount: 2)
        let memory = try #require(AddressRange(first: 0x5010_0000, last: 0x502F_FFFF))
        let prefetchable = try #require(AddressRange(first: 0x80_4000_0000, last: 0x80_7FFF_FFFF))
        #expect(port.forwarding.memory == [memory, prefetchable])
        #expect(!port.forwarding.isUpstreamOpen)
        // Base above limit, as Linux closes a window.
        port.writeConfiguration(0x0000_FFF0, at: 0x20, byteCount: 4)
        #expect(port.forwarding.memory == [prefetchable])
        port.writeConfiguration(0x0000_FFF0, at: 0x24, byteCount: 4)
        #expect(port.forwarding.memory == [])
        port.writeConfiguration(0x0004, at: 0x04, byteCount: 2)
        #expect(port.forwarding.isUpstreamOpen)
    }

    @Test func linkGoesDownByResetAndByDisable() {
        let port = port()
        let host = PortHost()
        port.connect(host)
        port.setOccupied(true)
        // Data Link Layer Link Active; Presence Detect State.
        #expect(port.readConfiguration(at: 0x5A, byteCount: 2) == 0x2011)
        #expect(port.readConfiguration(at: 0x62, byteCount: 2) == 0x0040)
        port.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        port.writeConfiguration(0x0040, at: 0x3E, byteCount: 2)
        #expect(host.falls.load(ordering: .relaxed) == 1)
        #expect(port.readConfiguration(at: 0x5A, byteCount: 2) == 0x0011)
        #expect(port.forwarding == PCIForwarding(secondaryBus: 0))
        // Held, disabled as well, and let go: down all the time.
        port.writeConfiguration(0x0010, at: 0x58, byteCount: 2)
        port.writeConfiguration(0, at: 0x3E, byteCount: 2)
        #expect(host.falls.load(ordering: .relaxed) == 1)
        #expect(!port.forwarding.isUpstreamOpen)
        port.writeConfiguration(0, at: 0x58, byteCount: 2)
        #expect(port.forwarding.isUpstreamOpen)
        #expect(port.readConfiguration(at: 0x5A, byteCount: 2) == 0x2011)
        #expect(host.changes.load(ordering: .relaxed) == 5)
        port.setOccupied(false)
        #expect(port.readConfiguration(at: 0x62, byteCount: 2) == 0)
    }

    @Test func nothingIsForwardedInD3hot() {
        let port = port()
        port.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        port.writeConfiguration(0x00_05_03_00, at: 0x18, byteCount: 4)
        port.writeConfiguration(3, at: 0x44, byteCount: 2)
        #expect(port.forwarding == PCIForwarding(secondaryBus: 3))
        port.writeConfiguration(0, at: 0x44, byteCount: 2)
        #expect(port.forwarding.buses == 3...5)
    }

    @Test func resetKeepsWhatStandsBelow() {
        let port = port()
        port.setOccupied(true)
        port.writeConfiguration(0x00_05_03_00, at: 0x18, byteCount: 4)
        port.reset()
        #expect(port.readConfiguration(at: 0x18, byteCount: 4) == 0)
        #expect(port.readConfiguration(at: 0x5A, byteCount: 2) == 0x2011)
    }

    @Test(arguments: [1, 2, 3] as [UInt64])
    func randomAccessesNeverTrap(seed: UInt64) {
        var random = SplitMix(seed: seed)
        let port = port()
        for _ in 0..<20_000 {
            let offset = Int.random(in: -8...4104, using: &random)
            let byteCount = Int.random(in: -1...6, using: &random)
            port.writeConfiguration(
                UInt32.random(in: 0 ... .max, using: &random),
                at: offset,
                byteCount: byteCount
            )
            _ = port.readConfiguration(at: offset, byteCount: byteCount)
            _ = port.forwarding
        }
        #expect(port.readConfiguration(at: 0, byteCount: 4) == 0x000C_1B36, "seed \(seed)")
    }
}
