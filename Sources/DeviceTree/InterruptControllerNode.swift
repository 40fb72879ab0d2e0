// Interrupt controllers, wired and message-signalled, as a device tree describes them.

/// A node with `interrupt-controller`.
package struct InterruptControllerNode: Equatable, Sendable {
    /// What its interrupt specifiers mean.
    package enum Kind: String, Sendable {
        case gicV2 = "gic-v2"
        case gicV3 = "gic-v3"
        /// HiSilicon's message generator: cells are the pin and the trigger.
        case mbigen
        /// A binding that we do not know: specifiers stay raw.
        case other
    }

    package let path: String
    package let compatible: [String]
    package let kind: Kind
    /// `#interrupt-cells`.
    package let interruptCells: Int
    /// Its regions; empty where it stands on no bus that the CPU reaches.
    ///
    /// GICv3: the distributor, then the redistributors; GICv2: the distributor, then the CPU interface.
    package let registers: [RegisterRegion]
    /// `msi-parent`: where an mbigen sends its pins' messages.
    package let msiParent: MSIParent?

    package init(
        path: String,
        compatible: [String],
        kind: Kind,
        interruptCells: Int,
        registers: [RegisterRegion],
        msiParent: MSIParent? = nil
    ) {
        self.path = path
        self.compatible = compatible
        self.kind = kind
        self.interruptCells = interruptCells
        self.registers = registers
        self.msiParent = msiParent
    }
}

/// A node that takes message-signalled interrupts.
package struct MSIControllerNode: Equatable, Sendable {
    package enum Kind: String, Sendable {
        /// A GICv3 Interrupt Translation Service: the doorbell is GITS_TRANSLATER, at 0x10040; the DeviceID
        /// comes with the message.
        case its
        /// A GICv2m frame: the doorbell is MSI_SETSPI_NS, at 0x40.
        case gicV2m = "gic-v2m"
        case other
    }

    package let path: String
    package let compatible: [String]
    package let kind: Kind
    /// `#msi-cells`; 0 where it is absent.
    package let msiCells: Int
    package let registers: [RegisterRegion]

    package init(path: String, compatible: [String], kind: Kind, msiCells: Int, registers: [RegisterRegion]) {
        self.path = path
        self.compatible = compatible
        self.kind = kind
        self.msiCells = msiCells
        self.registers = registers
    }
}
