// Memory that a client and the daemon both have mapped.

import CLinux
import Glibc

/// A mapping of a file: one of our own that the daemon is shown, or a region of the machine's RAM that it
/// showed us.
///
/// Unmapped when the last reference goes.
package final class SharedMapping: @unchecked Sendable {
    // @unchecked: the pointer and the descriptor never change; what is behind the pointer is shared memory,
    // whose users order their accesses among themselves.

    /// What is mapped.
    ///
    /// Others write it at any time.
    package let bytes: UnsafeMutableRawBufferPointer
    /// The first byte.
    var base: UnsafeMutableRawPointer {
        guard let base = bytes.baseAddress else { preconditionFailure("a mapping has a first byte") }
        return base
    }

    /// The file.
    let descriptor: CInt

    /// Makes a new anonymous file of `byteCount` bytes, all zero.
    package convenience init(byteCount: Int) throws(ClientError) {
        let descriptor = smmud_memfd_create_sealed("smmud-client", UInt64(max(0, byteCount)))
        guard descriptor >= 0 else {
            throw .local("cannot create \(byteCount) bytes of memory: \(errorText(errno))")
        }
        try self.init(adopting: descriptor, offset: 0, byteCount: byteCount)
    }

    /// Maps `byteCount` bytes of a file from `offset` on, and closes the descriptor in the end.
    init(adopting descriptor: CInt, offset: UInt64, byteCount: Int) throws(ClientError) {
        let base = mmap(
            nil,
            byteCount,
            PROT_READ | PROT_WRITE,
            MAP_SHARED,
            descriptor,
            off_t(truncatingIfNeeded: offset)
        )
        guard let base, base != MAP_FAILED else {
            let reason = errorText(errno)
            closeDescriptor(descriptor)
            throw .local("cannot map \(byteCount) bytes: \(reason)")
        }
        self.descriptor = descriptor
        bytes = UnsafeMutableRawBufferPointer(start: base, count: byteCount)
    }

    deinit {
        munmap(bytes.baseAddress, bytes.count)
        closeDescriptor(descriptor)
    }
}
