// From a file or its bytes to a board.

import Glibc

extension BoardDescription {
    /// Reads a device tree blob.
    ///
    /// - Throws: ``DeviceTreeErrors`` with everything that is wrong with it.
    package static func load(_ bytes: [UInt8]) throws(DeviceTreeErrors) -> BoardDescription {
        try BoardDescription(try FlattenedDeviceTree(bytes))
    }

    /// Reads a file with a device tree blob.
    ///
    /// - Throws: ``DeviceTreeErrors`` where it cannot be read, or with everything that is wrong with it.
    package static func load(contentsOf path: String) throws(DeviceTreeErrors) -> BoardDescription {
        // One byte more than a tree may have tells a large file without reading all of it.
        try load(try readFile(path, atMost: FlattenedDeviceTree.maximumByteCount + 1))
    }

    private static func readFile(_ path: String, atMost limit: Int) throws(DeviceTreeErrors) -> [UInt8] {
        func failure() -> DeviceTreeErrors {
            let reason = String(cString: strerror(errno))
            return DeviceTreeErrors(
                DeviceTreeDiagnostic(path: nil, problem: "the file cannot be read: " + reason)
            )
        }
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { throw failure() }
        defer { close(file) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        while bytes.count < limit {
            let count = chunk.withUnsafeMutableBytes { read(file, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw failure() }
            if count == 0 { break }
            bytes += chunk.prefix(count)
        }
        return bytes
    }

    /// Understands a parsed tree.
    ///
    /// - Throws: ``DeviceTreeErrors`` with everything that is wrong with it.
    package init(_ tree: FlattenedDeviceTree) throws(DeviceTreeErrors) {
        var builder = BoardBuilder(tree: tree)
        let board = builder.build()
        if let first = builder.log.errors.first {
            throw DeviceTreeErrors(first, builder.log.errors.dropFirst())
        }
        self = board
    }
}
