// RAM as the host's segments, for system calls that move bytes.

public import AddressSpace
public import DeviceModel
public import Glibc
import GuestMemory

extension SystemBus {
    /// Appends the host's segments of `byteCount` bytes of RAM, which may run over adjacent entries, merging what
    /// is in a row.
    ///
    /// The caller is an access under way for as long as it uses them.
    ///
    /// - Returns: Whether they are all RAM of this process that can be used so; where not, `segments` may have
    ///   grown all the same.
    public func appendSegments(
        at address: PhysicalAddress,
        byteCount: Int,
        for direction: DMADirection,
        to segments: inout [iovec]
    ) -> Bool {
        var remaining = UInt64(max(0, byteCount))
        var next = address.rawValue
        while remaining > 0 {
            guard let record = snapshot.pointee.ram(containing: next), !record.pointee.isLost,
                direction == .read || record.pointee.isWritable
            else { return false }
            let count = chunkOf(remaining, from: next, upTo: record.pointee.last)
            let host = record.pointee.hostPointer(to: next)
            if let last = segments.last, last.iov_base + last.iov_len == host {
                segments[segments.count - 1].iov_len += Int(count)
            } else {
                segments.append(iovec(iov_base: host, iov_len: Int(count)))
            }
            remaining &-= count
            let (sum, overflow) = next.addingReportingOverflow(count)
            guard !overflow || remaining == 0 else { return false }
            next = sum
        }
        return true
    }
}
