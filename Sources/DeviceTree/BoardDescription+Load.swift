// From files or their bytes to a board.

import ACPITables
package import AddressSpace
import Glibc

extension BoardDescription {
    /// Reads a device tree blob.
    ///
    /// - Throws: ``DeviceTreeErrors`` with everything that is wrong with it.
    package static func load(_ bytes: [UInt8]) throws(DeviceTreeErrors) -> BoardDescription {
        try BoardDescription(try FlattenedDeviceTree(bytes))
    }

    /// Reads a device tree blob, an IORT, or both: then the IORT stands beside the tree.
    ///
    /// - Parameters:
    ///   - tree: The blob; nil where the IORT alone describes the board.
    ///   - iort: The table; nil where there is none.
    ///   - ram: RAM beside the tree's. A board without a tree has ``defaultRAM`` where this is empty, with a warning.
    /// - Throws: ``DeviceTreeErrors`` with everything that is wrong.
    package static func load(tree: [UInt8]?, iort: [UInt8]?, ram: [AddressRange] = [])
        throws(DeviceTreeErrors)
        -> BoardDescription
    {
        let parsedTree = try tree.map { (bytes) throws(DeviceTreeErrors) in try FlattenedDeviceTree(bytes) }
        let table: IORTTable?
        do throws(IORTErrors) {
            table = try iort.map { (bytes) throws(IORTErrors) in try IORTTable(bytes) }
        } catch {
            let all = error.diagnostics.map { DeviceTreeDiagnostic($0) }
            throw DeviceTreeErrors(all[0], all.dropFirst())
        }
        return try BoardDescription(parsedTree, table, ram: ram)
    }

    /// RAM of a board that only an IORT describes, which says nothing of it: 256 MiB where many machines have RAM.
    package static let defaultRAM: ClosedRange<UInt64> = 0x4000_0000...0x4FFF_FFFF

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
    package init(_ tree: FlattenedDeviceTree) throws(DeviceTreeErrors) { try self.init(tree, nil, ram: []) }

    private init(_ tree: FlattenedDeviceTree?, _ iort: IORTTable?, ram: [AddressRange])
        throws(DeviceTreeErrors)
    {
        var builder = BoardBuilder(tree: tree ?? .empty)
        for warning in iort?.warnings ?? [] { builder.log.warn(DeviceTreeDiagnostic(warning)) }
        var ram = ram
        if tree == nil, ram.isEmpty,
            let range = AddressRange(first: Self.defaultRAM.lowerBound, last: Self.defaultRAM.upperBound)
        {
            ram = [range]
            builder.log.warn(
                DeviceTreeDiagnostic(
                    path: "--ram",
                    problem: "missing, and an IORT says nothing of RAM: \(range) is RAM",
                    remedy: "--ram ADDRESS,SIZE puts it elsewhere",
                    origin: .request
                )
            )
        }
        let board = builder.build(iort: iort, ram: ram)
        if let first = builder.log.errors.first {
            throw DeviceTreeErrors(first, builder.log.errors.dropFirst())
        }
        self = board
    }
}
