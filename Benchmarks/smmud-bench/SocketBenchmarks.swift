// One DMA over the DMA socket, and a pipeline of them, each against a bare socket that carries the same bytes.

import CLinux
import ControlProtocol
import Glibc
import SMMUClient

/// What a socket benchmark could not do.
struct SocketBenchmarkError: Error, CustomStringConvertible {
    let description: String
}

/// The board that a daemon is started with, and how much of it is mapped for each endpoint before the first request.
struct ServedBoard {
    var board = GeneratedBoard()
    var mappedByteCount: UInt64 = 0x10000

    /// The requests are endpoint 0's.
    static let stream = GeneratedBoard.stream(of: 0)
}

/// A daemon on a board with a mapped buffer, and a raw connection to its DMA socket.
final class RunningDaemon {
    static let iova: UInt64 = 0x10_0000
    /// A request's header, which is all of a READ.
    static let requestByteCount = DMAProtocol.headerByteCount
    private let directory: String
    private var process = pid_t()
    let socket: CInt
    let dmaPath: String
    /// Where a test engine stands for vfio-user clients, if the board has a host bridge.
    let enginePath: String

    init(_ served: ServedBoard = ServedBoard()) throws {
        let board = served.board
        var template = Array("/tmp/smmud-bench-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else { throw SocketBenchmarkError(description: "mkdtemp failed") }
        let directory = String(cString: made)
        self.directory = directory
        let control = directory + "/control.sock"
        let dma = directory + "/dma.sock"
        dmaPath = dma
        try Self.write(board.source, to: directory + "/board.dts")
        let compiler = try Self.spawn([
            "dtc", "-q", "-I", "dts", "-O", "dtb", "-o", directory + "/board.dtb", directory + "/board.dts",
        ])
        var status: CInt = 0
        waitpid(compiler, &status, 0)
        guard status == 0 else { throw SocketBenchmarkError(description: "dtc failed") }
        let function = "0000:00:01.0"
        enginePath = "\(directory)/\(function).sock"
        let engine = ["--vfio-user", directory, "--device", "dma-test-engine,at=\(function)"]
        process = try Self.spawn(
            [
                Self.program("smmud"), directory + "/board.dtb", "--control", control, "--dma", dma,
                "--log-level", "error",
            ] + (board.hasHostBridge ? engine : [])
        )
        let client = try Self.connect(control, of: process)
        // All see the same memory: the board need not have as much as is mapped.
        var memory: Hex?
        for endpoint in 0..<board.endpointCount {
            memory = try client.call(
                Methods.IOMMUMap.self,
                Methods.IOMMUMap.Parameters(
                    device: GeneratedBoard.name(of: endpoint),
                    iova: Hex(Self.iova),
                    address: memory,
                    length: Size(served.mappedByteCount)
                )
            ).address
        }
        socket = try BareServer.connect(dma)
        var hello = [UInt8](repeating: 0, count: Self.requestByteCount)
        hello.withUnsafeMutableBytes { DMARequest.hello(id: 0).write(to: $0) }
        try BareServer.exchange(socket, hello, answerByteCount: DMAProtocol.headerByteCount)
    }

    deinit {
        close(socket)
        kill(process, SIGTERM)
        waitpid(process, nil, 0)
        for name in ["board.dts", "board.dtb"] { unlink(directory + "/" + name) }
        rmdir(directory)
    }

    /// READs of so many bytes, as they go over the wire.
    static func reads(_ requests: Int, byteCount: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: requests * requestByteCount)
        bytes.withUnsafeMutableBytes { bytes in
            for index in 0..<requests {
                let request = DMARequest(
                    .read,
                    id: UInt64(index),
                    flags: .direct,
                    endpoint: 0,
                    stream: ServedBoard.stream,
                    iova: iova,
                    count: UInt64(byteCount)
                )
                request.write(
                    to: UnsafeMutableRawBufferPointer(rebasing: bytes[(index * requestByteCount)...])
                )
            }
        }
        return bytes
    }

    private static func connect(_ path: String, of process: pid_t) throws -> ControlClient {
        while true {
            if let client = try? ControlClient(path: path) { return client }
            guard kill(process, 0) == 0, waitpid(process, nil, WNOHANG) == 0 else {
                throw SocketBenchmarkError(description: "smmud did not start")
            }
            usleep(1000)
        }
    }

    private static func write(_ text: String, to path: String) throws {
        guard let file = fopen(path, "w") else {
            throw SocketBenchmarkError(description: "cannot write \(path)")
        }
        fputs(text, file)
        fclose(file)
    }

    /// A program that is built beside this one.
    private static func program(_ name: String) -> String {
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink("/proc/self/exe", &buffer, buffer.count)
        let own = String(decoding: buffer[..<max(0, count)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return own.split(separator: "/").dropLast().map { "/" + $0 }.joined() + "/" + name
    }

    private static func spawn(_ words: [String]) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0)
        var arguments = words.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var process = pid_t()
        guard posix_spawnp(&process, words[0], &actions, nil, &arguments, environ) == 0 else {
            throw SocketBenchmarkError(description: "cannot start \(words[0])")
        }
        return process
    }
}

/// A thread that reads requests of one size and answers each with so many bytes: the least that a server does.
final class BareServer {
    let socket: CInt
    private let serverSocket: CInt
    private var thread = pthread_t()

    private final class Work {
        let socket: CInt
        let requestByteCount: Int
        let answerByteCount: Int

        init(_ socket: CInt, _ requestByteCount: Int, _ answerByteCount: Int) {
            self.socket = socket
            self.requestByteCount = requestByteCount
            self.answerByteCount = answerByteCount
        }

        func run() {
            let buffer = UnsafeMutableRawPointer.allocate(byteCount: 64 << 10, alignment: 16)
            defer { buffer.deallocate() }
            memset(buffer, 0, 64 << 10)
            var pending = 0
            while true {
                let count = recv(socket, buffer, 32 << 10, 0)
                guard count > 0 else { return }
                pending += count
                let requests = pending / requestByteCount
                pending %= requestByteCount
                guard
                    requests == 0
                        || send(socket, buffer, requests * answerByteCount, CInt(MSG_NOSIGNAL)) > 0
                else { return }
            }
        }
    }

    /// Sends requests and waits for as many bytes as their answers have.
    static func exchange(_ socket: CInt, _ request: [UInt8], answerByteCount: Int) throws {
        guard send(socket, request, request.count, CInt(MSG_NOSIGNAL)) == request.count else {
            throw SocketBenchmarkError(description: "send failed")
        }
        var received = 0
        try withUnsafeTemporaryAllocation(byteCount: 64 << 10, alignment: 16) { buffer in
            while received < answerByteCount {
                let count = recv(socket, buffer.baseAddress, min(buffer.count, answerByteCount - received), 0)
                guard count > 0 else {
                    throw SocketBenchmarkError(description: "the daemon closed the socket")
                }
                received += count
            }
        }
    }

    static func connect(_ path: String) throws -> CInt {
        let socket = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let status = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard status == 0 else { throw SocketBenchmarkError(description: "cannot connect to \(path)") }
        return socket
    }

    init(requestByteCount: Int, answerByteCount: Int) throws {
        var ends: [CInt] = [0, 0]
        guard socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends) == 0 else {
            throw SocketBenchmarkError(description: "socketpair failed")
        }
        (socket, serverSocket) = (ends[0], ends[1])
        let work = Work(ends[1], requestByteCount, answerByteCount)
        pthread_create(
            &thread,
            nil,
            { context in
                guard let context else { return nil }
                Unmanaged<Work>.fromOpaque(context).takeRetainedValue().run()
                return nil
            },
            Unmanaged.passRetained(work).toOpaque()
        )
    }

    deinit {
        shutdown(socket, CInt(SHUT_RDWR))
        pthread_join(thread, nil)
        close(socket)
        close(serverSocket)
    }
}

/// READs of 64 bytes, so many at a time, against bare exchanges of as many bytes.
private func roundTrips(inFlight: Int) throws -> (subject: (Int) throws -> Void, floor: (Int) throws -> Void)
{
    let answerByteCount = DMAProtocol.headerByteCount + 64
    // Both daemons take after who starts them.
    let cpus = Affinity.one()
    let daemon = try RunningDaemon()
    let bare = try BareServer(
        requestByteCount: RunningDaemon.requestByteCount,
        answerByteCount: answerByteCount
    )
    let requests = RunningDaemon.reads(inFlight, byteCount: 64)
    return (
        { count in
            try withExtendedLifetime(cpus) {
                try exchanges(daemon.socket, requests, count, inFlight, answerByteCount: answerByteCount)
            }
        },
        { try exchanges(bare.socket, requests, $0, inFlight, answerByteCount: answerByteCount) }
    )
}

/// One repetition is one request, however many go together.
private func exchanges(
    _ socket: CInt,
    _ requests: [UInt8],
    _ count: Int,
    _ inFlight: Int,
    answerByteCount: Int
) throws {
    for _ in 0..<max(1, count / inFlight) {
        try BareServer.exchange(socket, requests, answerByteCount: inFlight * answerByteCount)
    }
}

/// The same of two daemons, on one CPU.
func roundTrips(_ subject: ServedBoard, against floor: ServedBoard, inFlight: Int) throws -> (
    subject: (Int) throws -> Void, floor: (Int) throws -> Void
) {
    let answerByteCount = DMAProtocol.headerByteCount + 64
    let cpus = Affinity.one()
    func side(_ board: ServedBoard) throws -> (Int) throws -> Void {
        let daemon = try RunningDaemon(board)
        let requests = RunningDaemon.reads(inFlight, byteCount: 64)
        return { count in
            try withExtendedLifetime(cpus) {
                try exchanges(daemon.socket, requests, count, inFlight, answerByteCount: answerByteCount)
            }
        }
    }
    return (try side(subject), try side(floor))
}

var socketBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "dma-socket",
            subject: "read of 64 B over the DMA socket",
            floor: "a bare socket, same bytes, one CPU",
            prepare: { try roundTrips(inFlight: 1) }
        ),
        Benchmark(
            name: "dma-socket-64",
            subject: "the same, 64 in flight: one of them",
            floor: "a bare socket, same bytes, one CPU",
            prepare: { try roundTrips(inFlight: 64) }
        ),
    ]
}
