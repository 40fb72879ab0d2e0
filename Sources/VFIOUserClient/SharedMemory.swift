// Memory that a client and a server share, both ways.

import CLinux
import Glibc
package import GuestMemory
import SystemPackage

/// One descriptor with several users, closed after the last.
final class SharedDescriptor: Sendable {
    private let descriptor: OwnedDescriptor

    init(adopting number: CInt) { descriptor = OwnedDescriptor(adopting: number) }

    var number: CInt { descriptor.rawValue }

    func duplicate() throws(GuestMemoryError) -> OwnedDescriptor {
        do throws(Errno) {
            return try descriptor.duplicate()
        } catch {
            throw .refused(name: "descriptor \(descriptor.rawValue)", call: "dup", error)
        }
    }
}

/// Bytes that another process can change at any time, reached by copying.
///
/// Where the other truncates the file, reads give zeros, and ``isLost`` is true from then on.
public protocol VFIOUserSharedBytes: Sendable {
    /// How many there are.
    var byteCount: UInt64 { get }
    /// Whether the file was truncated by whoever else has it.
    var isLost: Bool { get }
    /// What holds them.
    func withPointer<Result>(
        at offset: UInt64,
        count: Int,
        forWriting: Bool,
        _ body: (UnsafeMutableRawPointer) -> Result
    ) throws(VFIOUserClientError) -> Result
}

extension VFIOUserSharedBytes {
    /// Reads bytes.
    ///
    /// - Throws: ``VFIOUserClientError/invalid(_:)`` where they lie outside.
    public func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer)
        throws(VFIOUserClientError)
    {
        try withPointer(at: offset, count: buffer.count, forWriting: false) {
            smmud_copy_from_shared(buffer.baseAddress, $0, buffer.count)
        }
    }

    /// Reads bytes.
    public func read(_ byteCount: Int, at offset: UInt64) throws(VFIOUserClientError) -> [UInt8] {
        guard byteCount >= 0, UInt64(byteCount) <= self.byteCount else {
            throw .invalid("\(byteCount) bytes of \(self.byteCount)")
        }
        var bytes = [UInt8](repeating: 0, count: byteCount)
        try bytes.withUnsafeMutableBufferPointer { (buffer) throws(VFIOUserClientError) in
            try read(at: offset, into: UnsafeMutableRawBufferPointer(buffer))
        }
        return bytes
    }

    /// Writes bytes.
    public func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws(VFIOUserClientError) {
        try withPointer(at: offset, count: buffer.count, forWriting: true) {
            smmud_copy_to_shared($0, buffer.baseAddress, buffer.count)
        }
    }

    /// Writes bytes.
    public func write(_ bytes: [UInt8], at offset: UInt64) throws(VFIOUserClientError) {
        try bytes.withUnsafeBufferPointer { (buffer) throws(VFIOUserClientError) in
            try write(UnsafeRawBufferPointer(buffer), at: offset)
        }
    }

    /// Reads an integer, little-endian; one that is aligned is read at once, and before every access that follows.
    public func load<Word: FixedWidthInteger & UnsignedInteger>(
        at offset: UInt64,
        as _: Word.Type = Word.self
    )
        throws(VFIOUserClientError) -> Word
    {
        var word: Word = 0
        try withUnsafeMutableBytes(of: &word) { (buffer) throws(VFIOUserClientError) in
            try read(at: offset, into: buffer)
        }
        return Word(littleEndian: word)
    }

    /// Writes an integer, little-endian; one that is aligned is written at once, and after every access before.
    public func store<Word: FixedWidthInteger & UnsignedInteger>(_ word: Word, at offset: UInt64)
        throws(VFIOUserClientError)
    {
        try withUnsafeBytes(of: word.littleEndian) { (buffer) throws(VFIOUserClientError) in
            try withPointer(at: offset, count: buffer.count, forWriting: true) {
                smmud_copy_to_shared($0, buffer.baseAddress, buffer.count)
            }
        }
    }
}

extension MemoryRegion {
    fileprivate func withPointer<Result>(
        _ offset: UInt64,
        _ count: Int,
        _ access: MemoryAccess,
        _ body: (UnsafeMutableRawPointer) -> Result
    ) throws(VFIOUserClientError) -> Result {
        do throws(GuestMemoryError) {
            return body(try pointer(at: offset, count: UInt64(clamping: count), for: access))
        } catch {
            throw .invalid(error.description)
        }
    }
}

/// Memory of the client's own that it can share: a memfd that nobody can shrink.
///
/// It costs what is touched of it.
public final class VFIOUserSharedMemory: VFIOUserSharedBytes {
    package let region: MemoryRegion

    /// Makes memory of so many bytes, all 0.
    ///
    /// - Throws: ``VFIOUserClientError/local(_:)`` where the kernel gives none.
    public init(byteCount: UInt64, name: String = "vfio-user") throws(VFIOUserClientError) {
        do throws(GuestMemoryError) {
            region = try MemoryRegion.anonymous(byteCount: byteCount, name: name)
        } catch {
            throw .local(error.description)
        }
    }

    /// Memory in a file that is shared with others.
    ///
    /// - Parameter descriptor: Of a memfd or a regular file; it stays the caller's.
    public init(duplicating descriptor: Int32, offset: UInt64, byteCount: UInt64, isWritable: Bool = true)
        throws(VFIOUserClientError)
    {
        let copy = smmud_duplicate(descriptor)
        guard copy >= 0 else { throw .local("descriptor \(descriptor): \(errorText(-copy))") }
        do throws(GuestMemoryError) {
            region = try MemoryRegion.mapping(
                OwnedDescriptor(adopting: copy),
                offset: offset,
                byteCount: byteCount,
                isWritable: isWritable
            )
        } catch {
            throw .local(error.description)
        }
    }

    /// Memory that the machine has.
    package init(_ region: MemoryRegion) { self.region = region }

    public var byteCount: UInt64 { region.byteCount }
    public var isLost: Bool { region.isLost }

    public func withPointer<Result>(
        at offset: UInt64,
        count: Int,
        forWriting: Bool,
        _ body: (UnsafeMutableRawPointer) -> Result
    ) throws(VFIOUserClientError) -> Result {
        try region.withPointer(offset, count, forWriting ? .write : .read, body)
    }
}

/// An area of a device's region, mapped.
///
/// Offsets are from the area's start.
public final class VFIOUserRegionMapping: VFIOUserSharedBytes {
    public let area: VFIOUserClient.MappableArea
    private let region: MemoryRegion

    init(area: VFIOUserClient.MappableArea, region: MemoryRegion) {
        self.area = area
        self.region = region
    }

    public var byteCount: UInt64 { region.byteCount }
    public var isLost: Bool { region.isLost }

    public func withPointer<Result>(
        at offset: UInt64,
        count: Int,
        forWriting: Bool,
        _ body: (UnsafeMutableRawPointer) -> Result
    ) throws(VFIOUserClientError) -> Result {
        try region.withPointer(offset, count, forWriting ? .write : .read, body)
    }
}

extension VFIOUserClient {
    public typealias RegionMapping = VFIOUserRegionMapping
}
