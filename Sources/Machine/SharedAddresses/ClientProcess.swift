// A client as a process whose address space devices can share.

package import AddressSpace
package import ControlProtocol
package import GuestMemory
import IOMMU
import Synchronization
import VFIOUserProtocol
import VFIOUserServer

/// One client's address space: what it has mapped, by its own virtual addresses.
///
/// Lock order: `files`, then what lends memory and the address space's own.
package final class ClientProcess: Sendable {
    let space: ProcessAddressSpace
    /// Its number in `sva.list`.
    package var number: UInt32 { space.id }
    private let memory: LentMemory
    private let windows: PhysicalWindows
    /// What has a place on the bus.
    private let files = Mutex<[ClientFile]>([])

    /// How many areas a client may have: each has a mapping and two descriptors of ours.
    private static let areasMax = 256

    init(_ space: ProcessAddressSpace, _ memory: LentMemory, _ windows: PhysicalWindows) {
        self.space = space
        self.memory = memory
        self.windows = windows
    }

    /// Makes part of a file an area; no device sees a page of it before it asks.
    ///
    /// - Parameters:
    ///   - descriptor: The file: regular, a memfd for example.
    ///   - offset: Where in the file the area starts, a multiple of 4 KiB.
    ///   - range: The client's virtual addresses, whole pages of 4 KiB below 2^48.
    ///   - protection: What devices may do.
    package func map(
        _ descriptor: consuming OwnedDescriptor,
        offset: UInt64,
        at range: AddressRange,
        protection: DMAProtection
    ) throws(ControlError) {
        var access: PageFault.Access = []
        if protection.contains(.read) { access.insert(.read) }
        if protection.contains(.write) { access.insert(.write) }
        if protection.contains(.execute) { access.insert(.execute) }
        let wanted = VFIOUserMemoryRange(
            address: range.first,
            byteCount: range.byteCount,
            isReadable: true,
            isWritable: access.contains(.write)
        )
        guard range.first.isMultiple(of: 4096), range.byteCount.isMultiple(of: 4096),
            offset.isMultiple(of: 4096), range.last < 1 << 48
        else {
            throw .invalidParameter(
                "address",
                "areas are whole pages of 4096 bytes below 2^48, in the file too"
            )
        }
        guard let file = SharedFileRange(descriptor, offset: offset, wanted) else {
            throw .invalidParameter("descriptor", "it is no file that is open")
        }
        var own: OwnedDescriptor?
        do { own = try descriptor.duplicate() } catch {
            throw .exhausted("the daemon has no descriptors left: \(error)")
        }
        var given: OwnedDescriptor? = consume descriptor
        try files.withLock { (files) throws(ControlError) in
            guard files.count < Self.areasMax else {
                throw .limit("a client has \(Self.areasMax) areas at most")
            }
            guard let descriptor = given.take(), let copy = own.take() else { return }
            guard let physical = windows.place(range.byteCount, file, at: range.first) else {
                throw .exhausted("no physical addresses are left for \(range.byteCount) bytes")
            }
            do throws(VFIOUserError) {
                try memory.add(
                    wanted,
                    at: physical,
                    .descriptor(descriptor, offset: offset),
                    user: ObjectIdentifier(self)
                )
            } catch {
                windows.release(physical, file)
                throw .invalidParameter("descriptor", "the file cannot be mapped: \(error)")
            }
            let clientFile = ClientFile(copy, file, at: physical)
            do throws(ProcessMemoryError) {
                try space.map(range, access: access, memory: clientFile)
            } catch {
                giveBack(clientFile)
                throw Self.controlError(error)
            }
            files.append(clientFile)
        }
    }

    /// Takes a range away: when it returns no device reaches any of it, and the client can use its memory anew.
    package func unmap(_ range: AddressRange) throws(ControlError) {
        try files.withLock { (files) throws(ControlError) in
            do throws(ProcessMemoryError) { try space.unmap(range) } catch {
                if case .notInvalidated = error { files.removeAll { isUnused($0) } }
                throw Self.controlError(error)
            }
            for file in files where isUnused(file) { giveBack(file) }
            files.removeAll { isUnused($0) }
        }
    }

    /// The client has gone.
    func end() {
        files.withLock { files in
            do throws(ProcessMemoryError) { try space.end() } catch {
                // Devices may still reach it: it keeps its place on the bus.
                files = []
                return
            }
            for file in files { giveBack(file) }
            files = []
        }
    }

    private func isUnused(_ file: ClientFile) -> Bool { !space.areas.contains { $0.memory === file } }

    private func giveBack(_ file: ClientFile) {
        memory.remove(address: file.physical, byteCount: file.byteCount, user: ObjectIdentifier(self))
        windows.release(file.physical, file.file)
    }

    private static func controlError(_ error: ProcessMemoryError) -> ControlError {
        switch error {
        case .invalid: .invalidParameter("address", "\(error)")
        case .exists(let range): .conflict(at: range.first, "\(error)")
        case .exhausted: .exhausted("\(error)")
        case .ended, .notInvalidated: .failed("\(error)")
        }
    }
}
