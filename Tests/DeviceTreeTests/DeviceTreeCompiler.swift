// Runs dtc and fdtget, the reference tools for device trees, on files of this package.

import Glibc

/// What a tool wrote to its standard output.
///
/// - Throws: ``BlobError`` where it cannot be run or fails, with its standard error.
func run(_ tool: String, _ arguments: [String]) throws -> [UInt8] {
    let output = try TemporaryFile()
    let errors = try TemporaryFile()
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 1, output.path, O_WRONLY | O_TRUNC, 0)
    posix_spawn_file_actions_addopen(&actions, 2, errors.path, O_WRONLY | O_TRUNC, 0)
    let words = ([tool] + arguments).map { strdup($0) } + [nil]
    defer { words.forEach { free($0) } }
    var child: pid_t = 0
    let status = posix_spawnp(&child, tool, &actions, nil, words, environ)
    guard status == 0 else {
        throw BlobError(
            description: "cannot run \(tool): \(String(cString: strerror(status))); "
                + "install the package device-tree-compiler"
        )
    }
    var exit: CInt = 0
    while waitpid(child, &exit, 0) < 0, errno == EINTR {}
    guard exit == 0 else {
        let text = String(decoding: try readFile(errors.path), as: UTF8.self)
        throw BlobError(description: "\(tool) \(arguments.joined(separator: " ")): \(text)")
    }
    return try readFile(output.path)
}

/// Compiles a device tree source of this package.
///
/// - Parameters:
///   - path: The source, from the package's root.
///   - isForced: Whether dtc writes a blob although it finds mistakes: these are what a test wants.
/// - Returns: The blob.
/// - Throws: ``BlobError`` where dtc cannot be run or writes no blob.
func compile(_ path: String, isForced: Bool = false) throws -> [UInt8] {
    try run(
        "dtc",
        ["-q", "-I", "dts", "-O", "dtb"] + (isForced ? ["-f"] : []) + ["\(packageRoot)/\(path)"]
    )
}

/// A file that lasts as long as this value.
final class TemporaryFile {
    let path: String

    init(_ content: [UInt8] = []) throws {
        var template = Array("/tmp/smmud-test-XXXXXX".utf8CString)
        let descriptor = mkstemp(&template)
        guard descriptor >= 0 else {
            throw BlobError(description: "mkstemp: \(String(cString: strerror(errno)))")
        }
        defer { close(descriptor) }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        guard content.withUnsafeBytes({ write(descriptor, $0.baseAddress, $0.count) }) == content.count else {
            throw BlobError(description: "\(path): \(String(cString: strerror(errno)))")
        }
    }

    deinit { unlink(path) }
}
