// One mapping of shared memory, and the one checked way from an offset to a host pointer.

import CLinux
import Glibc
import SystemPackage

/// One mapping of memory that is shared by file descriptor: the machine's own RAM, or what a peer lends.
///
/// There are only raw pointers to this memory, never a reference, a span or a Swift buffer that lives on: guests
/// and peers change it at any time, so a value is read once and then decided upon.
///
/// A peer may truncate the file under the mapping. Then an access neither traps nor ends the process; it reads
/// zeroes, and ``isLost`` is true from then on. Check it after the access whose result matters.
//
// SAFETY of @unchecked Sendable: all properties are `let`. What they point at is shared with other processes
// anyhow, and every access to it is atomic or a copy whose contents nobody relies on before synchronising.
public final class MemoryRegion: @unchecked Sendable {
    /// What people call it: the memfd's name, or the path of the peer's file.
    public let name: String
    /// How many bytes, at least one; not always a multiple of a page.
    public let byteCount: UInt64
    /// The first byte, valid as long as the region lives.
    public let base: UnsafeMutableRawPointer
    /// Where in the file the region begins.
    public let fileOffset: UInt64
    /// Whether stores are permitted; where not, one through ``base`` raises SIGSEGV.
    public let isWritable: Bool
    /// Where the word is that is 1 once the region is lost and 0 before, valid as long as the region lives.
    public let lostFlag: UnsafePointer<UInt32>

    private let descriptor: OwnedDescriptor
    private let mapping: UnsafeMutableRawBufferPointer

    private init(
        name: String,
        descriptor: consuming OwnedDescriptor,
        fileOffset: UInt64,
        byteCount: UInt64,
        isWritable: Bool
    ) throws(GuestMemoryError) {
        let pageByteCount = UInt64(smmud_mapping_page_size(descriptor.rawValue))
        guard pageByteCount > 0 else { throw .notMappable(name: name) }
        guard byteCount > 0 else { throw .empty(name: name) }
        let (end, overflow) = fileOffset.addingReportingOverflow(byteCount)
        // A page of room below 2^63, so that rounding up to whole pages stays there too.
        guard !overflow, end <= UInt64(Int64.max) - pageByteCount else {
            throw .tooLarge(name: name, offset: fileOffset, byteCount: byteCount)
        }
        // mmap wants a whole page of the file, and hugetlbfs whole huge pages: map from the page below.
        let lead = fileOffset % pageByteCount
        let mappedByteCount = (lead + byteCount + pageByteCount - 1) / pageByteCount * pageByteCount
        let mapping = try Self.map(
            descriptor.rawValue,
            offset: fileOffset - lead,
            byteCount: mappedByteCount,
            isWritable: isWritable,
            name
        )
        guard
            let start = mapping.baseAddress,
            let flag = smmud_guard_register(start, mapping.count, Int(pageByteCount), isWritable)
        else {
            munmap(mapping.baseAddress, mapping.count)
            throw .tooManyMappings(name: name, limit: Int(SMMUD_GUARD_CAPACITY))
        }
        self.name = name
        self.byteCount = byteCount
        self.base = start + Int(lead)
        self.fileOffset = fileOffset
        self.isWritable = isWritable
        self.lostFlag = flag
        self.descriptor = descriptor
        self.mapping = mapping
    }

    deinit {
        smmud_guard_unregister(lostFlag)
        munmap(mapping.baseAddress, mapping.count)
    }

    /// Memory of our own: a memfd of holes, sealed against shrinking and growing, which costs what is touched.
    ///
    /// - Throws: ``GuestMemoryError`` where the count is 0 or the kernel refuses.
    public static func anonymous(byteCount: UInt64, name: String) throws(GuestMemoryError) -> MemoryRegion {
        guard byteCount > 0 else { throw .empty(name: name) }
        let descriptor = smmud_memfd_create_sealed(name, byteCount)
        guard descriptor >= 0 else {
            let error = Errno(rawValue: -descriptor)
            guard error != .fileTooLarge else { throw .tooLarge(name: name, offset: 0, byteCount: byteCount) }
            throw .refused(name: name, call: "memfd_create", error)
        }
        return try MemoryRegion(
            name: name,
            descriptor: OwnedDescriptor(adopting: descriptor),
            fileOffset: 0,
            byteCount: byteCount,
            isWritable: true
        )
    }

    /// Memory that a peer shares: `byteCount` bytes of its file from `offset` on, which need not be page-aligned.
    ///
    /// The descriptor is the region's from now on, and closed where this throws.
    ///
    /// - Throws: ``GuestMemoryError`` where the file cannot be mapped, is too short or not open for the purpose.
    public static func mapping(
        _ descriptor: consuming OwnedDescriptor,
        offset: UInt64,
        byteCount: UInt64,
        isWritable: Bool
    ) throws(GuestMemoryError) -> MemoryRegion {
        let name = path(of: descriptor.rawValue)
        var status = stat()
        guard fstat(descriptor.rawValue, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw .notMappable(name: name)
        }
        guard !smmud_is_fuse(descriptor.rawValue) else { throw .servedByProcess(name: name) }
        guard byteCount > 0 else { throw .empty(name: name) }
        let fileByteCount = UInt64(clamping: status.st_size)
        guard offset <= fileByteCount, byteCount <= fileByteCount - offset else {
            throw .fileTooShort(
                name: name,
                fileByteCount: fileByteCount,
                offset: offset,
                byteCount: byteCount
            )
        }
        return try MemoryRegion(
            name: name,
            descriptor: descriptor,
            fileOffset: offset,
            byteCount: byteCount,
            isWritable: isWritable
        )
    }

    /// The file, to lend to a system call or to a peer; it stays the region's to close.
    public var fileDescriptor: CInt { descriptor.rawValue }

    /// Whether a peer truncated the file and somebody touched what is gone.
    public var isLost: Bool { smmud_load_u32(lostFlag) != 0 }

    /// How many bytes of storage the whole file takes.
    public var residentBytes: UInt64 {
        var status = stat()
        guard fstat(fileDescriptor, &status) == 0 else { return 0 }
        return UInt64(clamping: status.st_blocks) * 512
    }

    /// The host's pointer to `count` bytes at `offset`: the only way there for an offset that others chose.
    ///
    /// - Throws: ``GuestMemoryError`` where the bytes leave the region, the region is lost, or is not writable.
    public func pointer(at offset: UInt64, count: UInt64, for access: MemoryAccess) throws(GuestMemoryError)
        -> UnsafeMutableRawPointer
    {
        guard offset <= byteCount, count <= byteCount - offset else {
            throw .outOfRange(name: name, offset: offset, count: count, byteCount: byteCount)
        }
        guard access == .read || isWritable else { throw .readOnly(name: name) }
        guard !isLost else { throw .lost(name: name) }
        return base + Int(offset)
    }
}

extension MemoryRegion {
    private static func map(
        _ descriptor: CInt,
        offset: UInt64,
        byteCount: UInt64,
        isWritable: Bool,
        _ name: String
    ) throws(GuestMemoryError) -> UnsafeMutableRawBufferPointer {
        let protection = isWritable ? PROT_READ | PROT_WRITE : PROT_READ
        let start = mmap(
            nil,
            Int(byteCount),
            protection,
            MAP_SHARED | MAP_NORESERVE,
            descriptor,
            off_t(offset)
        )
        guard let start, start != MAP_FAILED else {
            switch Errno(rawValue: errno) {
            case .notPermitted: throw .writeSealed(name: name)
            case .permissionDenied:
                throw .descriptorForbids(forbidden(of: descriptor, isWritable: isWritable), name: name)
            case .noMemory: throw .tooLarge(name: name, offset: offset, byteCount: byteCount)
            case let error: throw .refused(name: name, call: "mmap", error)
            }
        }
        // Guests' memory does not belong into a core file, nor would it fit. Advice: may fail without harm.
        madvise(start, Int(byteCount), MADV_DONTDUMP)
        return UnsafeMutableRawBufferPointer(start: start, count: Int(byteCount))
    }

    /// Which access it was that the kernel did not permit: a shared mapping always needs to read.
    private static func forbidden(of descriptor: CInt, isWritable: Bool) -> MemoryAccess {
        let flags = fcntl(descriptor, F_GETFL)
        return isWritable && flags & O_ACCMODE != O_WRONLY ? .write : .read
    }

    /// The path that the kernel has for a descriptor: what to call a peer's file.
    private static func path(of descriptor: CInt) -> String {
        let path = withUnsafeTemporaryAllocation(of: UInt8.self, capacity: Int(PATH_MAX)) {
            buffer -> String? in
            guard let start = buffer.baseAddress else { return nil }
            let count = start.withMemoryRebound(to: CChar.self, capacity: buffer.count) {
                readlink("/proc/self/fd/\(descriptor)", $0, buffer.count)
            }
            guard count > 0 else { return nil }
            return String(decoding: buffer[..<count], as: UTF8.self)
        }
        return path ?? "descriptor \(descriptor)"
    }
}
