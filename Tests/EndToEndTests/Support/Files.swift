// Files that tests need: a directory of their own, compiled boards, the programs under test.

import Glibc

/// A directory that is there as long as the value is.
final class TemporaryDirectory {
    let path: String

    init() throws {
        // Short: a socket's path has little room.
        var template = Array("/tmp/smmud-test-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else { throw TestFailure("mkdtemp") }
        path = String(cString: made)
    }

    deinit { _ = try? ChildProcess.run("rm", ["-rf", path]) }

    /// The path of a file in it.
    func file(_ name: String) -> String { path + "/" + name }

    /// Writes a file.
    ///
    /// - Returns: Its path.
    func write(_ bytes: [UInt8], to name: String) throws -> String {
        let descriptor = open(file(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw TestFailure("cannot create \(file(name))") }
        defer { close(descriptor) }
        guard Glibc.write(descriptor, bytes, bytes.count) == bytes.count else { throw TestFailure("write") }
        return file(name)
    }

    /// Compiles a device tree.
    ///
    /// - Returns: The blob's path.
    func compile(_ source: String) throws -> String {
        try compile(file: try write(Array(source.utf8), to: "board.dts"))
    }

    /// Compiles a device tree's file.
    func compile(file path: String) throws -> String {
        let blob = file("board.dtb")
        let result = try ChildProcess.run("dtc", ["-q", "-I", "dts", "-O", "dtb", "-o", blob, path])
        guard result.exitCode == 0 else { throw TestFailure("dtc: \(result.errors)") }
        return blob
    }
}

/// Where things are.
enum Paths {
    /// The program under test, which is built beside the tests.
    static let smmud = programs + "/smmud"
    /// What writes to disks and says what was flushed.
    static let diskWriter = programs + "/smmud-disk-writer"

    /// The package.
    static let package: String = {
        let parts = #filePath.split(separator: "/")
        return "/" + parts.dropLast(4).joined(separator: "/")
    }()

    static let programs: String = {
        var buffer = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let count = buffer.withUnsafeMutableBytes { bytes in
            bytes.withMemoryRebound(to: CChar.self) { name in
                name.baseAddress.map { readlink("/proc/self/exe", $0, name.count) } ?? 0
            }
        }
        let path = String(decoding: buffer[..<max(0, count)], as: UTF8.self)
        return path.split(separator: "/").dropLast().map { "/" + $0 }.joined()
    }()
}

/// The bytes of a file.
func contents(of path: String) throws -> [UInt8] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw TestFailure("cannot open \(path)") }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 64 << 10)
    while case let count = read(descriptor, &piece, piece.count), count > 0 { bytes += piece[..<count] }
    return bytes
}

/// What kind of file it is and who may use it; nil where there is none.
func mode(of path: String) -> mode_t? {
    var status = stat()
    return lstat(path, &status) == 0 ? status.st_mode : nil
}

/// How many entries a directory has; for one that is not there, 0.
func entryCount(of directory: String) -> Int {
    guard let stream = opendir(directory) else { return 0 }
    defer { closedir(stream) }
    var count = 0
    while let entry = readdir(stream) {
        let isDot = entry.pointee.d_name.0 == CChar(UInt8(ascii: "."))
        count += isDot ? 0 : 1
    }
    return count
}
