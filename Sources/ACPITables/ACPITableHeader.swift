// The header that all ACPI tables begin with, and what a file is that has none.

/// The System Description Table Header (ACPI 6.5, 5.2.6): 36 bytes.
package struct ACPITableHeader: Equatable, Sendable {
    /// Signature: 4 characters, `IORT`.
    package let signature: String
    /// Length of the whole table in bytes.
    package let byteCount: UInt32
    /// Revision of the table's format.
    package let revision: UInt8
    /// OEMID: 6 characters, the padding taken off.
    package let oemID: String
    /// OEM Table ID: 8 characters, the padding taken off.
    package let oemTableID: String
    /// OEM Revision.
    package let oemRevision: UInt32

    static let byteCount = 36

    init(_ table: TableBytes) {
        signature = printable(table.slice(at: 0, count: 4))
        byteCount = table.uint32(at: 4)
        revision = table.byte(at: 8)
        oemID = Self.text(table.slice(at: 10, count: 6))
        oemTableID = Self.text(table.slice(at: 16, count: 8))
        oemRevision = table.uint32(at: 24)
    }

    private static func text(_ bytes: ArraySlice<UInt8>) -> String {
        var kept = bytes.prefix { $0 != 0 }
        while kept.last == UInt8(ascii: " ") { kept.removeLast() }
        return printable(kept)
    }
}

/// Recognises the kinds of file that are given for an IORT by mistake.
enum NoTable {
    private static let remedy =
        "give the table's bytes as firmware has them: /sys/firmware/acpi/tables/IORT, or what iasl writes"

    /// What the bytes are, and what to give instead.
    static func diagnostic(_ bytes: [UInt8]) -> IORTDiagnostic {
        let (name, remedy) = kind(of: bytes)
        return IORTDiagnostic(problem: "not an IORT but " + name, remedy: remedy)
    }

    private static func kind(of bytes: [UInt8]) -> (name: String, remedy: String) {
        if bytes.isEmpty { return ("an empty file", remedy) }
        if bytes.starts(with: [0xd0, 0x0d, 0xfe, 0xed]) {
            return ("a device tree blob", "give it as BOARD.dtb, without --iort")
        }
        let head = bytes.prefix(4096)
        let isText = head.allSatisfy {
            (0x20..<0x7f).contains($0) || (0x09...0x0d).contains($0) || $0 >= 0x80
        }
        if isText { return textKind(String(decoding: head, as: UTF8.self)) }
        let table = TableBytes(bytes[...])
        let isSignature = bytes.prefix(4).allSatisfy {
            (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains($0)
                || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
        }
        if isSignature, bytes.count >= ACPITableHeader.byteCount, table.uint32(at: 4) <= bytes.count {
            return ("the ACPI table " + printable(bytes.prefix(4)), remedy)
        }
        let start = bytes.prefix(4).map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
        return ("something that starts with " + start.joined(separator: " "), remedy)
    }

    private static func textKind(_ text: String) -> (name: String, remedy: String) {
        if text.contains("Signature :") {
            return ("iasl's text of a table", "compile it first: iasl iort.dsl writes iort.aml")
        }
        if text.contains(" @ 0x") {
            return ("acpidump's text", "take the table out of it first: acpixtract -sIORT writes iort.dat")
        }
        return ("text", remedy)
    }
}
