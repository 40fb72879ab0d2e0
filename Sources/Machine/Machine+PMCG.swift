// Counter groups: built beside their SMMUs and put on the bus.

import AddressSpace
import DeviceModel
package import DeviceTree
package import PMCG
import SMMUv3
import SMMUv3Spec
import SystemBus

/// A performance monitor counter group of the machine.
package struct MachinePMCG: Sendable {
    package let node: PMCGNode
    package let model: PMCG
    /// The SMMU that it counts for, by its place in ``Machine/smmus``; nil where it has none that is enabled.
    package let smmuIndex: Int?
}

extension Machine {
    static func makePMCG(
        _ node: PMCGNode,
        beside smmus: [MachineSMMU],
        on bus: SystemBus,
        _ lines: inout LineTable
    ) throws(MachineError) -> MachinePMCG {
        let index = smmus.firstIndex { $0.node.path == node.smmuPath }
        var configuration = PMCGConfiguration()
        configuration.relocatesCounters = node.page1 != nil
        if let identification = index.map({ smmus[$0].model.identification }) {
            configuration.streamIDBits = identification.idr1.sidsize
            configuration.physicalAddressBits = identification.outputAddressBits
        }
        // Unowned: the bus holds the group's windows, and who counts or writes registers holds the bus. Not weak, which
        // makes every retain of the bus a slow one.
        let write: PMCG.MessageWrite = { [unowned bus] (data, address) throws(BusError) in
            try bus.store(UInt64(data), .word, at: address)
        }
        let model = PMCG(
            name: node.path,
            configuration: configuration,
            source: index.map { smmus[$0].model },
            interrupt: node.interrupt.map { lines.line($0, of: node.path, labelled: "overflow") },
            // A wire reaches every listener of the machine; a message needs somebody at its address.
            sendMessage: node.interrupt == nil && node.msiParent != nil ? write : nil
        )
        var windows = [(page: model.page0, range: node.page0)]
        if let page = model.page1, let range = node.page1 { windows.append((page, range)) }
        for (page, range) in windows {
            // `reg` may be larger than the page that the architecture has.
            guard let window = AddressRange(start: range.first, byteCount: PMCGPage.byteCount) else {
                throw MachineError("\(node.path): its registers at \(range) leave the address space")
            }
            do {
                try bus.addWindow(page, at: window, name: node.path)
            } catch {
                throw MachineError(
                    "\(node.path): its registers at \(error.inserting) overlap \(error.existing)"
                )
            }
        }
        return MachinePMCG(node: node, model: model, smmuIndex: index)
    }
}
