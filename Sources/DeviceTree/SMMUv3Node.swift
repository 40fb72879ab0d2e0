// SMMUv3s and their performance monitors, as a device tree describes them.

package import AddressSpace
package import DeviceModel

/// An `arm,smmu-v3` node.
package struct SMMUv3Node: Equatable, Sendable {
    /// What an SMMU's wired interrupt tells; raw values are the binding's `interrupt-names`.
    package enum InterruptRole: String, CaseIterable, Sendable {
        /// The event queue became non-empty.
        case eventQueue = "eventq"
        /// A global error became active.
        case globalError = "gerror"
        /// The PRI queue became non-empty, or the last request of a group arrived.
        case priQueue = "priq"
        /// A CMD_SYNC that asked for an interrupt is complete.
        case commandSync = "cmdq-sync"
        /// All of the above on one line.
        case combined
    }

    /// One wired interrupt.
    package struct Interrupt: Equatable, Sendable {
        package let role: InterruptRole
        package let identity: InterruptIdentity

        package init(role: InterruptRole, identity: InterruptIdentity) {
            self.role = role
            self.identity = identity
        }
    }

    package let path: String
    package let compatible: [String]
    /// False where `status` of the node or of one above it says so: such an SMMU is shown and not built.
    package let isEnabled: Bool
    /// All of `reg`.
    ///
    /// May be larger than the architecture's two pages of 64 KiB, and PMCGs may stand in the rest.
    package let registers: AddressRange
    /// The wired interrupts, in the order of the file.
    ///
    /// Empty where it has none: then it has MSIs or is polled.
    package let interrupts: [Interrupt]
    /// `msi-parent`.
    package let msiParent: MSIParent?
    /// `dma-coherent`: its own accesses to memory are coherent with the CPU caches.
    package let isDMACoherent: Bool
    /// `hisilicon,broken-prefetch-cmd`: software may not issue CMD_PREFETCH.
    package let hasBrokenPrefetchCommand: Bool
    /// `cavium,cn9900-broken-page1-regspace`: page 1 is missing, its registers stand in page 0.
    package let hasBrokenPage1RegisterSpace: Bool
    /// HTTU override of an IORT, which overrules IDR0.HTTU: 0 none, 1 the Access flag, 2 dirty state too.
    ///
    /// Nil in a device tree.
    package let httuOverride: UInt8?
    /// StreamIDs of an IORT's RMRs: those devices are running, so they are let through until they are attached.
    package internal(set) var firmwareStreams: [StreamID]

    package init(
        path: String,
        compatible: [String],
        isEnabled: Bool,
        registers: AddressRange,
        interrupts: [Interrupt],
        msiParent: MSIParent? = nil,
        isDMACoherent: Bool,
        hasBrokenPrefetchCommand: Bool,
        hasBrokenPage1RegisterSpace: Bool,
        httuOverride: UInt8? = nil,
        firmwareStreams: [StreamID] = []
    ) {
        self.path = path
        self.compatible = compatible
        self.isEnabled = isEnabled
        self.registers = registers
        self.interrupts = interrupts
        self.msiParent = msiParent
        self.isDMACoherent = isDMACoherent
        self.hasBrokenPrefetchCommand = hasBrokenPrefetchCommand
        self.hasBrokenPage1RegisterSpace = hasBrokenPage1RegisterSpace
        self.httuOverride = httuOverride
        self.firmwareStreams = firmwareStreams
    }

    /// The first part of ``registers``, which the architecture defines: page 0 and page 1, or page 0 alone
    /// with the Cavium quirk.
    ///
    /// This is what to put on the bus.
    package var architectedRegisters: AddressRange {
        let last = registers.first &+ (Self.minimumByteCount(hasPage1: !hasBrokenPage1RegisterSpace) &- 1)
        return AddressRange(first: registers.first, last: min(last, registers.last)) ?? registers
    }

    /// How many bytes `reg` must have.
    static func minimumByteCount(hasPage1: Bool) -> UInt64 { hasPage1 ? 0x20000 : 0x10000 }

    /// The interrupt with this role.
    package func interrupt(_ role: InterruptRole) -> InterruptIdentity? {
        interrupts.first { $0.role == role }?.identity
    }
}

/// An `arm,smmu-v3-pmcg` node: a group of performance counters.
package struct PMCGNode: Equatable, Sendable {
    package let path: String
    /// Page 0.
    package let page0: AddressRange
    /// Page 1, where the counters are relocated; nil where there is none.
    package let page1: AddressRange?
    /// The overflow interrupt.
    package let interrupt: InterruptIdentity?
    /// `msi-parent`.
    package let msiParent: MSIParent?
    /// The SMMU whose events it counts, enabled or not.
    ///
    /// `smmud,smmu` says which; without it the one in whose region it stands, or else the one that starts last
    /// before it. Nil where the tree has no SMMU.
    package let smmuPath: String?

    package init(
        path: String,
        page0: AddressRange,
        page1: AddressRange? = nil,
        interrupt: InterruptIdentity? = nil,
        msiParent: MSIParent? = nil,
        smmuPath: String? = nil
    ) {
        self.path = path
        self.page0 = page0
        self.page1 = page1
        self.interrupt = interrupt
        self.msiParent = msiParent
        self.smmuPath = smmuPath
    }
}
