// Who the namespace and the subsystem are, to all who compare disks.

/// Identifiers made from a serial number: the same at each start, different for different serial numbers.
struct NamespaceIdentity: Equatable {
    /// A UUID of version 8 (RFC 9562: what its maker likes).
    let uuid: [UInt8]
    /// The NVM subsystem's name, in the form that needs no domain.
    let subsystemName: String

    init(serialNumber: String) {
        let low = Self.hash(serialNumber, seed: 0xCBF2_9CE4_8422_2325)
        let high = Self.hash(serialNumber, seed: low ^ 0x736D_6D75_642D_6E76)
        var bytes = [high, low].flatMap { word in
            (0..<8).map { UInt8(truncatingIfNeeded: word &>> UInt64(56 - 8 * $0)) }
        }
        bytes[6] = bytes[6] & 0x0F | 0x80
        bytes[8] = bytes[8] & 0x3F | 0x80
        uuid = bytes
        subsystemName = "nqn.2014-08.org.nvmexpress:uuid:" + Self.text(bytes)
    }

    /// FNV-1a.
    private static func hash(_ text: String, seed: UInt64) -> UInt64 {
        text.utf8.reduce(seed) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
    }

    private static func text(_ bytes: [UInt8]) -> String {
        var text = ""
        for (index, byte) in bytes.enumerated() {
            if [4, 6, 8, 10].contains(index) { text += "-" }
            if byte < 16 { text += "0" }
            text += String(byte, radix: 16)
        }
        return text
    }
}
