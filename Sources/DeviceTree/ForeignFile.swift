// What a file is that somebody took for a device tree blob.

/// Recognises the kinds of file that are given for a device tree blob by mistake.
enum ForeignFile {
    private static let blobRemedy = "give a flattened device tree (.dtb), which starts with d0 0d fe ed"

    private struct Kind {
        let magic: [UInt8]
        let name: String
        var remedy = ForeignFile.blobRemedy
    }

    private static let kinds: [Kind] = [
        Kind(magic: [0xed, 0xfe, 0x0d, 0xd0], name: "one whose bytes are swapped"),
        Kind(
            magic: [0xd7, 0xb7, 0xab, 0x1e],
            name: "an Android DTB/DTBO image",
            remedy: "take one blob out of it, for instance with mkdtboimg dump"
        ),
        Kind(magic: [0x7f] + Array("ELF".utf8), name: "an ELF file"),
        Kind(magic: Array("MZ".utf8), name: "an EFI or kernel image"),
        Kind(magic: [0x1f, 0x8b], name: "a gzip file", remedy: "unpack it first"),
        Kind(magic: [0xfd] + Array("7zXZ".utf8), name: "an xz file", remedy: "unpack it first"),
        Kind(magic: [0x28, 0xb5, 0x2f, 0xfd], name: "a zstd file", remedy: "unpack it first"),
        Kind(magic: Array("PK".utf8), name: "a zip file", remedy: "unpack it first"),
        Kind(
            magic: Array("!<arch>".utf8),
            name: "an ar archive or Debian package",
            remedy: "unpack it first"
        ),
        Kind(magic: Array("DSDT".utf8), name: "an ACPI table"),
        Kind(magic: Array("IORT".utf8), name: "an IORT", remedy: "give it with --iort"),
        Kind(magic: Array("{".utf8), name: "JSON text"),
    ]

    private static func kind(of bytes: [UInt8]) -> Kind {
        if bytes.isEmpty { return Kind(magic: [], name: "an empty file") }
        if let kind = kinds.first(where: { bytes.starts(with: $0.magic) }) { return kind }
        let head = bytes.prefix(4096)
        let isText = head.allSatisfy {
            (0x20..<0x7f).contains($0) || (0x09...0x0d).contains($0) || $0 >= 0x80
        }
        if isText, contains(head, "/dts-v1/") || contains(head, "/ {") {
            return Kind(
                magic: [],
                name: "device tree source",
                remedy: "compile it first: dtc -I dts -O dtb -o board.dtb board.dts"
            )
        }
        if isText { return Kind(magic: [], name: "text") }
        let start = bytes.prefix(4).map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(
            separator: " "
        )
        return Kind(magic: [], name: "something that starts with " + start)
    }

    private static func contains(_ bytes: ArraySlice<UInt8>, _ text: String) -> Bool {
        let pattern = Array(text.utf8)
        return bytes.indices.contains { bytes[$0...].starts(with: pattern) }
    }

    /// What the bytes are: `an ELF file`.
    static func describe(_ bytes: [UInt8]) -> String { kind(of: bytes).name }

    /// What to give instead.
    static func remedy(for bytes: [UInt8]) -> String { kind(of: bytes).remedy }
}
