// QEMU's iommu-testdev: one write by DMA, read back from physical memory.

import AddressSpace
package import DeviceModel
package import PCIFunction
import Synchronization
package import SystemPackage

/// The registers of QEMU's `iommu-testdev`, as a PCIe function 1b36:0005 with a BAR 0 of 4 KiB.
///
/// 32-bit registers: 0x00 trigger (a read starts it), 0x04 and 0x08 the IOVA, 0x0C the length in bytes, 0x10 the
/// result, 0x14 the doorbell (1 arms, 0 disarms), 0x18 attributes (secure in bit 0, security space in bits 2:1, its
/// validity in bit 3), 0x1C and 0x20 the physical address that is read back. Triggered while it is armed, it writes
/// 0x12345678 again and again to the IOVA, reads as many bytes from the physical address past the IOMMU, and compares.
/// The result is 0xFFFF_FFFF before, 0xFFFF_FFFE while it is armed or runs, 0, or an error 0xDEAD_0001 (length), 2 (the
/// write was aborted), 3 (the read failed), 4 (other bytes were found), 5 (it was not armed), 6 (attributes).
///
/// Other than QEMU's, the transfer is not over when the read of the trigger returns: read the result until it is no
/// longer 0xFFFF_FFFE, as QEMU's own tests do. Lengths of more than 1 MiB are errors. Secure transactions, which
/// nothing in this machine has, end with the error of an aborted write.
package final class IOMMUTestDevice: PCIFunctionModel {
    private struct Registers {
        var address: UInt64 = 0
        var physicalAddress: UInt64 = 0
        var byteCount: UInt32 = 0
        var result = Result.idle
        var isArmed = false
        /// A transfer waits for the thread: it is enough for all triggers until it starts.
        var isPending = false
        var attributes: UInt32 = 1 << 1
    }
    private enum Result {
        static let idle: UInt32 = 0xFFFF_FFFF
        static let busy: UInt32 = 0xFFFF_FFFE
        static let badLength: UInt32 = 0xDEAD_0001
        static let writeFailed: UInt32 = 0xDEAD_0002
        static let readFailed: UInt32 = 0xDEAD_0003
        static let mismatch: UInt32 = 0xDEAD_0004
        static let notArmed: UInt32 = 0xDEAD_0005
        static let badAttributes: UInt32 = 0xDEAD_0006
    }
    private static let byteCountMax: UInt32 = 1 << 20

    private let registers = Mutex(Registers())
    private let thread = JobThread()
    private let physical: any PhysicalAccess
    private struct Connection: Sendable { weak var function: PCIFunction? }
    private let connection = Mutex(Connection())

    private init(physical: any PhysicalAccess) { self.physical = physical }

    deinit { thread.terminate() }

    /// Builds the function.
    ///
    /// - Parameters:
    ///   - physical: What is read back from.
    ///   - extendedCapabilities: ATS and PRI, where it has them.
    ///   - makePort: A new view of memory with the function's identity, for one user.
    /// - Throws: `EAGAIN` where the host permits no more threads.
    package static func makeFunction(
        name: String,
        physical: any PhysicalAccess,
        extendedCapabilities: [PCICapability] = [],
        makePort: @escaping @Sendable () -> any DMAPort
    ) throws(Errno) -> PCIFunction {
        let model = IOMMUTestDevice(physical: physical)
        try model.thread.start(named: "iommu-testdev") { [weak model] _, epoch in model?.transfer(epoch) }
        let description = PCIFunctionDescription(
            identity: PCIIdentity(vendorID: 0x1B36, deviceID: 0x0005, classCode: 0xFF_0000),
            bars: [PCIBAR(index: 0, byteCount: 4096)],
            capabilities: [.express(.endpoint)] + extendedCapabilities,
            interruptPin: 0
        )
        let function = PCIFunction(name: name, description, model: model, makePort: makePort)
        model.connection.withLock { $0.function = function }
        return function
    }

    package func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
        -> UInt64
    {
        guard index == 0 else { throw .noSuchRegister }
        guard width == .word else { throw .unsupportedWidth }
        guard offset & 3 == 0 else { throw .misaligned }
        if offset == 0x00 {
            trigger()
            return 0
        }
        return registers.withLock { registers in
            switch offset {
            case 0x04: registers.address & 0xFFFF_FFFF
            case 0x08: registers.address >> 32
            case 0x0C: UInt64(registers.byteCount)
            case 0x10: UInt64(registers.result)
            case 0x18: UInt64(registers.attributes)
            case 0x1C: registers.physicalAddress & 0xFFFF_FFFF
            case 0x20: registers.physicalAddress >> 32
            default: 0
            }
        }
    }

    package func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard index == 0 else { throw .noSuchRegister }
        guard width == .word else { throw .unsupportedWidth }
        guard offset & 3 == 0 else { throw .misaligned }
        let word = UInt32(truncatingIfNeeded: value)
        registers.withLock { registers in
            switch offset {
            case 0x04: registers.address = registers.address & ~0xFFFF_FFFF | UInt64(word)
            case 0x08: registers.address = registers.address & 0xFFFF_FFFF | UInt64(word) << 32
            case 0x0C: registers.byteCount = word
            case 0x10: registers.result = word
            case 0x14:
                registers.isArmed = word & 1 != 0
                registers.result = registers.isArmed ? Result.busy : Result.idle
            case 0x18: registers.attributes = word
            case 0x1C: registers.physicalAddress = registers.physicalAddress & ~0xFFFF_FFFF | UInt64(word)
            case 0x20:
                registers.physicalAddress = registers.physicalAddress & 0xFFFF_FFFF | UInt64(word) << 32
            default: break
            }
        }
    }

    package func reset() {
        thread.cancel()
        registers.withLock { $0 = Registers() }
    }

    private func trigger() {
        let isStarted: Bool = registers.withLock { registers in
            guard registers.isArmed else {
                registers.result = Result.notArmed
                return false
            }
            registers.isArmed = false
            defer { registers.isPending = true }
            return !registers.isPending
        }
        if isStarted { thread.enqueue(0) }
    }

    // MARK: The thread

    private func transfer(_ epoch: UInt64) {
        let wanted = registers.withLock { registers in
            registers.isPending = false
            return registers
        }
        let result = transfer(wanted)
        guard !thread.isCancelled(since: epoch) else { return }
        registers.withLock { $0.result = result }
    }

    private func transfer(_ wanted: Registers) -> UInt32 {
        guard wanted.byteCount > 0, wanted.byteCount <= Self.byteCountMax else { return Result.badLength }
        let isSecure = wanted.attributes & 1 != 0
        let space = wanted.attributes >> 1 & 3
        if wanted.attributes & 8 != 0 {
            // Secure (0) and non-secure (1) have to agree with bit 0.
            if space <= 1, isSecure != (space == 0) { return Result.badAttributes }
            guard space == 1 else { return Result.writeFailed }
        } else if isSecure {
            return Result.writeFailed
        }
        guard let port = connection.withLock({ $0.function })?.makePort() else { return Result.writeFailed }
        let pattern: [UInt8] = [0x78, 0x56, 0x34, 0x12]
        let bytes = (0..<Int(wanted.byteCount)).map { pattern[$0 & 3] }
        let isWritten = bytes.withUnsafeBytes { buffer in
            do throws(DMAFault) {
                try port.write(buffer, at: IOVirtualAddress(wanted.address), .plain)
                return true
            } catch {
                return false
            }
        }
        guard isWritten else { return Result.writeFailed }
        do throws(BusError) {
            let found = try physical.read(bytes.count, at: PhysicalAddress(wanted.physicalAddress))
            return found == bytes ? 0 : Result.mismatch
        } catch {
            return Result.readFailed
        }
    }
}
