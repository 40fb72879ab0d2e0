// Configuration space of a function of type 0.

import DeviceModel
import PCIFunction
import SeededRandomness
import Synchronization
import Testing

@Suite struct ConfigurationTests {
    // Typed from the PCI Local Bus Specification 3.0 (6.1, 6.8), the PCI Bus Power Management Interface Specification
    // (3.2), and the PCI Express Base Specification (7.5.3, 7.7, 7.8, 10.5).
    static let everything: [PCICapability] = [
        .powerManagement,
        .msi(vectorCount: 4),
        .msix(
            PCIMSIXLayout(
                vectorCount: 3,
                tableBAR: 0,
                tableOffset: 0x1000,
                pendingBAR: 4,
                pendingOffset: 0x800
            )
        ),
        .express(.endpoint),
        .vendor([0x08, 0xAA, 0x01, 0x02, 0x03, 0x04], writable: [0, 0, 0xFF, 0, 0x0F, 0]),
        .ats(invalidateQueueDepth: 0),
        .pri(outstandingRequests: 32),
        .pasid(bits: 20),
        .acs(bits: 0x001D),
    ]
    static let bars = [
        PCIBAR(index: 0, byteCount: 0x4000),
        PCIBAR(index: 1, byteCount: 16),
        PCIBAR(index: 2, byteCount: 0x1_0000_0000, space: .memory64, isPrefetchable: true),
        PCIBAR(index: 4, byteCount: 0x1000, space: .memory64),
    ]
    static let golden: [Int: UInt32] = [
        0x000: 0x5678_1234,  // Device ID, Vendor ID
        0x004: 0x0010_0000,  // Status: Capabilities List
        0x008: 0x0108_0207,  // Class Code, Revision ID
        0x018: 0x0000_000C,  // BAR 2: 64 bits, prefetchable
        0x020: 0x0000_0004,  // BAR 4: 64 bits
        0x02C: 0xBEEF_CAFE,  // Subsystem ID, Subsystem Vendor ID
        0x034: 0x0000_0040,  // Capabilities Pointer
        0x03C: 0x0000_0200,  // Interrupt Pin: INTB
        0x040: 0x0003_4801,  // Power management: version 3, no PME
        0x044: 0x0000_0008,  // No_Soft_Reset
        0x048: 0x0184_6005,  // MSI: 4 vectors, 64 bits, mask bits
        0x060: 0x0002_6C11,  // MSI-X: 3 vectors
        0x064: 0x0000_1000,  // Table: BAR 0
        0x068: 0x0000_0804,  // Pending bits: BAR 4
        0x06C: 0x0002_A810,  // PCI Express: version 2, endpoint
        0x070: 0x1000_8020,  // Function-level reset, role-based errors, 8-bit tags
        0x074: 0x0000_2810,  // 512 bytes a read, no snoop, relaxed ordering
        0x078: 0x0000_0011,  // 2.5 GT/s, x1
        0x07C: 0x0011_0000,  // The same, now
        0x090: 0x0060_0010,  // One end-end TLP prefix; time-outs can be disabled
        0x098: 0x0000_0002,  // 2.5 GT/s
        0x09C: 0x0000_0001,  // Target: 2.5 GT/s
        0x0A8: 0xAA08_0009,  // Vendor specific, 8 bytes
        0x0AC: 0x0403_0201,
        0x100: 0x1081_000F,  // ATS
        0x104: 0x0000_0020,  // Page-aligned; 32 invalidations
        0x108: 0x1181_0013,  // PRI
        0x10C: 0x8100_0000,  // Stopped; responses have a PASID
        0x110: 0x0000_0020,
        0x118: 0x1201_001B,  // PASID
        0x11C: 0x0000_1406,  // 20 bits, execute, privileged
        0x120: 0x0001_000D,  // ACS
        0x124: 0x0000_001D,
    ]

    @Test func resetValuesAreTheSpecifications() {
        let fixture = Fixture(bars: Self.bars, Self.everything)
        #expect(nonzeroWords { fixture.read($0) } == Self.golden)
    }

    @Test func writableBitsAreTheSpecifications() {
        let fixture = Fixture(bars: Self.bars, Self.everything)
        // Not by writing to Device Control: bit 15 would reset. Nor to PMCSR: states have a test of their own.
        let untouched = [0x044, 0x074]
        for offset in stride(from: 0, to: 4096, by: 4) where !untouched.contains(offset) {
            fixture.write(0xFFFF_FFFF, offset)
        }
        fixture.write(0x7FFF, 0x074, 2)
        let changed = nonzeroWords { fixture.read($0) ^ (Self.golden[$0] ?? 0) }
        #expect(
            changed == [
                0x004: 0x0000_0546,  // Memory, master, parity, SERR#, no INTx
                0x00C: 0x0000_00FF,  // Cache Line Size
                0x010: 0xFFFF_C000,  // BAR 0: 16 KiB
                0x014: 0xFFFF_FFF0,  // BAR 1: 16 bytes
                0x01C: 0xFFFF_FFFF,  // BAR 2: 4 GiB
                0x020: 0xFFFF_F000,  // BAR 4: 4 KiB
                0x024: 0xFFFF_FFFF,
                0x03C: 0x0000_00FF,  // Interrupt Line
                0x048: 0x0071_0000,  // MSI Enable, Multiple Message Enable
                0x04C: 0xFFFF_FFFC,
                0x050: 0xFFFF_FFFF,
                0x054: 0x0000_FFFF,
                0x058: 0x0000_000F,  // 4 mask bits
                0x060: 0xC000_0000,  // MSI-X Enable, Function Mask
                0x074: 0x0000_57EF,  // 0x2810 was set
                0x07C: 0x0000_00CB,  // ASPM, RCB, common clock, extended synch
                0x094: 0x0000_0010,  // Completion Timeout Disable
                0x09C: 0x0000_000E,  // Target Link Speed; 1 was set
                0x0AC: 0x000C_00FE,  // 0x03 and 0x01 were set under masks 0x0F and 0xFF
                0x104: 0x801F_0000,  // ATS Enable, smallest translation unit
                0x10C: 0x0100_0001,  // PRI: Enable; no longer stopped
                0x114: 0xFFFF_FFFF,  // Outstanding Page Request Allocation
                0x11C: 0x0007_0000,  // PASID Enable, execute, privileged
                0x124: 0x001D_0000,  // ACS Control
            ]
        )
    }

    @Test func capabilitiesThatNobodyAskedForAreNotThere() {
        let fixture = Fixture(interruptPin: 0)
        #expect(
            nonzeroWords { fixture.read($0) } == [0x00: 0x5678_1234, 0x08: 0x0108_0207, 0x2C: 0xBEEF_CAFE]
        )
    }

    @Test func integratedEndpointHasNoLink() {
        let fixture = Fixture([.express(.rootComplexIntegratedEndpoint)])
        #expect(
            nonzeroWords { offset in offset < 0x40 ? 0 : fixture.read(offset) } == [
                0x40: 0x0092_0010, 0x44: 0x1000_8020, 0x48: 0x0000_2810, 0x64: 0x0000_0010,
            ]
        )
    }

    @Test func multiFunctionBit() {
        let model = RecordingModel()
        let memory = RecordingMemory()
        let description = PCIFunctionDescription(identity: Fixture.identity, isMultiFunction: true)
        let function = PCIFunction(name: "test", description, model: model) { memory.makePort() }
        #expect(function.readConfiguration(at: 0x0E, byteCount: 1) == 0x80)
    }

    // As Linux's __pci_read_base: all 1s, read, the old value back.
    @Test func barsAreSizedAndMoved() throws {
        let fixture = Fixture(bars: Self.bars, Self.everything)
        let sizes = (0..<6).map { index -> UInt32 in
            let offset = 0x10 + 4 * index
            let old = fixture.read(offset)
            fixture.write(0xFFFF_FFFF, offset)
            defer { fixture.write(old, offset) }
            return fixture.read(offset)
        }
        #expect(
            sizes == [0xFFFF_C000, 0xFFFF_FFF0, 0x0000_000C, 0xFFFF_FFFF, 0xFFFF_F004, 0xFFFF_FFFF]
        )
        #expect(fixture.function.address(ofBAR: 0) == 0)
        // Bits below the size are not taken.
        fixture.write(0x1234_5678, 0x10)
        #expect(fixture.function.address(ofBAR: 0) == 0x1234_4000)
        fixture.write(0xABCD_EF01, 0x20)
        fixture.write(0x0000_0012, 0x24)
        #expect(fixture.function.address(ofBAR: 4) == 0x12_ABCD_E000)
        #expect(fixture.read(0x20) == 0xABCD_E004)
        // Byte by byte.
        fixture.write(0x77, 0x13, 1)
        #expect(fixture.function.address(ofBAR: 0) == 0x7734_4000)
    }

    @Test func hostHearsOfTheHeaderOnly() {
        let fixture = Fixture(bars: Self.bars, Self.everything)
        fixture.write(0x0002, 0x04, 2)
        #expect(fixture.host.configurationChanges == 1)
        #expect(fixture.function.isMemoryEnabled)
        fixture.write(0x4000_0000, 0x10)
        #expect(fixture.host.configurationChanges == 2)
        fixture.write(0x0001, 0x4A, 2)
        #expect(fixture.host.configurationChanges == 2)
        #expect(fixture.model.changes == 3)
    }

    @Test func liveCapabilitiesAreTheModels() {
        let fixture = Fixture([
            .vendor([0x08, 0, 1, 2, 3, 4], writable: [0, 0, 0xFF, 0xFF], isLive: true), .powerManagement,
        ])
        #expect(fixture.function.vendorCapabilityOffset(0) == 0x40)
        // The model has no answer: what is stored.
        #expect(fixture.read(0x44) == 0x0403_0201)
        fixture.model.state.withLock { $0.liveAnswer = 0x1111_2222 }
        #expect(fixture.read(0x44) == 0x1111_2222)
        #expect(fixture.function.readStoredConfiguration(at: 0x44, byteCount: 4) == 0x0403_0201)
        #expect(fixture.read(0x48) == 0x0003_0001)
        fixture.write(0xFFFF_FFFF, 0x44)
        fixture.write(0xFFFF_FFFF, 0x4C)
        fixture.model.state.withLock { state in
            #expect(state.liveReads == [0x44, 0x44])
            #expect(state.liveWrites == [0x44])
        }
        #expect(fixture.function.readStoredConfiguration(at: 0x44, byteCount: 4) == 0x0403_FFFF)
    }

    @Test func pageServicesFollowTheirCapabilities() {
        let fixture = Fixture(bars: Self.bars, Self.everything)
        #expect(fixture.function.pageServices == PCIPageServices())
        fixture.write(0x8000, 0x106, 2)
        fixture.write(16, 0x114)
        fixture.write(1, 0x10C, 2)
        fixture.write(1, 0x11E, 2)
        #expect(
            fixture.function.pageServices
                == PCIPageServices(
                    isATSEnabled: true,
                    isPRIEnabled: true,
                    isPASIDEnabled: true,
                    outstandingRequests: 16
                )
        )
    }

    @Test(arguments: [1, 2, 3, 4, 5] as [UInt64])
    func randomAccessesNeverTrap(seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let fixture = Fixture(bars: Self.bars, Self.everything)
        let reserved = Set(Self.golden.keys)
        for _ in 0..<20_000 {
            let offset = Int.random(in: -8...4104, using: &random)
            let byteCount = Int.random(in: -1...9, using: &random)
            if Bool.random(using: &random) {
                fixture.write(UInt32.random(in: 0 ... .max, using: &random), offset, byteCount)
            } else {
                _ = fixture.read(offset, byteCount)
            }
            switch Int.random(in: 0..<20, using: &random) {
            case 0: fixture.function.signal(vector: Int.random(in: -2...40, using: &random))
            case 1: fixture.function.setINTx(Bool.random(using: &random))
            case 2:
                let width = try #require(AccessWidth.allCases.randomElement(using: &random))
                let place = UInt64.random(in: 0x7F8...0x1038, using: &random)
                let bar = Bool.random(using: &random) ? 0 : 4
                _ = try? fixture.function.readBAR(bar, at: place, width: width)
                try? fixture.function.writeBAR(bar, random.next(), at: place, width: width)
            default: break
            }
        }
        // What is read-only is as it was, whatever happened.
        #expect(fixture.read(0x00) == 0x5678_1234, "seed \(seed)")
        #expect(fixture.read(0x34) == 0x40, "seed \(seed)")
        for offset in stride(from: 0xB0, to: 0x100, by: 4) where !reserved.contains(offset) {
            #expect(fixture.read(offset) == 0, "seed \(seed)")
        }
        for extreme in [Int.min, Int.max, Int.max - 1, 4095, 4096] {
            fixture.write(0, extreme, 4)
            _ = fixture.read(extreme, 4)
        }
        #expect(fixture.read(4096) == 0xFFFF_FFFF)
        #expect(fixture.read(4094) == 0xFFFF_0000)
    }
}
