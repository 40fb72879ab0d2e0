// A disk's content: a raw file.

package import CLinux
import Glibc
package import SystemPackage

/// A raw disk image: byte n of the disk is byte n of the file.
///
/// Calls come from any thread and may run at the same time; what overlapping ones leave behind is either's, as with
/// a disk. They block as files do.
package final class RawImage: Sendable {
    /// What people call it: the path that it was opened by.
    package let path: String
    /// In bytes, a multiple of ``blockByteCount``.
    package let byteCount: UInt64
    package let isReadOnly: Bool
    /// The size of the disk's blocks.
    package static let blockByteCount: UInt64 = 512
    private let descriptor: CInt

    /// Opens an image, which must be there: making one of the right size is its owner's affair.
    ///
    /// It is locked against a second writer (`flock(2)`), so that two daemons do not share one disk.
    package init(path: String, isReadOnly: Bool = false) throws(RawImageError) {
        let descriptor = open(path, (isReadOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC)
        guard descriptor >= 0 else { throw .refused(path: path, call: "open", Errno(rawValue: errno)) }
        self.descriptor = descriptor
        self.path = path
        self.isReadOnly = isReadOnly
        var status = stat()
        guard fstat(descriptor, &status) == 0 else {
            let error = Errno(rawValue: errno)
            close(descriptor)
            throw .refused(path: path, call: "fstat", error)
        }
        guard status.st_mode & S_IFMT == S_IFREG else {
            close(descriptor)
            throw .notAFile(path: path)
        }
        let size = UInt64(clamping: status.st_size)
        guard size > 0, size.isMultiple(of: Self.blockByteCount) else {
            close(descriptor)
            throw .notWholeBlocks(path: path, byteCount: size)
        }
        guard flock(descriptor, (isReadOnly ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0 else {
            let error = Errno(rawValue: errno)
            close(descriptor)
            throw error == .wouldBlock ? .inUse(path: path) : .refused(path: path, call: "flock", error)
        }
        byteCount = size
    }

    deinit { close(descriptor) }

    /// Whether the bytes are all on the disk.
    package func contains(_ offset: UInt64, byteCount count: UInt64) -> Bool {
        offset <= byteCount && count <= byteCount - offset
    }

    /// Reads into `segments`, in their order, from `offset` on.
    ///
    /// - Throws: The system's error; `EIO` where the file ends before the bytes do (somebody truncated it), `EINVAL`
    ///   where they are not on the disk.
    package func read(at offset: UInt64, into segments: UnsafeBufferPointer<iovec>) throws(Errno) {
        try transfer(at: offset, segments) { preadv(descriptor, $0, $1, $2) }
    }

    /// Writes `segments`, in their order, from `offset` on.
    ///
    /// - Throws: The system's error; `EROFS` where the image is read-only, `EINVAL` where the
    ///   bytes are not on the disk.
    package func write(_ segments: UnsafeBufferPointer<iovec>, at offset: UInt64) throws(Errno) {
        guard !isReadOnly else { throw .readOnlyFileSystem }
        try transfer(at: offset, segments) { pwritev(descriptor, $0, $1, $2) }
    }

    /// Puts everything that was written, in calls that have returned, on stable storage.
    package func flush() throws(Errno) {
        while fdatasync(descriptor) != 0 {
            guard errno == EINTR else { throw Errno(rawValue: errno) }
        }
    }

    /// Gives up what blocks hold; they may read as zeros from then on, and here they do.
    package func discard(at offset: UInt64, byteCount count: UInt64) throws(Errno) {
        try writeZeroes(at: offset, byteCount: count, mayUnmap: true)
    }

    /// Writes zeros, giving the blocks up where `mayUnmap` and the file system can.
    package func writeZeroes(at offset: UInt64, byteCount count: UInt64, mayUnmap: Bool) throws(Errno) {
        guard !isReadOnly else { throw .readOnlyFileSystem }
        guard contains(offset, byteCount: count) else { throw .invalidArgument }
        guard count > 0 else { return }
        let modes = mayUnmap ? [punchHole, zeroRange] : [zeroRange]
        for mode in modes {
            var status = smmud_fallocate(descriptor, mode | keepSize, offset, count)
            while status == -EINTR { status = smmud_fallocate(descriptor, mode | keepSize, offset, count) }
            if status == 0 { return }
            guard status == -EOPNOTSUPP else { throw Errno(rawValue: -status) }
        }
        try writeZeroesByHand(at: offset, count)
    }

    // FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE and FALLOC_FL_KEEP_SIZE of linux/falloc.h.
    private let punchHole: CInt = 0x02
    private let zeroRange: CInt = 0x10
    private let keepSize: CInt = 0x01

    private func writeZeroesByHand(at offset: UInt64, _ count: UInt64) throws(Errno) {
        let pieceByteCount = 1 << 16
        let zeros = UnsafeMutableRawPointer.allocate(byteCount: pieceByteCount, alignment: 4096)
        defer { zeros.deallocate() }
        memset(zeros, 0, pieceByteCount)
        var done: UInt64 = 0
        while done < count {
            let piece = min(UInt64(pieceByteCount), count - done)
            var error: Errno?
            withUnsafePointer(to: iovec(iov_base: zeros, iov_len: Int(piece))) { vector in
                do throws(Errno) {
                    try write(UnsafeBufferPointer(start: vector, count: 1), at: offset + done)
                } catch let failure {
                    error = failure
                }
            }
            if let error { throw error }
            done += piece
        }
    }

    /// Has `call` move all bytes, however few it moves at once.
    private func transfer(
        at offset: UInt64,
        _ segments: UnsafeBufferPointer<iovec>,
        _ call: (UnsafePointer<iovec>, CInt, off_t) -> Int
    ) throws(Errno) {
        let total = segments.reduce(UInt64(0)) { $0 &+ UInt64($1.iov_len) }
        guard contains(offset, byteCount: total) else { throw .invalidArgument }
        var rest = segments[...]
        var place = offset
        // What is left of the first segment after a call that moved a part of it.
        var partial: iovec?
        while !rest.isEmpty {
            let moved: Int
            if var first = partial {
                moved = call(&first, 1, off_t(place))
            } else {
                let batch = UnsafeBufferPointer(rebasing: rest.prefix(Self.segmentCountMax))
                guard let base = batch.baseAddress else { return }
                moved = call(base, CInt(batch.count), off_t(place))
            }
            guard moved >= 0 else {
                if errno == EINTR { continue }
                throw Errno(rawValue: errno)
            }
            let isEmptyCall =
                partial.map { $0.iov_len == 0 }
                ?? rest.prefix(Self.segmentCountMax).allSatisfy { $0.iov_len == 0 }
            guard moved > 0 || isEmptyCall else { throw .ioError }
            place += UInt64(moved)
            advance(&rest, &partial, by: moved)
        }
    }

    private func advance(
        _ rest: inout Slice<UnsafeBufferPointer<iovec>>,
        _ partial: inout iovec?,
        by moved: Int
    ) {
        var left = moved
        while let segment = partial ?? rest.first {
            guard left >= segment.iov_len else {
                guard left > 0 || partial != nil else { return }
                partial = iovec(iov_base: segment.iov_base + left, iov_len: segment.iov_len - left)
                return
            }
            left -= segment.iov_len
            partial = nil
            rest = rest.dropFirst()
            if left == 0 { return }
        }
    }

    /// IOV_MAX.
    private static let segmentCountMax = 1024
}

/// Why there is no disk.
package enum RawImageError: Error, Equatable, CustomStringConvertible {
    case refused(path: String, call: String, Errno)
    case notAFile(path: String)
    case notWholeBlocks(path: String, byteCount: UInt64)
    case inUse(path: String)

    package var description: String {
        switch self {
        case .refused(let path, let call, let error): "\(path): \(call): \(error.description)"
        case .notAFile(let path): "\(path): not a regular file; a disk is a raw image"
        case .notWholeBlocks(let path, let byteCount):
            "\(path): \(byteCount) bytes; a disk has one block of \(RawImage.blockByteCount) bytes or more, and whole ones"
        case .inUse(let path): "\(path): another program has this disk open for writing"
        }
    }
}
