// Other programs, as the benchmarks need them: dtc, the daemon, and the least that a process can be.

import Glibc

/// A program that was started, with its standard output.
final class HostProcess {
    /// What could not be done with a program.
    struct Failure: Error, CustomStringConvertible {
        let description: String
    }

    let identifier: pid_t
    private let output: CInt

    /// Starts a program; a name without a slash is looked up.
    init(_ words: [String]) throws {
        var ends: [CInt] = [0, 0]
        guard pipe(&ends) == 0 else { throw Failure(description: "no pipe") }
        defer { close(ends[1]) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO)
        var arguments = words.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var process = pid_t()
        guard posix_spawnp(&process, words[0], &actions, nil, &arguments, environ) == 0 else {
            close(ends[0])
            throw Failure(description: "cannot start \(words[0])")
        }
        identifier = process
        output = ends[0]
    }

    deinit {
        close(output)
        kill(identifier, SIGTERM)
        waitpid(identifier, nil, 0)
    }

    /// Waits for a line of its output.
    func waitForLine() throws {
        var byte: UInt8 = 0
        repeat {
            guard read(output, &byte, 1) == 1 else { throw Failure(description: "a program ended too soon") }
        } while byte != UInt8(ascii: "\n")
    }

    /// VmRSS.
    func residentByteCount() throws -> Double {
        guard let file = fopen("/proc/\(identifier)/statm", "r") else {
            throw Failure(description: "no /proc/\(identifier)/statm")
        }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 128)
        let count = fread(&bytes, 1, bytes.count, file)
        let fields = String(decoding: bytes[..<count], as: UTF8.self).split(separator: " ")
        guard fields.count > 1, let pages = Double(fields[1]) else {
            throw Failure(description: "statm is strange")
        }
        return pages * Double(sysconf(CInt(_SC_PAGESIZE)))
    }

    /// A program that is built beside this one.
    static func path(ofBuilt name: String) -> String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        let own = String(decoding: buffer[..<max(0, count)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return own.split(separator: "/").dropLast().map { "/" + $0 }.joined() + "/" + name
    }
}

/// A directory for a benchmark's files, which goes with it.
final class ScratchDirectory {
    let path: String

    init() throws {
        var template = Array("/tmp/smmud-bench-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw HostProcess.Failure(description: "mkdtemp failed") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit {
        for name in ["board.dts", "board.dtb", "control", "dma"] { unlink(path + "/" + name) }
        rmdir(path)
    }

    /// Compiles device tree source.
    ///
    /// - Returns: The blob's path.
    func compile(_ source: String) throws -> String {
        guard let file = fopen(path + "/board.dts", "w") else {
            throw HostProcess.Failure(description: "cannot write to \(path)")
        }
        fputs(source, file)
        fclose(file)
        let blob = path + "/board.dtb"
        var status: CInt = 0
        let words = ["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", blob, "\(path)/board.dts"]
        var arguments = words.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var process = pid_t()
        guard posix_spawnp(&process, "dtc", nil, nil, &arguments, environ) == 0,
            waitpid(process, &status, 0) == process, status == 0
        else { throw HostProcess.Failure(description: "dtc failed; it is in device-tree-compiler") }
        return blob
    }
}
