// What describes the board: a device tree, an IORT, or both, and RAM that neither has.

import AddressSpace
import ArgumentParser
import DeviceTree

/// The board's files, as the command line names them.
struct BoardFiles: Sendable {
    /// The device tree blob; nil where the IORT stands alone.
    var tree: String?
    /// The IORT.
    var iort: String?
    /// RAM beside the tree's.
    var ram: [AddressRange] = []

    /// What the board is called in messages and tables: its files.
    var source: String { [tree, iort].compactMap { $0 }.joined(separator: " + ") }

    /// A diagnostic with the file before it that it is of.
    func line(_ diagnostic: DeviceTreeDiagnostic) -> String {
        let file: String? =
            switch diagnostic.origin {
            case .deviceTree: tree ?? iort
            case .iort: iort
            case .request: nil
            }
        return file.map { "\($0): \(diagnostic)" } ?? diagnostic.description
    }
}

/// `0x80000000,1G`: where RAM is, and how much.
struct RAMArgument: ExpressibleByArgument, Sendable {
    let range: AddressRange

    init?(argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false)
        guard parts.count == 2, let address = Self.number(parts[0]), let byteCount = Self.size(parts[1]),
            let range = AddressRange(start: address, byteCount: byteCount)
        else { return nil }
        self.range = range
    }

    private static func number(_ text: Substring) -> UInt64? {
        text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : UInt64(text)
    }

    /// A number of bytes, or of KiB, MiB, GiB or TiB by the letter behind it.
    private static func size(_ text: Substring) -> UInt64? {
        let shifts: [Character: UInt64] = ["K": 10, "M": 20, "G": 30, "T": 40]
        guard let last = text.last, let shift = shifts[last] else { return number(text) }
        guard let count = number(text.dropLast()), count <= UInt64.max >> shift else { return nil }
        return count << shift
    }
}
