// The machine that the driver is tried on: memory, one SMMUv3, and devices that do DMA as they are told.

package import DeviceModel
import IOMMU
import Synchronization

/// A way in which a machine's SMMU is known to differ from the architecture, where the list of cases meets
/// it.
package enum Deviation: String, Sendable, CaseIterable, Hashable {
    /// AP[1] refuses nothing: every access is privileged.
    case alwaysPrivileged = "always-privileged"
    /// A full event queue is told by GERROR.EVENTQ_ABT_ERR; EVENTQ_PROD.OVFLG stays.
    case fullEventQueueIsAnAbort = "full-event-queue-is-an-abort"

    /// What the architecture says instead, with the clause of IHI 0070.
    package var reason: String {
        switch self {
        case .alwaysPrivileged: "PCIe without PASID is unprivileged (13.7): F_PERMISSION"
        case .fullEventQueueIsAnAbort: "OVFLG tells of records that were lost, and no error (7.4)"
        }
    }
}

/// What an SMMU may have and the driver uses where it is there.
package enum Capability: String, Sendable, CaseIterable, Hashable {
    /// CMD_SYNC is completed by a message into its own entry (IDR0.MSI).
    case msi = "CMD_SYNC by MSI"
    /// SubstreamIDs (IDR1.SSIDSIZE).
    case substreams = "SubstreamIDs"
}

/// One machine in the state in which it is switched on.
///
/// What the driver does goes through `access`, interrupts come on `eventQueueLine` and `globalErrorLine`, and
/// its time is `clock`. Its layout is that of QEMU's `virt`, see ``BoardLayout``.
package protocol ConformanceBench: AnyObject {
    /// Registers and memory as the machine's processor would reach them.
    var access: any PhysicalAccess { get }
    var eventQueueLine: InterruptLine { get }
    var globalErrorLine: InterruptLine { get }
    var clock: BenchClock { get }
    var deviations: Set<Deviation> { get }

    /// Lets a device write 4 bytes.
    ///
    /// - Parameters:
    ///   - requester: The device: an index of ``BoardLayout/streams``.
    ///   - iova: Where to.
    /// - Returns: What it writes where it may: no other DMA of this machine writes the same.
    func write(_ requester: Int, at iova: UInt64) throws -> UInt32

    /// Lets a device read 4 bytes and then write what it has.
    ///
    /// - Parameters:
    ///   - requester: The device: an index of ``BoardLayout/streams``.
    ///   - source: Where from.
    ///   - target: Where to. Where it may not read it writes what it happens to have.
    func copy(_ requester: Int, from source: UInt64, to target: UInt64) throws

    /// Passes on what the machine's interrupt controller has pending.
    func deliverInterrupts() throws
}

/// Where things are in the machine.
package enum BoardLayout {
    package static let registers: UInt64 = 0x0905_0000
    package static let ram: UInt64 = 0x4000_0000
    package static let ramByteCount: UInt64 = 16 << 20
    /// What the driver's queues and tables are made of.
    static let tables = ram
    static let tablesByteCount: UInt64 = 11 << 20
    /// For the bench's own use.
    static let scratch = ram + 0xB0_0000
    /// What DMA goes to; aligned to 2 MiB.
    static let buffers = ram + 0xC0_0000
    static let buffersByteCount: UInt64 = 4 << 20
    /// The StreamIDs of the devices: two on the first bus, one on a bus behind a root port.
    package static let streams: [UInt32] = [0x08, 0xF8, 0x500]
    /// How many DMAs a machine can do.
    static let dmaCount = 1024

    /// The word that DMA number `index` writes, or has before it reads.
    static func word(_ index: Int) -> UInt32 { 0xD0A0_0000 | UInt32(truncatingIfNeeded: index) << 4 | 0x9 }
}

/// Time that passes only where somebody waits, or as a case says.
package final class BenchClock: DriverClock {
    private let now = Atomic<UInt64>(1)
    /// What goes on in the machine while the driver waits.
    private let whileWaiting = Mutex(Waiting())
    // Not the closure itself, which would be wrapped once more each time that it is read.
    private struct Waiting { var body: @Sendable () -> Void = {} }

    package init() {}

    /// Sets what goes on in the machine while the driver waits.
    func setWhileWaiting(_ body: @escaping @Sendable () -> Void) { whileWaiting.withLock { $0.body = body } }

    package func nanoseconds() -> UInt64 { now.load(ordering: .relaxed) }

    package func pause(attempt: Int) {
        now.wrappingAdd(1_000_000, ordering: .relaxed)
        whileWaiting.withLock { $0.body }()
    }

    /// Lets time pass.
    func advance(nanoseconds: UInt64) { now.wrappingAdd(nanoseconds, ordering: .relaxed) }
}
