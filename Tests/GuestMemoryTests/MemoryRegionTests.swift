// Mappings: what they cost, where they end, and which descriptors they refuse.

import CLinux
import Glibc
import GuestMemory
import SystemPackage
import Testing

/// An unlinked file in /tmp: what a peer that is not using memfd would share.
func makeTemporaryFile(byteCount: Int, flags: CInt = O_RDWR) throws -> OwnedDescriptor {
    var path = Array("/tmp/smmud-test-XXXXXX".utf8CString)
    let writer = mkstemp(&path)
    try #require(writer >= 0)
    defer { close(writer) }
    try #require(ftruncate(writer, off_t(byteCount)) == 0)
    let file = open(path, flags | O_CLOEXEC)
    unlink(path)
    try #require(file >= 0)
    return OwnedDescriptor(adopting: file)
}

/// A memfd that can be truncated and sealed: a peer's.
func makeMemfd(byteCount: Int) throws -> OwnedDescriptor {
    let file = smmud_memfd_create_unsealed("peer", UInt64(byteCount))
    try #require(file >= 0)
    return OwnedDescriptor(adopting: file)
}

/// Why a descriptor cannot be mapped, or nil where it can.
private func refusal(
    _ descriptor: consuming OwnedDescriptor,
    offset: UInt64 = 0,
    byteCount: UInt64 = 4096,
    isWritable: Bool = true
) -> GuestMemoryError? {
    do throws(GuestMemoryError) {
        _ = try MemoryRegion.mapping(
            descriptor,
            offset: offset,
            byteCount: byteCount,
            isWritable: isWritable
        )
        return nil
    } catch {
        return error
    }
}

@Suite("Mappings of shared memory")
struct MemoryRegionTests {
    @Test("64 GiB of RAM cost the pages that are touched, first and last byte included")
    func sparseRegionCostsWhatItTouches() throws {
        let byteCount: UInt64 = 64 << 30
        let region = try MemoryRegion.anonymous(byteCount: byteCount, name: "ram")
        #expect(region.residentBytes == 0)
        for offset in [0, byteCount / 2, byteCount - 1] {
            try region.pointer(at: offset, count: 1, for: .write).storeBytes(of: 0xa5, as: UInt8.self)
        }
        #expect(try region.pointer(at: byteCount - 1, count: 1, for: .read).load(as: UInt8.self) == 0xa5)
        // Three pages of 4 KiB, or three huge ones where the system backs shared memory with them.
        #expect(region.residentBytes >= 3 * 4096)
        #expect(region.residentBytes <= 3 * (2 << 20))
    }

    @Test("RAM of our own cannot be truncated, grown or sealed by whoever holds its descriptor")
    func ownMemoryIsSealed() throws {
        let region = try MemoryRegion.anonymous(byteCount: 8192, name: "ram")
        #expect(ftruncate(region.fileDescriptor, 4096) == -1 && errno == EPERM)
        #expect(ftruncate(region.fileDescriptor, 12288) == -1 && errno == EPERM)
        // F_ADD_SEALS (1033) with F_SEAL_FUTURE_WRITE (0x10), as linux/fcntl.h has them.
        #expect(fcntl(region.fileDescriptor, 1033, 0x10) == -1 && errno == EPERM)
        #expect(fcntl(region.fileDescriptor, F_GETFD) & FD_CLOEXEC != 0)
    }

    @Test(
        "the funnel takes what lies inside, to the last byte, and no access that leaves the region",
        arguments: [
            (UInt64(0), UInt64(5000), true), (4999, 1, true), (5000, 0, true), (0, 0, true),
            (0, 5001, false), (4999, 2, false), (5000, 1, false), (5001, 0, false),
            (UInt64.max, 1, false), (1, UInt64.max, false), (UInt64.max, UInt64.max, false),
            (1 << 63, 1, false),
        ]
    )
    func funnelChecksBounds(offset: UInt64, count: UInt64, isInside: Bool) throws {
        let region = try MemoryRegion.anonymous(byteCount: 5000, name: "ram")
        let expected = GuestMemoryError.outOfRange(name: "ram", offset: offset, count: count, byteCount: 5000)
        for access in [MemoryAccess.read, .write] {
            do throws(GuestMemoryError) {
                let pointer = try region.pointer(at: offset, count: count, for: access)
                #expect(isInside)
                #expect(pointer == region.base + Int(offset))
            } catch {
                #expect(!isInside)
                #expect(error == expected)
            }
        }
    }

    @Test("two mappings of one file see each other's stores, at any offset")
    func mappingsOfOneFileShare() throws {
        let whole = try MemoryRegion.anonymous(byteCount: 3 * 4096, name: "ram")
        let copy = OwnedDescriptor(adopting: smmud_duplicate(whole.fileDescriptor))
        // An offset that is no multiple of a page, over a page boundary.
        let part = try MemoryRegion.mapping(copy, offset: 4091, byteCount: 4100, isWritable: true)
        #expect(part.fileOffset == 4091)
        for index in 0..<4100 {
            part.base.storeBytes(
                of: UInt8(truncatingIfNeeded: index * 7),
                toByteOffset: index,
                as: UInt8.self
            )
        }
        for index in 0..<4100 {
            let byte = whole.base.load(fromByteOffset: 4091 + index, as: UInt8.self)
            #expect(byte == UInt8(truncatingIfNeeded: index * 7))
        }
        #expect(whole.base.load(fromByteOffset: 4090, as: UInt8.self) == 0)
        #expect(whole.base.load(fromByteOffset: 8191, as: UInt8.self) == 0)
    }

    @Test("a region for reading reads what the file holds and refuses to be written")
    func readOnlyRegionRefusesWrites() throws {
        let file = try makeTemporaryFile(byteCount: 4096)
        let readable = OwnedDescriptor(adopting: open("/proc/self/fd/\(file.rawValue)", O_RDONLY | O_CLOEXEC))
        let region = try MemoryRegion.mapping(readable, offset: 0, byteCount: 4096, isWritable: false)
        var word: UInt32 = 0x1122_3344
        #expect(pwrite(file.rawValue, &word, 4, 100) == 4)
        #expect(try region.pointer(at: 100, count: 4, for: .read).load(as: UInt32.self) == 0x1122_3344)
        #expect(throws: GuestMemoryError.readOnly(name: region.name)) {
            try region.pointer(at: 100, count: 4, for: .write)
        }
    }

    @Test("the region outlives the descriptor it was made from, and closes its own")
    func regionOwnsItsDescriptor() throws {
        var ends: [CInt] = [-1, -1]
        try #require(socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends) == 0)
        defer { for end in ends { close(end) } }
        // A socket is refused, and refusing must close it too: then the other end reads the end of the stream.
        let refused = OwnedDescriptor(adopting: ends[0])
        ends.removeFirst()
        #expect(refusal(refused) != nil)
        var byte: UInt8 = 0
        #expect(read(ends[0], &byte, 1) == 0)
    }
}

@Suite("Mappings that are refused")
struct RefusedMappingTests {
    @Test("no bytes")
    func empty() throws {
        #expect(throws: GuestMemoryError.empty(name: "ram")) {
            try MemoryRegion.anonymous(byteCount: 0, name: "ram")
        }
        guard case .empty = refusal(try makeMemfd(byteCount: 4096), byteCount: 0) else {
            Issue.record("a mapping of no bytes was made")
            return
        }
    }

    @Test(
        "more bytes than a file or the address space can have",
        arguments: [1 << 63, .max - 4095, .max] as [UInt64]
    )
    func tooLarge(byteCount: UInt64) {
        do throws(GuestMemoryError) {
            _ = try MemoryRegion.anonymous(byteCount: byteCount, name: "ram")
            Issue.record("the mapping was made")
        } catch {
            guard case .tooLarge("ram", 0, byteCount) = error else {
                Issue.record("\(error)")
                return
            }
        }
    }

    @Test(
        "a range that the file does not cover",
        arguments: [
            [0, 8193], [8192, 1], [4096, 4097], [8191, 2], [.max, 1], [.max, .max], [1, .max],
            [1 << 63, 1 << 63],
        ] as [[UInt64]]
    )
    func fileTooShort(range: [UInt64]) throws {
        let (offset, byteCount) = (range[0], range[1])
        let error = refusal(try makeMemfd(byteCount: 8192), offset: offset, byteCount: byteCount)
        guard case .fileTooShort(_, 8192, offset, byteCount) = error else {
            Issue.record(Comment(rawValue: String(describing: error)))
            return
        }
    }

    @Test("a directory, a pipe, a device, a closed descriptor")
    func notMappable() throws {
        var ends: [CInt] = [-1, -1]
        try #require(pipe(&ends) == 0)
        defer { close(ends[1]) }
        let strangers = [open("/tmp", O_RDONLY), open("/dev/zero", O_RDWR), ends[0], -1]
        for stranger in strangers {
            guard case .notMappable = refusal(OwnedDescriptor(adopting: stranger)) else {
                Issue.record("descriptor \(stranger) was mapped, or refused for another reason")
                return
            }
        }
    }

    @Test("a descriptor that is not open for what the mapping is to be used for")
    func descriptorForbids() throws {
        let readable = refusal(try makeTemporaryFile(byteCount: 4096, flags: O_RDONLY))
        guard case .descriptorForbids(.write, _) = readable else {
            Issue.record(Comment(rawValue: String(describing: readable)))
            return
        }
        let writable = refusal(try makeTemporaryFile(byteCount: 4096, flags: O_WRONLY))
        guard case .descriptorForbids(.read, _) = writable else {
            Issue.record(Comment(rawValue: String(describing: writable)))
            return
        }
    }

    @Test("a memfd that is sealed against writing")
    func writeSealed() throws {
        let file = try makeMemfd(byteCount: 4096)
        // F_ADD_SEALS (1033) with F_SEAL_WRITE (8).
        try #require(fcntl(file.rawValue, 1033, 8) == 0)
        guard case .writeSealed = refusal(file) else {
            Issue.record("mapped, or refused for another reason")
            return
        }
    }

    @Test("messages name the region, what is wrong and what would be right")
    func descriptionsNameTheRegion() {
        let short = GuestMemoryError.fileTooShort(
            name: "/memfd:peer",
            fileByteCount: 10,
            offset: 16,
            byteCount: 4
        )
        #expect(
            "\(short)" == "/memfd:peer: the file has 10 bytes, but 4 at offset 0x10 were asked for; "
                + "share a file that covers them"
        )
        let refused = GuestMemoryError.refused(name: "ram", call: "mmap", .badFileDescriptor)
        #expect("\(refused)" == "ram: mmap: Bad file descriptor")
    }
}
