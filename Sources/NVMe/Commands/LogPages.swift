// Log pages as bytes (Base Specification 1.4, section 5.14).

import Synchronization

/// Log Page Identifiers (LID).
enum LogPageIdentifier {
    static let errorInformation: UInt8 = 0x01
    static let health: UInt8 = 0x02
    static let firmwareSlots: UInt8 = 0x03
    static let commandEffects: UInt8 = 0x05
}

/// What Get Log Page answers with.
enum LogPages {
    /// SMART / Health Information, 512 bytes.
    static func health(_ totals: TransferTotals, errorCount: UInt64) -> [UInt8] {
        var page = ByteBlock(byteCount: 512)
        page.set(300, at: 1, byteCount: 2)  // Composite temperature, in kelvin.
        page.set(100, at: 3, byteCount: 1)  // Available spare, in percent.
        page.set(10, at: 4, byteCount: 1)
        page.set(units(totals.bytesRead), at: 32, byteCount: 16)
        page.set(units(totals.bytesWritten), at: 48, byteCount: 16)
        page.set(totals.readCommands.load(ordering: .relaxed), at: 64, byteCount: 16)
        page.set(totals.writeCommands.load(ordering: .relaxed), at: 80, byteCount: 16)
        page.set(1, at: 112, byteCount: 16)  // Power cycles.
        page.set(totals.mediaErrors.load(ordering: .relaxed), at: 160, byteCount: 16)
        page.set(errorCount, at: 176, byteCount: 16)
        return page.bytes
    }

    /// Data units: thousands of 512 bytes, rounded up.
    private static func units(_ bytes: borrowing Atomic<UInt64>) -> UInt64 {
        let count = bytes.load(ordering: .relaxed)
        return count / 512_000 + (count % 512_000 == 0 ? 0 : 1)
    }

    /// Firmware Slot Information, 512 bytes: slot 1 is all there is.
    static var firmwareSlots: [UInt8] {
        var page = ByteBlock(byteCount: 512)
        page.set(1, at: 0, byteCount: 1)
        page.set(IdentifyPages.firmwareRevision, at: 8, byteCount: 8, padding: 0x20)
        return page.bytes
    }

    /// Commands Supported and Effects, 4096 bytes.
    static var commandEffects: [UInt8] {
        var page = ByteBlock(byteCount: 4096)
        for opcode in AdminOpcode.all { page.set(1, at: Int(opcode) * 4, byteCount: 4) }
        for opcode in NVMOpcode.all {
            // CSUPP, and LBCC where it changes blocks.
            page.set(NVMOpcode.writing.contains(opcode) ? 3 : 1, at: 1024 + Int(opcode) * 4, byteCount: 4)
        }
        return page.bytes
    }
}
