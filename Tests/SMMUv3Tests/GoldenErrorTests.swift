// The table of errors: every CERROR code and every bit of SMMU_GERROR, provoked, and the registers' words after it.

import SMMUv3Spec
import Testing

@testable import SMMUv3

/// One way to a global error.
struct ErrorRow: Sendable, CustomTestStringConvertible {
    let name: String
    /// SMMU_GERROR and SMMU_CMDQ_CONS after it.
    let gerror: UInt32
    let cons: UInt32
    /// How often the wired interrupt pulses.
    let interrupts: Int
    let provoke: @Sendable (TestGuest) throws -> Void
    var testDescription: String { name }

    /// Nobody answers here.
    static let nowhere: UInt64 = 0x44_0000_0000

    static let rows: [ErrorRow] = [
        ErrorRow(name: "CMDQ_ERR: CERROR_ILL", gerror: 0x001, cons: 0x0100_0000, interrupts: 1) { guest in
            try guest.issue(RawCommand(low: 0xFF))
        },
        ErrorRow(name: "CMDQ_ERR: CERROR_ABT", gerror: 0x001, cons: 0x0200_0000, interrupts: 1) { guest in
            try guest.write32(0x20, 0b0101)
            try guest.write64(0x90, nowhere | 6)
            try guest.write32(0x20, 0b1101)
            try guest.write32(0x98, 1)
        },
        ErrorRow(name: "EVENTQ_ABT_ERR", gerror: 0x004, cons: 0, interrupts: 1) { guest in
            try guest.write32(0x20, 0b1001)
            try guest.write64(0xA0, nowhere | 6)
            try guest.write32(0x20, 0b1101)
            #expect(guest.dmaRead(0x1234, 0) == .event(0x02))
            #expect(try guest.read32(0x1_00A8) == 0, "PROD stays")
        },
        ErrorRow(name: "MSI_CMDQ_ABT_ERR", gerror: 0x010, cons: 0x0000_0001, interrupts: 1) { guest in
            // SIG_IRQ, MSH and MSIAttr, MSIData 0x77.
            try guest.issue(RawCommand(low: 0x0000_0077_0FC0_1046, high: nowhere))
        },
        ErrorRow(name: "MSI_EVENTQ_ABT_ERR", gerror: 0x020, cons: 0, interrupts: 1) { guest in
            try MessageTests.program(guest, 0xB0, nowhere, 1)
            #expect(guest.dmaRead(0x1234, 0) == .event(0x02))
            #expect(try guest.takeEvents() == [[0x0000_1234_0000_0002, 0, 0, 0]], "the record is there")
        },
        // Its own interrupt would be the next message to nobody.
        ErrorRow(name: "MSI_GERROR_ABT_ERR", gerror: 0x081, cons: 0x0100_0000, interrupts: 1) { guest in
            try MessageTests.program(guest, 0x68, nowhere, 1)
            try guest.issue(RawCommand(low: 0x00))
        },
        ErrorRow(name: "all that there are at once", gerror: 0x0B5, cons: 0x0100_0001, interrupts: 4) {
            guest in
            try MessageTests.program(guest, 0xB0, nowhere, 1)
            try MessageTests.program(guest, 0x68, nowhere + 0x1000, 2)
            #expect(guest.dmaRead(0x1234, 0) == .event(0x02))
            try guest.write32(0x20, 0b1001)
            try guest.write64(0xA0, nowhere | 6)
            try guest.write32(0x20, 0b1101)
            #expect(guest.dmaRead(0x1234, 0) == .event(0x02))
            try guest.issue(RawCommand(low: 0x0000_0077_0FC0_1046, high: nowhere), RawCommand(low: 0xFF))
        },
    ]
}

@Suite("Table of errors")
struct GoldenErrorTests {
    /// Bits that no row raises, and what of SMMU_IDRn says that nothing can; see ``GoldenEventTests/unreachable``.
    static let unreachable: [(bit: Int, name: String, holds: @Sendable (Identification) -> Bool)] = [
        (3, "PRIQ_ABT_ERR", { !$0.idr0.pri }),
        (6, "MSI_PRIQ_ABT_ERR", { !$0.idr0.pri }),
        // Service failure mode is for hardware that breaks.
        (8, "SFM_ERR", { _ in true }),
        (9, "CMDQP_ERR", { !$0.idr1.ecmdq }),
        // The device permission table is RME DA's, which no profile has.
        (10, "DPT_ERR", { !$0.idr3.dpt }),
    ]

    @Test(
        "GERROR and CMDQ_CONS to the bit; the acknowledgement; the same again toggles back",
        arguments: ErrorRow.rows
    )
    func error(_ row: ErrorRow) throws {
        let guest = try TestGuest.full()
        try GoldenCommandTests.restartQueue(guest)
        #expect(try guest.read32(0x60) == 0)
        #expect(try guest.read32(0x9C) == 0)
        try row.provoke(guest)
        #expect(try guest.read32(0x60) == row.gerror)
        #expect(try guest.read32(0x9C) == row.cons)
        #expect(guest.errorLine.count == row.interrupts)
        // The command queue stands until it is told to go on; so its error comes back at once, the others do not.
        try guest.write32(0x64, row.gerror)
        let isStopped = row.gerror & 1 == 1
        let isMessageLost = row.gerror & 0x80 == 0x80
        let again: UInt32 = isStopped ? (isMessageLost ? 0x81 : 1) : 0
        #expect(try guest.activeErrors == again)
        #expect(try guest.read32(0x60) == row.gerror ^ again)
        #expect(try guest.read32(0x9C) == row.cons)
    }

    @Test("the table has every bit of SMMU_GERROR and every CERROR, or says why nothing raises it")
    func isComplete() {
        let raised = ErrorRow.rows.reduce(0) { $0 | $1.gerror }
        for field in GError.layout {
            let reason = Self.unreachable.first { $0.bit == field.low }
            #expect((raised >> UInt32(field.low) & 1 == 1) != (reason != nil), "\(field.name)")
            #expect(reason.map { $0.name == field.name } ?? true)
            for identification in [Identification.full(), .full(outputAddressBits: 52), .stage1()] {
                if let reason { #expect(reason.holds(identification), "\(field.name) is within reach now") }
            }
        }
        let codes = Set(ErrorRow.rows.map { UInt8($0.cons >> 24) })
        for code in UInt8.min...UInt8.max where CommandError(rawValue: code).name != nil {
            // CERROR_ATC_INV_SYNC needs ATS.
            let isUnreachable = code == 3 && !Identification.full().idr0.ats
            #expect(codes.contains(code) != isUnreachable, "\(CommandError(rawValue: code).name ?? "")")
        }
    }
}
