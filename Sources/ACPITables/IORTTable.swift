// The I/O Remapping Table of Arm's DEN0049: from bytes to checked nodes.

/// An IORT, parsed.
///
/// Every length, offset and reference in it is good: nodes lie in the table one behind the other, arrays lie in their
/// nodes, and references lead to nodes of a type that may take them.
package struct IORTTable: Equatable, Sendable {
    package let header: ACPITableHeader
    /// The nodes in the order of the table.
    package let nodes: [IORTNode]
    /// What is doubtful, but no reason to refuse the table.
    package let warnings: [IORTDiagnostic]
    private let indexByOffset: [Int: Int]

    /// What a table may at most take: real ones have a few KiB.
    package static let maximumByteCount = 256 << 10
    /// The header, Number of IORT nodes, Offset to IORT nodes, 4 bytes reserved.
    static let headerByteCount = 48
    /// The newest revision of the table that is understood, of DEN0049E.e and E.f.
    static let newestRevision: UInt8 = 7

    /// Parses a table.
    ///
    /// - Throws: ``IORTErrors`` with everything that is wrong with it.
    package init(_ bytes: [UInt8]) throws(IORTErrors) {
        var log = IORTLog()
        let table = try Self.checkedTable(bytes, &log)
        let header = ACPITableHeader(table)
        var reader = IORTReader(table: table, log: log)
        let nodes = reader.readNodes(
            count: table.uint32(at: 36),
            offset: table.uint32(at: 40),
            revision: header.revision
        )
        log = reader.log
        var indices: [Int: Int] = [:]
        for (index, node) in nodes.enumerated() { indices[node.offset] = index }
        // Behind a node that is broken nobody knows where nodes start.
        if log.errors.isEmpty {
            for node in nodes { Self.checkReferences(of: node, nodes, indices, &log) }
        }
        if let first = log.errors.first { throw IORTErrors(first, log.errors.dropFirst()) }
        self.header = header
        self.nodes = nodes
        warnings = log.warnings
        indexByOffset = indices
    }

    /// The node that a reference leads to.
    package func node(at offset: UInt32) -> IORTNode? {
        Int(exactly: offset).flatMap { indexByOffset[$0] }.map { nodes[$0] }
    }

    // MARK: - The table as a whole

    private static func checkedTable(_ bytes: [UInt8], _ log: inout IORTLog) throws(IORTErrors) -> TableBytes
    {
        // The text of acpidump begins with the signature too.
        guard bytes.starts(with: Array("IORT".utf8)), !isText(bytes) else {
            throw IORTErrors(NoTable.diagnostic(bytes))
        }
        let file = TableBytes(bytes[...])
        guard bytes.count <= maximumByteCount else {
            throw IORTErrors(
                IORTDiagnostic(
                    problem: "the IORT is too large",
                    remedy: "it has at most \(maximumByteCount) bytes (256 KiB)"
                )
            )
        }
        let length = Int(truncatingIfNeeded: file.uint32(at: 4))
        guard bytes.count >= headerByteCount, length >= headerByteCount else {
            throw IORTErrors(
                bytes.count < headerByteCount
                    ? IORTDiagnostic(
                        problem: "the IORT is truncated: \(bytes.count) bytes",
                        remedy: "its header alone has \(headerByteCount)"
                    )
                    : IORTDiagnostic(
                        field: "Table Length",
                        problem: "is \(hex(length))",
                        remedy: "the header alone has \(hex(headerByteCount)) bytes"
                    )
            )
        }
        guard length <= bytes.count else {
            throw IORTErrors(
                IORTDiagnostic(
                    problem: "the IORT is truncated: the file has \(bytes.count) bytes",
                    remedy: "its header says \(length) (Table Length)"
                )
            )
        }
        if length < bytes.count {
            log.warn(
                IORTDiagnostic(
                    field: "Table Length",
                    problem: "is \(length), and the file has \(bytes.count) bytes",
                    remedy: "what follows the table is ignored"
                )
            )
        }
        let table = TableBytes(bytes.prefix(length))
        checkHeader(table, &log)
        return table
    }

    private static func isText(_ bytes: [UInt8]) -> Bool {
        bytes.count > 4
            && bytes.prefix(256).allSatisfy { (0x20..<0x7f).contains($0) || (0x09...0x0d).contains($0) }
    }

    private static func checkHeader(_ table: TableBytes, _ log: inout IORTLog) {
        if table.sum != 0 {
            let stored = table.byte(at: 9)
            log.report(
                IORTDiagnostic(
                    field: "Checksum",
                    problem: "is \(hex(stored)), and the bytes add up to \(hex(table.sum))",
                    remedy:
                        "all bytes of a table add up to 0: \(hex(stored &- table.sum)) would be right, if it is "
                        + "not damaged"
                )
            )
        }
        let revision = table.byte(at: 8)
        if revision > newestRevision {
            log.warn(
                IORTDiagnostic(
                    field: "Revision",
                    problem: "is \(revision)",
                    remedy: "known are 0 to \(newestRevision); it is read as far as it is like them"
                )
            )
        }
        if revision == 1 || revision == 2 || revision == 4 {
            log.warn(
                IORTDiagnostic(
                    field: "Revision",
                    problem: "is \(revision)",
                    remedy: "0, 3, 5, 6 and 7 are in use; it is read as far as it is like them"
                )
            )
        }
    }
}
