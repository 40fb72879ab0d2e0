// A program started by a test: its output, its end.

import Glibc

/// What a test expected of a program or a socket and did not get.
struct TestFailure: Error, CustomStringConvertible {
    let description: String

    init(_ description: String) { self.description = description }
}

/// A running program, killed where the test forgets it.
final class ChildProcess {
    let processID: pid_t
    private var exitCode: Int32?
    private let output: CInt
    private let errors: CInt
    private var pendingOutput: [UInt8] = []

    /// How long anything may take that a test waits for, in milliseconds.
    ///
    /// Only ever reached where it never comes.
    static let patienceMilliseconds: Int32 = 60_000

    /// Starts a program; one without a slash in its name is looked for in PATH.
    init(_ program: String, _ arguments: [String], environment: [String: String] = [:]) throws {
        // Sockets and not pipes, because they can be made close-on-exec at once: other tests start programs too.
        let outputs = try Self.socketPair()
        let errorOutputs = try Self.socketPair()
        defer {
            close(outputs.child)
            close(errorOutputs.child)
        }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, outputs.child, STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, errorOutputs.child, STDERR_FILENO)
        var argv = ([program] + arguments).map { strdup($0) } + [nil]
        var envp = Self.environment(with: environment).map { strdup($0) } + [nil]
        defer { for text in argv + envp { free(text) } }
        var processID = pid_t()
        let error = posix_spawnp(&processID, program, &actions, nil, &argv, &envp)
        guard error == 0 else {
            close(outputs.parent)
            close(errorOutputs.parent)
            throw TestFailure("cannot start \(program): \(String(cString: strerror(error)))")
        }
        self.processID = processID
        output = outputs.parent
        errors = errorOutputs.parent
    }

    deinit {
        if exitCode == nil {
            kill(processID, SIGKILL)
            waitpid(processID, nil, 0)
        }
        close(output)
        close(errors)
    }

    private static func socketPair() throws -> (parent: CInt, child: CInt) {
        var ends: [CInt] = [-1, -1]
        let type = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, type, 0, &ends) == 0 else { throw TestFailure("socketpair") }
        return (ends[0], ends[1])
    }

    private static func environment(with added: [String: String]) -> [String] {
        var result: [String] = []
        var next = environ
        while let entry = next.pointee {
            let text = String(cString: entry)
            if added[String(text.prefix { $0 != "=" })] == nil { result.append(text) }
            next += 1
        }
        return result + added.map { "\($0.key)=\($0.value)" }
    }

    /// Waits for the next line of its standard output, without the newline; nil at the end.
    func nextLine() throws -> String? {
        while true {
            if let newline = pendingOutput.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: pendingOutput[..<newline], as: UTF8.self)
                pendingOutput.removeFirst(newline + 1)
                return line
            }
            let more = try Self.read(output)
            if more.isEmpty { return nil }
            pendingOutput += more
        }
    }

    /// The lines of its standard output that are there already.
    func linesSoFar() throws -> [String] {
        var lines: [String] = []
        while try hasLine(), let line = try nextLine() { lines.append(line) }
        return lines
    }

    /// Whether a line can be had without waiting.
    private func hasLine() throws -> Bool {
        while !pendingOutput.contains(UInt8(ascii: "\n")) {
            var entry = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            guard poll(&entry, 1, 0) > 0 else { return false }
            let more = try Self.read(output)
            if more.isEmpty { return false }
            pendingOutput += more
        }
        return true
    }

    /// Waits for its end.
    ///
    /// - Returns: The exit code, or 128 and the number of the signal that ended it; what it wrote that nobody took.
    @discardableResult
    func wait() throws -> (exitCode: Int32, output: String, errors: String) {
        // Its output ends when it does. Both at once: it may wait for either to be read.
        var texts = [pendingOutput, []]
        var entries = [output, errors].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
        while entries.contains(where: { $0.fd >= 0 }) {
            guard poll(&entries, 2, Self.patienceMilliseconds) > 0 else {
                throw TestFailure("it does not end")
            }
            for index in entries.indices where entries[index].revents != 0 {
                let more = try Self.read(entries[index].fd)
                if more.isEmpty { entries[index].fd = -1 }
                texts[index] += more
            }
        }
        pendingOutput = []
        var status: CInt = 0
        if exitCode == nil {
            waitpid(processID, &status, 0)
            exitCode = status & 0x7F == 0 ? (status >> 8) & 0xFF : 128 + status & 0x7F
        }
        return (
            exitCode ?? -1, String(decoding: texts[0], as: UTF8.self),
            String(decoding: texts[1], as: UTF8.self)
        )
    }

    func signal(_ number: CInt) { kill(processID, number) }

    /// Whether it has not ended.
    var isRunning: Bool {
        guard exitCode == nil else { return false }
        var info = siginfo_t()
        return waitid(P_PID, id_t(processID), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_signo == 0
    }

    private static func read(_ descriptor: CInt) throws -> ArraySlice<UInt8> {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, patienceMilliseconds) > 0 else { throw TestFailure("no output came") }
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        let count = Glibc.read(descriptor, &bytes, bytes.count)
        return bytes[..<max(0, count)]
    }

    /// Runs a program to its end.
    static func run(_ program: String, _ arguments: [String], environment: [String: String] = [:]) throws -> (
        exitCode: Int32, output: String, errors: String
    ) {
        try ChildProcess(program, arguments, environment: environment).wait()
    }
}
