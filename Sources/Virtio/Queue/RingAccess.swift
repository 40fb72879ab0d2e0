// Accesses to rings: words and descriptors, with the fault as the queue's error.

import AddressSpace
import DeviceModel

extension GatedPort {
    func ringLoad(_ width: AccessWidth, at address: UInt64) throws(VirtqueueError) -> UInt64 {
        do throws(DMAFault) {
            return try load(width, at: IOVirtualAddress(address))
        } catch {
            throw asQueueError(error)
        }
    }

    func ringStore(_ value: UInt64, _ width: AccessWidth, at address: UInt64) throws(VirtqueueError) {
        do throws(DMAFault) {
            try store(value, width, at: IOVirtualAddress(address))
        } catch {
            throw asQueueError(error)
        }
    }

    /// Writes 8 bytes, of any alignment.
    func ringWrite(_ value: UInt64, at address: UInt64) throws(VirtqueueError) {
        try ringStore(value, .doubleword, at: address)
    }

    func splitDescriptor(at address: UInt64) throws(VirtqueueError) -> VirtqueueDescriptor {
        let words = try descriptorWords(at: address)
        return VirtqueueDescriptor(split: words.0, words.1)
    }

    func descriptorWords(at address: UInt64) throws(VirtqueueError) -> (UInt64, UInt64) {
        var words: (UInt64, UInt64) = (0, 0)
        var fault: DMAFault?
        withUnsafeMutableBytes(of: &words) { bytes in
            do throws(DMAFault) {
                try read(at: IOVirtualAddress(address), into: bytes, .plain)
            } catch {
                fault = error
            }
        }
        if let fault { throw asQueueError(fault) }
        return (UInt64(littleEndian: words.0), UInt64(littleEndian: words.1))
    }

    /// How many descriptors an indirect table has.
    func indirectCount(_ table: VirtqueueDescriptor, max: Int) throws(VirtqueueError) -> Int {
        let length = Int(table.length)
        guard length > 0, length.isMultiple(of: VirtqueueDescriptor.byteCount) else {
            throw .malformed("an indirect table of \(length) bytes")
        }
        guard length / VirtqueueDescriptor.byteCount <= max else {
            throw .malformed("an indirect table of \(length) bytes; the queue takes \(max) descriptors")
        }
        guard !table.address.addingReportingOverflow(UInt64(length)).overflow else {
            throw .malformed("an indirect table that leaves the address space")
        }
        return length / VirtqueueDescriptor.byteCount
    }

    /// A fault as what becomes of the queue: none where the gate was closed meanwhile.
    func asQueueError(_ fault: DMAFault) -> VirtqueueError { isOpen ? .fault(fault) : .stopped }
}
