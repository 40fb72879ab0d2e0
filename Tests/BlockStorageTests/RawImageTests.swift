// Raw images: bytes where they belong, and every refusal.

import BlockStorage
import Glibc
import SystemPackage
import Testing

/// A file of its own for each test.
private struct ImageFile: ~Copyable {
    let path: String

    init(byteCount: Int) {
        var template = Array("/tmp/smmud-image-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        ftruncate(descriptor, off_t(byteCount))
        close(descriptor)
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit { unlink(path) }
}

/// Lends bytes as segments of these lengths.
private func withSegments(
    _ bytes: inout [UInt8],
    _ lengths: [Int],
    _ body: (UnsafeBufferPointer<iovec>) throws -> Void
) rethrows {
    try bytes.withUnsafeMutableBytes { buffer in
        var start = 0
        var segments: [iovec] = []
        for length in lengths {
            segments.append(iovec(iov_base: buffer.baseAddress.map { $0 + start }, iov_len: length))
            start += length
        }
        try segments.withUnsafeBufferPointer(body)
    }
}

@Suite struct RawImageTests {
    @Test func writtenBytesAreReadBackAcrossSegments() throws {
        let file = ImageFile(byteCount: 8192)
        let image = try RawImage(path: file.path)
        var written = (0..<1536).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        try withSegments(&written, [512, 0, 24, 1000]) { try image.write($0, at: 1024) }
        var found = [UInt8](repeating: 0xEE, count: 1536)
        try withSegments(&found, [1, 1535]) { try image.read(at: 1024, into: $0) }
        #expect(found == written)
        try image.flush()
    }

    @Test func moreSegmentsThanOneCallTakesGoThrough() throws {
        let file = ImageFile(byteCount: 1 << 20)
        let image = try RawImage(path: file.path)
        var written = (0..<3000 * 16).map { UInt8(truncatingIfNeeded: $0 / 16) }
        try withSegments(&written, Array(repeating: 16, count: 3000)) { try image.write($0, at: 512) }
        var found = [UInt8](repeating: 0, count: written.count)
        try withSegments(&found, Array(repeating: 16, count: 3000)) { try image.read(at: 512, into: $0) }
        #expect(found == written)
    }

    @Test func bytesBeyondTheDiskAreRefused() throws {
        let file = ImageFile(byteCount: 4096)
        let image = try RawImage(path: file.path)
        var bytes = [UInt8](repeating: 1, count: 1024)
        withSegments(&bytes, [1024]) { segments in
            #expect(throws: Errno.invalidArgument) { try image.read(at: 3584, into: segments) }
            #expect(throws: Errno.invalidArgument) { try image.write(segments, at: UInt64.max - 511) }
        }
        #expect(throws: Errno.invalidArgument) {
            try image.writeZeroes(at: 4096, byteCount: 1, mayUnmap: false)
        }
    }

    @Test func zeroesAndDiscardsReadAsZeroesAndLeaveTheirNeighbours() throws {
        let file = ImageFile(byteCount: 16384)
        let image = try RawImage(path: file.path)
        var ones = [UInt8](repeating: 0xFF, count: 16384)
        try withSegments(&ones, [16384]) { try image.write($0, at: 0) }
        try image.writeZeroes(at: 512, byteCount: 512, mayUnmap: false)
        try image.discard(at: 4096, byteCount: 8192)
        var found = [UInt8](repeating: 1, count: 16384)
        try withSegments(&found, [16384]) { try image.read(at: 0, into: $0) }
        for (index, byte) in found.enumerated() {
            let isZero = (512..<1024).contains(index) || (4096..<12288).contains(index)
            #expect(byte == (isZero ? 0 : 0xFF), "byte \(index)")
        }
    }

    @Test func aFileThatIsTruncatedUnderItIsAnInputError() throws {
        let file = ImageFile(byteCount: 4096)
        let image = try RawImage(path: file.path)
        truncate(file.path, 1024)
        var bytes = [UInt8](repeating: 1, count: 512)
        withSegments(&bytes, [512]) { segments in
            #expect(throws: Errno.ioError) { try image.read(at: 2048, into: segments) }
        }
    }

    @Test func readOnlyImagesTakeNoWrites() throws {
        let file = ImageFile(byteCount: 4096)
        let image = try RawImage(path: file.path, isReadOnly: true)
        var bytes = [UInt8](repeating: 1, count: 512)
        withSegments(&bytes, [512]) { segments in
            #expect(throws: Errno.readOnlyFileSystem) { try image.write(segments, at: 0) }
        }
        #expect(throws: Errno.readOnlyFileSystem) { try image.discard(at: 0, byteCount: 512) }
    }

    @Test func whatIsNoDiskIsRefusedWithTheReason() throws {
        let file = ImageFile(byteCount: 1000)
        #expect(throws: RawImageError.notWholeBlocks(path: file.path, byteCount: 1000)) {
            try RawImage(path: file.path)
        }
        #expect(throws: RawImageError.notAFile(path: "/tmp")) {
            try RawImage(path: "/tmp", isReadOnly: true)
        }
        #expect(throws: RawImageError.refused(path: "/nowhere/disk", call: "open", .noSuchFileOrDirectory)) {
            try RawImage(path: "/nowhere/disk")
        }
        let good = ImageFile(byteCount: 512)
        let first = try RawImage(path: good.path)
        #expect(throws: RawImageError.inUse(path: good.path)) { try RawImage(path: good.path) }
        withExtendedLifetime(first) {}
    }
}
