// A case: everything that software and devices do, as a value that either side can play.

package import SMMUv3Spec

/// Which SMMU a QEMU has, for as long as it runs.
package struct MachineShape: Hashable, Sendable {
    /// QEMU's `stage` property.
    package enum Stages: String, CaseIterable, Sendable {
        case stage1 = "1"
        case stage2 = "2"
        case nested
    }
    package var stages = Stages.nested
    /// QEMU goes on as 2-level until its reset once software chose that, so a process has one format.
    package var isTwoLevel = false

    package init(stages: Stages = .nested, isTwoLevel: Bool = false) {
        self.stages = stages
        self.isTwoLevel = isTwoLevel
    }
}

/// One access of 4 bytes by a device.
package struct DMA: Hashable, Sendable {
    /// What has to be compared.
    package enum Promise: Hashable, Sendable {
        /// Both sides answer alike.
        case equal
        /// Caches may answer: as DMA `before` was answered, or as `after` is.
        case either(before: Int, after: Int)
        /// Caches may answer for some of what it takes and not for the rest.
        case none
    }
    /// Index in ``Layout/streams``.
    package var requester: Int
    package var address: UInt64
    package var isWrite: Bool
    package var promise = Promise.equal
    /// The DMA to the same address before software changed something.
    package var before: Int?
}

/// What happens, in order.
package enum Step: Hashable, Sendable {
    case store(UInt64, [UInt64])
    case register32(UInt64, UInt32)
    case register64(UInt64, UInt64)
    /// Put into the queue, and executed. The queue's state after them is compared.
    case commands([Command])
    case dma(DMA)
}

/// One case.
package struct Case: Sendable {
    package var seed: UInt64
    package var index: Int
    package var shape: MachineShape
    package var kind = ""
    package var granules = ""
    package var steps: [Step] = []

    package var dmas: [DMA] {
        steps.compactMap {
            guard case .dma(let dma) = $0 else { return nil }
            return dma
        }
    }
}

/// How a DMA ended.
package struct DMAOutcome: Hashable, Sendable {
    /// What a read returned: 0 where nothing came.
    package var word: UInt32 = 0
    /// Where a write went; nil where nowhere.
    package var landing: UInt64?
    /// The event records that appeared.
    package var records: [EventRecord] = []

    /// Whether bytes went between the device and memory.
    package var isMoved: Bool { word != 0 || landing != nil }
}

/// How a case ended.
package struct CaseOutcome: Sendable {
    package var dmas: [DMAOutcome] = []
    /// SMMU_CMDQ_CONS after each batch of commands.
    package var commandConsumers: [UInt32] = []
    package var gerror: UInt32 = 0
}
