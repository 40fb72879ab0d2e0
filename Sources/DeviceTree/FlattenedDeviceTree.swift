// The flattened device tree: checked and read once through libfdt, then a tree of values.

package import AddressSpace
import CLibFDT
import Glibc

/// A device tree, parsed.
///
/// Every limit that a hostile file could abuse is checked here: size, depth, path length.
package struct FlattenedDeviceTree: Equatable, Sendable {
    /// All nodes in the order of the file: a parent before its children, the root first.
    package private(set) var nodes: [DeviceTreeNode] = []
    /// The `/memreserve/` entries: memory that the boot loader asks the system to leave alone.
    package private(set) var memoryReservations: [AddressRange] = []
    private var indexByPhandle: [UInt32: Int] = [:]
    private var indexByPath: [String: Int] = [:]

    /// What a device tree may at most take: Linux's own limit (MAX_FDT_SIZE).
    package static let maximumByteCount = 2 << 20
    /// How deep nodes may nest: Linux's own limit (FDT_MAX_DEPTH).
    static let maximumDepth = 64
    /// How long a path may be, in bytes.
    static let maximumPathLength = 1024

    /// Parses a blob.
    ///
    /// - Throws: ``DeviceTreeErrors`` where the bytes are no whole, well-formed device tree. Says what they
    ///   are instead, where that can be told.
    package init(_ bytes: [UInt8]) throws(DeviceTreeErrors) {
        try Self.checkHeader(bytes)
        guard !Self.hasEndlessProperty(bytes) else {
            throw Self.malformed("has a property that is longer than the blob")
        }
        var log = DiagnosticLog()
        // libfdt wants its blob aligned to 8 bytes, which an array's storage does not promise.
        let blob = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 8)
        defer { blob.deallocate() }
        blob.copyBytes(from: bytes)
        guard let base = UnsafeRawPointer(blob.baseAddress) else { throw Self.malformed("is empty") }
        let status = fdt_check_full(base, blob.count)
        guard status == 0 else { throw Self.malformed(Self.libfdtMessage(status)) }
        try readNodes(base, &log)
        readReservations(base)
        indexPhandles(&log)
        if let first = log.errors.first { throw DeviceTreeErrors(first, log.errors.dropFirst()) }
    }

    /// A tree with nothing but its root: that of a board which another table describes.
    static let empty = Self(
        root: DeviceTreeNode(index: 0, parentIndex: nil, name: "", path: "/", properties: [])
    )

    private init(root: DeviceTreeNode) {
        nodes = [root]
        indexByPath = ["/": 0]
    }

    /// The root node.
    package var root: DeviceTreeNode { nodes[0] }

    /// The node with this full path.
    package func node(at path: String) -> DeviceTreeNode? { indexByPath[path].map { nodes[$0] } }

    /// The node with this phandle.
    package func node(phandle: UInt32) -> DeviceTreeNode? { indexByPhandle[phandle].map { nodes[$0] } }

    /// A node's parent; nil for the root.
    package func parent(of node: DeviceTreeNode) -> DeviceTreeNode? { node.parentIndex.map { nodes[$0] } }

    /// A node's children in the order of the file.
    package func children(of node: DeviceTreeNode) -> [DeviceTreeNode] { node.childIndices.map { nodes[$0] } }

    /// Whether the node and all nodes above it are there to be used: `status` is absent, `okay` or `ok`.
    package func isEnabled(_ node: DeviceTreeNode) -> Bool {
        var next: DeviceTreeNode? = node
        while let current = next {
            if let status = current["status"] {
                guard status.strings == ["okay"] || status.strings == ["ok"] else { return false }
            }
            next = parent(of: current)
        }
        return true
    }
}

// MARK: - Reading

extension FlattenedDeviceTree {
    /// Walks the structure block and takes every node over.
    private mutating func readNodes(_ base: UnsafeRawPointer, _ log: inout DiagnosticLog)
        throws(DeviceTreeErrors)
    {
        var ancestors: [Int] = []
        var depth: CInt = -1
        var offset = fdt_next_node(base, -1, &depth)
        while offset >= 0, depth >= 0 {
            guard depth < Self.maximumDepth else {
                throw Self.malformed("nests nodes more than \(Self.maximumDepth) deep")
            }
            ancestors.removeSubrange(min(Int(depth), ancestors.count)...)
            guard nodes.isEmpty == (depth == 0), ancestors.count == depth else {
                throw Self.malformed("has more than one root node")
            }
            let index = try readNode(base, offset, parent: ancestors.last, &log)
            ancestors.append(index)
            offset = fdt_next_node(base, offset, &depth)
        }
        guard !nodes.isEmpty else { throw Self.malformed("has no root node") }
    }

    private mutating func readNode(
        _ base: UnsafeRawPointer,
        _ offset: CInt,
        parent: Int?,
        _ log: inout DiagnosticLog
    ) throws(DeviceTreeErrors) -> Int {
        var length: CInt = 0
        guard let rawName = fdt_get_name(base, offset, &length), length >= 0 else {
            throw Self.malformed(Self.libfdtMessage(length))
        }
        let name = printable(UnsafeRawBufferPointer(start: rawName, count: Int(length)))
        let path = parent.map { nodes[$0].path == "/" ? "/" + name : nodes[$0].path + "/" + name } ?? "/"
        guard path.utf8.count <= Self.maximumPathLength else {
            throw Self.malformed("has a node whose path is longer than \(Self.maximumPathLength) bytes")
        }
        let index = nodes.count
        let properties = Self.readProperties(base, offset, path, &log)
        nodes.append(
            DeviceTreeNode(
                index: index,
                parentIndex: parent,
                name: parent == nil ? "" : name,
                path: path,
                properties: properties
            )
        )
        if let parent { nodes[parent].childIndices.append(index) }
        if indexByPath.updateValue(index, forKey: path) != nil {
            log.report(
                DeviceTreeDiagnostic(
                    path: path,
                    problem: "stands twice in its parent",
                    remedy: "each child needs a name of its own"
                )
            )
        }
        return index
    }

    private static func readProperties(
        _ base: UnsafeRawPointer,
        _ node: CInt,
        _ path: String,
        _ log: inout DiagnosticLog
    ) -> [DeviceTreeProperty] {
        var properties: [DeviceTreeProperty] = []
        var names: Set<String> = []
        var offset = fdt_first_property_offset(base, node)
        while offset >= 0 {
            var name: UnsafePointer<CChar>?
            var length: CInt = 0
            if let value = fdt_getprop_by_offset(base, offset, &name, &length), let name, length >= 0 {
                let bytes = [UInt8](UnsafeRawBufferPointer(start: value, count: Int(length)))
                // The check of the whole blob has found each name's end.
                let text = printable(UnsafeRawBufferPointer(start: name, count: strlen(name)))
                properties.append(DeviceTreeProperty(name: text, value: bytes))
                if !names.insert(text).inserted {
                    log.report(
                        DeviceTreeDiagnostic(
                            path: path,
                            property: text,
                            problem: "given twice",
                            remedy: "a node has a property once"
                        )
                    )
                }
            }
            offset = fdt_next_property_offset(base, offset)
        }
        return properties
    }

    private mutating func readReservations(_ base: UnsafeRawPointer) {
        for index in 0..<max(0, fdt_num_mem_rsv(base)) {
            var address: UInt64 = 0
            var size: UInt64 = 0
            guard fdt_get_mem_rsv(base, index, &address, &size) == 0 else { return }
            if let range = AddressRange(start: address, byteCount: size) { memoryReservations.append(range) }
        }
    }

    private mutating func indexPhandles(_ log: inout DiagnosticLog) {
        for node in nodes {
            // `linux,phandle` is what dtc wrote before `phandle` was agreed on.
            guard let property = node["phandle"] ?? node["linux,phandle"] else { continue }
            guard let phandle = property.cell, phandle != 0, phandle != .max else {
                log.report(
                    DeviceTreeDiagnostic(
                        path: node.path,
                        property: property.name,
                        problem: "not a phandle",
                        remedy: "it is one cell, neither 0 nor 0xffffffff"
                    )
                )
                continue
            }
            if let other = indexByPhandle[phandle] {
                log.report(
                    DeviceTreeDiagnostic(
                        path: node.path,
                        property: property.name,
                        problem: "\(hex(phandle)) is also the phandle of \(nodes[other].path)",
                        remedy: "each node needs its own"
                    )
                )
                continue
            }
            indexByPhandle[phandle] = node.index
        }
    }
}

// MARK: - What is wrong with a file

extension FlattenedDeviceTree {
    /// Tells a whole device tree from a cut one, and from other kinds of file.
    private static func checkHeader(_ bytes: [UInt8]) throws(DeviceTreeErrors) {
        guard bytes.count <= maximumByteCount else {
            throw malformed(
                "is too large",
                remedy: "a device tree has at most \(maximumByteCount) bytes (2 MiB)"
            )
        }
        guard bytes.starts(with: [0xd0, 0x0d, 0xfe, 0xed]) else {
            throw DeviceTreeErrors(
                DeviceTreeDiagnostic(
                    path: nil,
                    problem: "not a device tree blob but " + ForeignFile.describe(bytes),
                    remedy: ForeignFile.remedy(for: bytes)
                )
            )
        }
        guard bytes.count >= 40 else {
            throw malformed(
                "is truncated: \(count(bytes.count, "byte"))",
                remedy: "its header alone has 40 bytes"
            )
        }
        // Before version 16 nodes had full paths for names. libfdt 1.6 reads through a null pointer at a root node
        // that has none.
        let version = bytes[20..<24].reduce(0) { $0 << 8 | Int($1) }
        guard version >= 16 else {
            throw malformed("is of version \(version)", remedy: "version 16 or 17 is needed: dtc writes 17")
        }
        let totalSize = bytes[4..<8].reduce(0) { $0 << 8 | Int($1) }
        guard totalSize <= bytes.count else {
            throw malformed(
                "is truncated: the file has \(bytes.count) bytes",
                remedy: "its header says \(totalSize) (totalsize)"
            )
        }
    }

    private static func malformed(_ problem: String, remedy: String? = nil) -> DeviceTreeErrors {
        DeviceTreeErrors(
            DeviceTreeDiagnostic(path: nil, problem: "the device tree blob " + problem, remedy: remedy)
        )
    }

    /// What libfdt found wrong, in words.
    private static func libfdtMessage(_ status: CInt) -> String {
        let text = fdt_strerror(status).map { String(cString: $0) } ?? "error \(status)"
        return "is damaged: libfdt says \(text)"
    }
}
