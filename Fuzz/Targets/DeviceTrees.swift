// Fuzzes the reading of device tree blobs.

import DeviceTree

func fuzzDeviceTree(_ bytes: UnsafeRawBufferPointer) {
    do throws(DeviceTreeErrors) {
        let board = try BoardDescription.load(Array(bytes))
        for smmu in board.smmus {
            precondition(board.tree.node(at: smmu.path) != nil, "an SMMU without a node")
        }
        for warning in board.warnings {
            precondition(!warning.description.isEmpty, "a warning without words")
        }
    } catch {
        precondition(!error.diagnostics.isEmpty, "an error without a diagnostic")
    }
}
