// Fuzzes the reading of IORTs, and what boards are made of them.

import ACPITables
import DeviceTree

func fuzzIORT(_ bytes: UnsafeRawBufferPointer) {
    let bytes = Array(bytes)
    loadBoard(bytes)
    // A fuzzer does not guess checksums: the same once more with what the header has to say of any table.
    guard bytes.count >= 36 else { return }
    var table = bytes
    table.replaceSubrange(0..<4, with: Array("IORT".utf8))
    for index in 0..<4 { table[4 + index] = UInt8(truncatingIfNeeded: table.count >> (8 * index)) }
    table[9] = 0
    table[9] = 0 &- table.reduce(0, &+)
    loadBoard(table)
}

private func loadBoard(_ bytes: [UInt8]) {
    if let table = try? IORTTable(bytes) {
        for node in table.nodes {
            precondition(node.offset + node.byteCount <= bytes.count, "a node beyond the table")
            for mapping in node.mappings {
                precondition(table.node(at: mapping.outputReference) != nil, "a reference to nowhere")
            }
        }
    }
    do throws(DeviceTreeErrors) {
        let board = try BoardDescription.load(tree: nil, iort: bytes)
        for host in board.pcieHosts {
            for requester in [0, 0xFF, 0x100, 0xFFFF] as [UInt16] {
                let smmu = host.iommu(forRequester: requester)
                precondition(smmu?.streamID == nil || board.smmu(at: smmu?.path ?? "") != nil, "no such SMMU")
                _ = host.msiController(forRequester: requester)
                _ = host.reservedIOVAs(forRequester: requester)
            }
        }
        for warning in board.warnings {
            precondition(!warning.description.isEmpty, "a warning without words")
        }
    } catch {
        precondition(!error.diagnostics.isEmpty, "an error without a diagnostic")
    }
}
