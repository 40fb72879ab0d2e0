// Small pieces of text that several reports share.

package import ControlProtocol

/// How values are spelled for people.
package enum Format {
    /// `4 KiB`, `1.5 GiB`, `17 bytes`: exact where it is whole or half, else rounded to a tenth.
    package static func size(_ byteCount: UInt64) -> String {
        let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var unit = 0
        while unit + 1 < units.count, byteCount >> UInt64(10 * (unit + 1)) != 0 { unit += 1 }
        let one = UInt64(1) << UInt64(10 * unit)
        let whole = byteCount / one
        // The remainder is below 2^60, so ten times it fits.
        let tenths = byteCount % one * 10 / one
        let number = tenths == 0 ? "\(whole)" : "\(whole).\(tenths)"
        return byteCount == 1 ? "1 byte" : "\(number) \(units[unit])"
    }

    /// `0x1000-0x1fff (4 KiB)`; the base alone where the size is 0 or the range leaves 64 bits.
    package static func range(_ range: RangeInfo) -> String {
        let (last, overflow) = range.base.value.addingReportingOverflow(range.size.value &- 1)
        guard range.size.value > 0, !overflow else { return "\(range.base) (size \(range.size))" }
        return "\(range.base)-\(Hex(last)) (\(size(range.size.value)))"
    }

    /// A 64-bit word with all its digits, in two halves: `0x00000000_8003f001`.
    package static func word(_ word: Hex) -> String {
        let digits = String(word.value, radix: 16)
        let padded = String(repeating: "0", count: 16 - digits.count) + digits
        return "0x\(padded.prefix(8))_\(padded.suffix(8))"
    }

    /// A value with as many digits as a word of `bits` bits has.
    package static func value(_ value: Hex, bits: Int) -> String {
        let digits = String(value.value, radix: 16)
        return "0x" + String(repeating: "0", count: max(0, bits / 4 - digits.count)) + digits
    }

    /// `OAS[2:0] = 5, 48 bits`.
    package static func field(_ field: FieldInfo) -> String {
        let bits = field.high == field.low ? "[\(field.low)]" : "[\(field.high):\(field.low)]"
        return "\(field.name)\(bits) = \(field.value)" + (field.meaning.map { ", \($0)" } ?? "")
    }

    /// `SPI 74, INTID 106, edge-rising`, or the specifier's cells where the controller is no GIC.
    package static func interrupt(_ interrupt: InterruptInfo) -> String {
        var parts: [String] = []
        if let intid = interrupt.intid {
            parts.append("INTID \(intid)")
            if (32..<1020).contains(intid) { parts[0] = "SPI \(intid - 32) (INTID \(intid))" }
            if (16..<32).contains(intid) { parts[0] = "PPI \(intid - 16) (INTID \(intid))" }
        } else {
            parts.append("<" + interrupt.specifier.map { "\($0)" }.joined(separator: " ") + ">")
        }
        if let trigger = interrupt.trigger { parts.append(trigger) }
        return parts.joined(separator: ", ")
    }

    /// A fault in one line, the way a person wants to read it first.
    package static func fault(_ fault: FaultInfo) -> String {
        let what: String
        switch fault.kind {
        case .event:
            what = "\(fault.name ?? "event") (\(fault.event.map(\.description) ?? "?"))"
        case .aborted: what = "aborted without an event"
        case .bus: what = "nobody answers at physical \(fault.physicalAddress.map(\.description) ?? "?")"
        }
        return "fault: \(what) at IOVA \(fault.address), \(size(fault.bytesTransferred.value)) transferred"
            + (fault.message.isEmpty ? "" : ": \(fault.message)")
    }

    /// `text` with tabs as spaces, and every other control character but the newline replaced by `?`.
    ///
    /// Names come from device trees: a terminal must not take one for a command.
    package static func printable(_ text: String) -> String {
        String(
            String.UnicodeScalarView(
                text.unicodeScalars.map { scalar in
                    guard scalar.properties.generalCategory == .control, scalar != "\n" else { return scalar }
                    return scalar == "\t" ? " " : "?"
                }
            )
        )
    }

    /// `1 thing`, `3 things`.
    static func count(_ count: some BinaryInteger, _ noun: String) -> String {
        "\(count) \(noun)\(count == 1 ? "" : "s")"
    }
}

/// Bytes with their addresses, sixteen to a line, as `hexdump -C` prints them.
package enum Hexdump {
    /// The lines, each with its newline.
    ///
    /// Lines equal to the one before are left out, and one `*` stands for them; the last line is the address
    /// after the last byte.
    package static func text(_ bytes: [UInt8], at address: UInt64 = 0) -> String {
        var text = ""
        var previous: ArraySlice<UInt8> = []
        var isRepeating = false
        for start in stride(from: 0, to: bytes.count, by: 16) {
            let row = bytes[start..<min(start + 16, bytes.count)]
            if row.elementsEqual(previous) {
                if !isRepeating { text += "*\n" }
                isRepeating = true
                continue
            }
            isRepeating = false
            previous = row
            text += line(row, at: address &+ UInt64(start))
        }
        return text + digits(address &+ UInt64(bytes.count), 16) + "\n"
    }

    private static func line(_ row: ArraySlice<UInt8>, at address: UInt64) -> String {
        var line = digits(address, 16)
        for column in 0..<16 {
            line += column == 8 ? "  " : " "
            let place = row.startIndex + column
            line += place < row.endIndex ? digits(UInt64(row[place]), 2) : "  "
        }
        line += "  |"
        for byte in row {
            line += (0x20..<0x7f).contains(byte) ? String(UnicodeScalar(byte)) : "."
        }
        return line + "|\n"
    }

    private static func digits(_ value: UInt64, _ count: Int) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: max(0, count - digits.count)) + digits
    }
}
