// What can be wrong with memory that is shared by file.

public import SystemPackage

/// What somebody wants to do with memory.
public enum MemoryAccess: Hashable, Sendable {
    case read
    case write
}

/// Memory could not be mapped, or an access to it not be answered.
public enum GuestMemoryError: Error, Equatable, Sendable {
    /// A region of no bytes was asked for.
    case empty(name: String)
    /// The range of the file does not fit into what a file or the address space can hold.
    case tooLarge(name: String, offset: UInt64, byteCount: UInt64)
    /// The descriptor is no regular file: a socket, a pipe, a directory, a device.
    case notMappable(name: String)
    /// The file is on a FUSE file system, where another process answers page faults, in its own time or never.
    case servedByProcess(name: String)
    /// The file ends before the range does.
    case fileTooShort(name: String, fileByteCount: UInt64, offset: UInt64, byteCount: UInt64)
    /// The descriptor does not permit what the mapping is to be used for.
    case descriptorForbids(MemoryAccess, name: String)
    /// The memfd has a seal against writing, and the kernel maps it for no purpose through this descriptor.
    case writeSealed(name: String)
    /// The kernel refused for another reason.
    case refused(name: String, call: String, Errno)
    /// The process holds as many mappings as it can watch over.
    case tooManyMappings(name: String, limit: Int)
    /// The access leaves the region.
    case outOfRange(name: String, offset: UInt64, count: UInt64, byteCount: UInt64)
    /// The region is mapped for reading only.
    case readOnly(name: String)
    /// A peer truncated the file under the region.
    case lost(name: String)
}

extension GuestMemoryError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .empty(let name):
            "\(name): a region of 0 bytes; it needs at least one"
        case .tooLarge(let name, let offset, let byteCount):
            "\(name): \(byteCount) bytes at offset \(hex(offset)) are more than a file or this process's address "
                + "space can hold; the range must end below 2^63"
        case .notMappable(let name):
            "\(name): not a regular file or memfd; only those can be mapped as memory"
        case .servedByProcess(let name):
            "\(name): on a FUSE file system, whose server could hold up every access; share a memfd"
        case .fileTooShort(let name, let fileByteCount, let offset, let byteCount):
            "\(name): the file has \(fileByteCount) bytes, but \(byteCount) at offset \(hex(offset)) were asked for; "
                + "share a file that covers them"
        case .descriptorForbids(.read, let name):
            "\(name): the descriptor is not open for reading; open it with O_RDWR or O_RDONLY"
        case .descriptorForbids(.write, let name):
            "\(name): the descriptor does not permit writing; open it with O_RDWR"
        case .writeSealed(let name):
            "\(name): sealed against writing; share a memfd without F_SEAL_WRITE and F_SEAL_FUTURE_WRITE, or for "
                + "reading a descriptor opened with O_RDONLY"
        case .refused(let name, let call, let error):
            "\(name): \(call): \(error.description)"
        case .tooManyMappings(let name, let limit):
            "\(name): all \(limit) mappings of this process are in use; unmap one first"
        case .outOfRange(let name, let offset, let count, let byteCount):
            "\(name): \(count) bytes at offset \(hex(offset)) leave the region of \(byteCount) bytes"
        case .readOnly(let name):
            "\(name): the region is mapped for reading only; share it as writable"
        case .lost(let name):
            "\(name): its file was truncated under the mapping; share it again"
        }
    }

    private func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
}
