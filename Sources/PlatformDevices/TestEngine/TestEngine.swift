// Arm's SMMUv3TestEngine, on the bus and as a PCIe function: how software provokes any DMA.

package import DeviceModel
package import PCIFunction
import Synchronization
package import SystemPackage

/// The test engine as a platform device: a window of 128 KiB.
///
/// From 0 on are 512 user frames of 128 bytes, from 0x1_0000 on their privileged frames. In a user frame: `cmd` 0x00,
/// `uctrl` 0x04, counts of transactions launched 0x08 and returned 0x0C, `msiaddress` 0x10, `msidata` 0x18, `seed`
/// 0x24, `begin` 0x28, `end_incl` 0x30, `stride` 0x38, `udata[8]` 0x40. In a privileged one: `streamid` 0x08,
/// `substreamid` 0x0C (all ones: none). Writing 2 (MEMCPY), 3 (RAND48) or 4 (SUM64) to `cmd` launches; `cmd` then
/// reads as that until it is 1 (done), 0xFFFF_FFFF (a transaction was aborted; `udata[2]` is its address) or
/// 0xFFFF_FFFE (misconfigured, at once). A sum is in `udata[1]`. Where `msiaddress` is not 0, `msidata` is written
/// there at the end, through the SMMU; where that is aborted, bit 0 of `uctrl` is set.
///
/// After reset the stride is 1, `streamid` is what the machine says and there is no SubstreamID, so that one transfer
/// from a shell is three writes: with the window at W, `devmem W+0x28 64 IOVA; devmem W+0x30 64 IOVA+3; devmem W 32 4`
/// reads, and `devmem W` shows what became of it.
///
/// Not modelled: transaction attributes (`attributes`, `msiattr`), the rate in `uctrl`, `pctrl`, and transactions in
/// another order than that of addresses. Commands of all frames run one after the other.
package final class TestEngineDevice: RegisterTarget {
    private let core: TestEngineCore

    /// How many bytes of registers there are.
    package static let byteCount: UInt64 = 0x2_0000

    /// - Parameters:
    ///   - defaultStream: What `streamid` of each frame is after reset.
    ///   - makePort: A view of memory for a value of `streamid`; nil where the device has no such stream: a command
    ///     is then misconfigured.
    /// - Throws: `EAGAIN` where the host permits no more threads.
    package init(
        defaultStream: UInt32,
        makePort: @escaping @Sendable (_ stream: UInt32) -> (any DMAPort)?
    ) throws(Errno) {
        core = try TestEngineCore(
            pairCount: 1,
            defaultStream: defaultStream,
            makePort: makePort,
            signal: nil
        )
    }

    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        try core.read(at: offset, width: width)
    }

    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        try core.write(value, at: offset, width: width)
    }

    /// Ends what runs and puts all frames into their state after power-on; waits for DMA that is under way.
    package func reset() { core.reset() }
}

/// The test engine as a PCIe function, 13b5:ff80.
///
/// BAR 0, 64-bit, 256 KiB: two pairs of 64 KiB of user frames and 64 KiB of privileged ones, as
/// ``TestEngineDevice`` has one. `streamid` means nothing: the function is its own. Where `msiaddress` is not 0,
/// `msidata` is the vector that is signalled. With MSI-X, its table is in BAR 2 and its pending bits in BAR 4.
package final class TestEngineFunction: PCIFunctionModel {
    private struct Connection: Sendable { weak var function: PCIFunction? }
    private let connection: SharedConnection
    private let core: TestEngineCore

    private final class SharedConnection: Sendable { let state = Mutex(Connection()) }

    private static let vectorCount = 16

    private init() throws(Errno) {
        let connection = SharedConnection()
        self.connection = connection
        core = try TestEngineCore(
            pairCount: 2,
            defaultStream: 0,
            makePort: { _ in connection.state.withLock { $0.function }?.makePort() },
            signal: { vector in connection.state.withLock { $0.function }?.signal(vector: vector) }
        )
    }

    /// Builds the function.
    ///
    /// - Parameters:
    ///   - name: What people call it.
    ///   - offersMSIX: Whether it has MSI-X beside MSI.
    ///   - offersPASID: Whether it has the PASID capability, of 20 bits.
    ///   - extendedCapabilities: ATS and PRI, where it has them.
    ///   - makePort: A new view of memory with the function's identity, for one user.
    /// - Throws: `EAGAIN` where the host permits no more threads.
    package static func makeFunction(
        name: String,
        offersMSIX: Bool = true,
        offersPASID: Bool = false,
        extendedCapabilities: [PCICapability] = [],
        makePort: @escaping @Sendable () -> any DMAPort
    ) throws(Errno) -> PCIFunction {
        let model = try TestEngineFunction()
        var bars = [PCIBAR(index: 0, byteCount: 0x4_0000, space: .memory64)]
        var capabilities: [PCICapability] = [
            .express(.endpoint), .powerManagement, .msi(vectorCount: vectorCount),
        ]
        if offersMSIX {
            bars.append(PCIBAR(index: 2, byteCount: 4096, space: .memory64))
            bars.append(PCIBAR(index: 4, byteCount: 4096, space: .memory64))
            let layout = PCIMSIXLayout(
                vectorCount: vectorCount,
                tableBAR: 2,
                tableOffset: 0,
                pendingBAR: 4,
                pendingOffset: 0
            )
            capabilities.append(.msix(layout))
        }
        capabilities += extendedCapabilities
        if offersPASID { capabilities.append(.pasid(bits: 20)) }
        let identity = PCIIdentity(
            vendorID: 0x13B5,
            deviceID: 0xFF80,
            subsystemVendorID: 0x13B5,
            classCode: 0xFF_0000,
            revisionID: 0xF
        )
        let description = PCIFunctionDescription(
            identity: identity,
            bars: bars,
            capabilities: capabilities,
            interruptPin: 0
        )
        let function = PCIFunction(name: name, description, model: model, makePort: makePort)
        model.connection.state.withLock { $0.function = function }
        return function
    }

    package func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
        -> UInt64
    {
        guard index == 0 else { throw .noSuchRegister }
        return try core.read(at: offset, width: width)
    }

    package func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard index == 0 else { throw .noSuchRegister }
        try core.write(value, at: offset, width: width)
    }

    package func reset() { core.reset() }
}
