// What can be chosen about a driver: what firmware tells of the SMMU, and the kernel's parameters.

package import AddressSpace
package import DeviceModel
package import IOPageTable

/// The lines on which an SMMU interrupts, as its device tree node names them.
package enum SMMUInterrupts: Sendable {
    /// `combined`: one line for everything.
    case combined(InterruptLine)
    /// A line each; what is missing is never heard of.
    case named(eventq: InterruptLine?, gerror: InterruptLine?, priq: InterruptLine? = nil)
    /// Messages, which an interrupt controller (an MSI domain) has given.
    ///
    /// Where the SMMU can send none nothing is heard.
    case messages(eventq: MessageInterrupt, gerror: MessageInterrupt, priq: MessageInterrupt? = nil)
}

/// A message-signalled interrupt: what the SMMU writes, and where the controller tells of it.
package struct MessageInterrupt: Sendable {
    /// The doorbell's physical address, a multiple of 4 below 2^52.
    package let doorbell: PhysicalAddress
    package let data: UInt32
    /// Signalled once for each write.
    package let line: InterruptLine

    package init(doorbell: PhysicalAddress, data: UInt32, line: InterruptLine) {
        (self.doorbell, self.data, self.line) = (doorbell, data, line)
    }
}

/// Who runs the interrupt handlers.
package enum InterruptHandling: Sendable {
    /// Threads of the driver's own, woken by the lines.
    case threads
    /// Whoever calls ``SMMUv3Driver/pollInterrupts()``, and waiters for the command queue: for runs that repeat.
    case inline
}

/// What a driver is told beside where its SMMU is.
package struct SMMUv3DriverOptions: Sendable {
    /// The device's name, as the kernel gives it: `9050000.iommu`.
    package var name: String
    /// `dma-coherent`; overrules IDR0.COHACC.
    package var isCoherent: Bool
    /// What ACPI's IORT says of IDR0.HTTU, which it overrules: 0 none, 1 the Access flag, 2 dirty state too; nil
    /// where a device tree describes the SMMU.
    package var httuOverride: UInt8?
    /// `cavium,cn9900-broken-page1-regspace`: page 1's registers are in page 0.
    package var hasBrokenPage1 = false
    /// `hisilicon,broken-prefetch-cmd`: CMD_PREFETCH_CONFIG must not be sent.
    package var hasBrokenPrefetch = false
    /// log2 of the most entries of a queue; IDR1 may say less.
    package var queueLog2Limit = 10
    /// The granule of domains that do not say; nil takes 4 KiB or else the next larger one.
    package var granule: PageTableGranule?
    /// What an unmap of part of a block does.
    package var partialUnmap = PartialUnmapPolicy.refuse
    /// Streams that nobody is attached to are aborted; otherwise they bypass (`arm-smmu-v3.disable_bypass`).
    package var disablesBypass = true
    /// CMD_SYNC is waited for by CMDQ_CONS even where MSIs would do (`arm-smmu-v3.disable_msipolling`).
    package var disablesMSIPolling = false
    /// IOVAs below 4 GiB are tried first; `iommu.forcedac` turns it off.
    package var prefersLowIOVAs = true
    /// The CPU runs its kernel at EL2 with E2H: translations are tagged alike.
    ///
    /// Needs IDR0.Hyp.
    package var usesE2H = false
    /// Streams that firmware left running: they bypass until an endpoint has them.
    package var firmwareStreams: [StreamID] = []
    package var interruptHandling = InterruptHandling.threads
    /// One for all SMMUs of a machine, as in the kernel, or one of its own.
    package var asids = ASIDAllocator()
    package var clock: any DriverClock = MonotonicClock()
    /// Hears of every line of the log as it is written; a leaf, which calls nothing of the driver.
    package var logSink: (@Sendable (String) -> Void)?
    /// Where register accesses and commands are recorded.
    package var trace: DriverTrace?

    package init(name: String, isCoherent: Bool) {
        self.name = name
        self.isCoherent = isCoherent
    }
}
