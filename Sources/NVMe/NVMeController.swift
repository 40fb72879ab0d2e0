// An NVMe controller with one namespace, as a PCIe function's model.

package import BlockStorage
package import DeviceModel
package import PCIFunction
import Synchronization

/// An NVM Express controller (Base Specification 1.4) with the NVM command set and one namespace, a raw image.
///
/// To put one into a machine:
///
/// ```swift
/// let controller = try NVMeController(image: image, NVMeParameters(serialNumber: "disk0"))
/// let function = controller.makeFunction(name: "nvme0", offersMSIX: true) { makePortOfItsStream() }
/// ```
///
/// The function holds the controller, which does not hold the function; whoever carries the function keeps it. All
/// its accesses to memory go through ports of that function: queues, PRP lists, SGLs, data and messages.
///
/// Each submission queue has a thread, and one more thread starts and stops them; register accesses wait for none of
/// them, ``reset()`` does.
package final class NVMeController: PCIFunctionModel {
    private let core: ControllerCore

    /// Builds a controller in its state after power-on.
    ///
    /// - Parameters:
    ///   - image: What the namespace holds. One that is read-only is a write-protected namespace.
    /// - Throws: What is wrong with the parameters, or that the host permits no more threads.
    package init(image: RawImage, _ parameters: NVMeParameters) throws(NVMeError) {
        try parameters.check(imageByteCount: image.byteCount, path: image.path)
        core = ControllerCore(image, parameters)
        try core.startControlThread()
    }

    // The threads hold the core, not this: they end by themselves.
    deinit { core.terminate() }

    /// Builds the function that the controller is reached through; to be called once.
    ///
    /// BAR 0, 64-bit, 16 KiB: the registers and doorbells. With MSI-X, BAR 4, 4 KiB: its table and pending bits. MSI
    /// has 16 vectors or as many as all queues need, 32 at most.
    ///
    /// - Parameters:
    ///   - name: What people call it.
    ///   - offersMSIX: Whether it has MSI-X beside MSI. A VMM that keeps the MSI-X table to itself knows no IOMMU:
    ///     there it is better without, since messages of MSI are the function's own DMA.
    ///   - extendedCapabilities: ATS and PRI, where it has them.
    ///   - makePort: A new view of memory with the function's identity, for one user.
    package func makeFunction(
        name: String,
        offersMSIX: Bool = true,
        extendedCapabilities: [PCICapability] = [],
        makePort: @escaping @Sendable () -> any DMAPort
    ) -> PCIFunction {
        let parameters = core.parameters
        let vectorCount = parameters.ioQueueCount + 1
        var bars = [PCIBAR(index: 0, byteCount: 16384, space: .memory64)]
        var messageCount = 16
        while messageCount < min(vectorCount, 32) { messageCount *= 2 }
        var capabilities: [PCICapability] = [
            .express(.endpoint), .powerManagement, .msi(vectorCount: messageCount),
        ]
        if offersMSIX {
            bars.append(PCIBAR(index: 4, byteCount: 4096))
            let layout = PCIMSIXLayout(
                vectorCount: vectorCount,
                tableBAR: 4,
                tableOffset: 0,
                pendingBAR: 4,
                pendingOffset: 2048
            )
            capabilities.append(.msix(layout))
        }
        capabilities += extendedCapabilities
        let function = PCIFunction(
            name: name,
            PCIFunctionDescription(
                identity: parameters.identity,
                bars: bars,
                capabilities: capabilities,
                interruptPin: 1
            ),
            model: self,
            makePort: makePort
        )
        core.connect(function, vectorCount: offersMSIX ? max(vectorCount, messageCount) : messageCount)
        return function
    }

    // MARK: PCIFunctionModel

    package func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
        -> UInt64
    {
        guard index == 0 else { throw .noSuchRegister }
        return try core.readRegister(at: offset, width: width)
    }

    package func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard index == 0 else { throw .noSuchRegister }
        try core.writeRegister(value, at: offset, width: width)
    }

    /// Stops everything and puts the registers into their state after power-on.
    ///
    /// Waits for the DMA that is under way, except on a thread of an NVMe controller: that comes here by DMA to
    /// registers, and would wait for itself.
    package func reset() { core.reset() }

    package func configurationChanged() { core.interruptModeChanged() }

    // MARK: What it has done

    /// What one submission queue has done since it was made.
    package struct QueueStatistics: Equatable, Sendable {
        /// 0: the admin queue.
        package let id: UInt16
        package let commands: UInt64
        /// Of data, either way.
        package let bytes: UInt64
        /// Commands that ended with an error.
        package let errors: UInt64
    }

    /// The queues that there are, in ascending order of identifier.
    package var queueStatistics: [QueueStatistics] { core.queueStatistics }

    /// CSTS.RDY.
    package var isReady: Bool { core.status.isReady }
    /// CSTS.CFS.
    package var hasFailed: Bool { core.status.isFatal }
}
