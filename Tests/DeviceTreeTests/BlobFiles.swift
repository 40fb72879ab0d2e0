// Device tree blobs for tests: real boards' from a cache folder, our own compiled by dtc.

import DeviceTree
import Glibc
import Testing

/// A test cannot get at its input.
struct BlobError: Error, CustomStringConvertible {
    let description: String
}

/// Reads a whole file.
func readFile(_ path: String) throws -> [UInt8] {
    guard let file = fopen(path, "rb") else {
        throw BlobError(description: "\(path): \(String(cString: strerror(errno)))")
    }
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
        let count = fread(&chunk, 1, chunk.count, file)
        guard count > 0 else { return bytes }
        bytes += chunk[..<count]
    }
}

/// The package's root folder.
let packageRoot = #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(3)
    .joined(separator: "/")

/// The blob of a real board, as scripts/fetch-boards left it.
func board(_ name: String) throws -> [UInt8] {
    let folder = getenv("SMMUD_BOARDS").map { String(cString: $0) } ?? packageRoot + "/.cache/boards"
    do {
        return try readFile("\(folder)/\(name)")
    } catch {
        throw BlobError(description: "\(error): run scripts/fetch-boards, or set SMMUD_BOARDS to its folder")
    }
}
