// The IORTs of this repository's folder iort/, as they are and spoilt.

import Glibc

/// A test cannot get at its table.
package struct IORTFixtureError: Error, CustomStringConvertible {
    package let description: String

    package init(description: String) { self.description = description }
}

/// A table, and what a test changes in it.
package struct IORTFixture: Sendable {
    package var bytes: [UInt8]

    package init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// A table of the folder, by its name without `.hex`: pairs of digits, and comments from `#` to the line's end.
    package init(_ name: String) throws {
        let path = Self.folder + "/\(name).hex"
        guard let file = fopen(path, "r") else {
            throw IORTFixtureError(description: "\(path): \(String(cString: strerror(errno)))")
        }
        defer { fclose(file) }
        var text: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = fread(&chunk, 1, chunk.count, file)
            guard count > 0 else { break }
            text += chunk[..<count]
        }
        bytes = []
        for line in String(decoding: text, as: UTF8.self).split(separator: "\n") {
            for word in line.prefix(while: { $0 != "#" }).split(separator: " ") {
                guard let byte = UInt8(word, radix: 16) else {
                    throw IORTFixtureError(description: "\(path): \(word) is no byte")
                }
                bytes.append(byte)
            }
        }
    }

    private static let folder =
        #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(4).joined(separator: "/")
        + "/iort"

    /// The table with little-endian words written over it.
    package func with(_ changes: IORTChange...) -> Self { with(changes) }

    package func with(_ changes: [IORTChange]) -> Self {
        var copy = self
        for change in changes {
            for index in 0..<change.byteCount where change.offset + index < copy.bytes.count {
                copy.bytes[change.offset + index] = UInt8(
                    truncatingIfNeeded: change.value >> UInt64(8 * index)
                )
            }
        }
        return copy.summed()
    }

    /// The table with the right checksum.
    package func summed() -> Self {
        guard bytes.count > 9 else { return self }
        var copy = self
        copy.bytes[9] = 0
        copy.bytes[9] = 0 &- copy.bytes.reduce(0, &+)
        return copy
    }

    /// The table without these nodes, by their offsets: of a type that nobody knows.
    package func without(_ offsets: Int...) -> Self {
        with(offsets.map { IORTChange($0, 0xEE, byteCount: 1) })
    }
}

/// A word that a test writes.
package struct IORTChange: Sendable {
    package let offset: Int
    package let value: UInt64
    package let byteCount: Int

    package init(_ offset: Int, _ value: UInt64, byteCount: Int = 4) {
        self.offset = offset
        self.value = value
        self.byteCount = byteCount
    }
}
