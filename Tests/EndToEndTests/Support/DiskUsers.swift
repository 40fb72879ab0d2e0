// Disks behind vfio-user sockets, and programs that write to them until they are killed.

import DiskJournal
import Glibc

/// One disk: its file, its socket, and what must be in the file.
final class TestDisk {
    let name: String
    let file: String
    let socket: String
    /// The daemon's `--device`.
    let device: String
    private let seed: UInt64
    private var record: DiskRecord
    private var run: UInt32 = 0

    /// Makes the file, all zeros.
    init(_ name: String, at place: String, in directory: TemporaryDirectory, seed: UInt64) throws {
        self.name = name
        self.seed = seed
        record = DiskRecord(seed: seed)
        let byteCount = 2 * Int(WritePlan.blockCount) * JournalBlock.byteCount
        file = try directory.write([UInt8](repeating: 0, count: byteCount), to: "\(name).img")
        socket = directory.file("v/\(place).sock")
        device = "\(name),at=\(place),file=\(file)"
    }

    /// Has a program write to it.
    func startWriter(_ arguments: [String] = []) throws -> DiskUser {
        run += 1
        let process = try ChildProcess(
            Paths.diskWriter,
            [socket, "--seed", "\(seed)", "--run", "\(run)"] + arguments
        )
        return DiskUser(process, run: run)
    }

    /// What is wrong with the file after a writer's end; nothing else may be writing.
    func complaints(after writer: DiskUser, tookMemoryAway: Bool = false) throws -> [String] {
        record.check(
            try contents(of: file),
            run: writer.run,
            flushed: writer.flushed,
            tookMemoryAway: tookMemoryAway
        )
    }

    /// Has a new client bring the disk up and read it.
    ///
    /// - Returns: What is wrong with that.
    func complaintsOfNextClient() throws -> [String] {
        let result = try ChildProcess.run(Paths.diskWriter, [socket, "--read"])
        var checksum = Checksum()
        checksum.add(try contents(of: file).prefix(Int(WritePlan.blockCount) * JournalBlock.byteCount))
        guard result.exitCode == 0, result.output == "ready\nread \(checksum.value)\n" else {
            return ["the next client: \(result), and not checksum \(checksum.value)"]
        }
        return []
    }
}

/// A program that writes to a disk.
final class DiskUser {
    let process: ChildProcess
    let run: UInt32
    /// The last write whose flush it reported.
    private(set) var flushed: UInt64?

    init(_ process: ChildProcess, run: UInt32) {
        self.process = process
        self.run = run
    }

    private func take(_ line: some StringProtocol) {
        let words = line.split(separator: " ")
        if words.count == 2, words[0] == "flushed", let number = UInt64(words[1]) { flushed = number }
    }

    /// Waits until it is at work, or has reported so many flushes more.
    func waitForReports(_ count: Int) throws {
        for _ in 0..<count {
            guard let line = try process.nextLine() else {
                throw TestFailure("the writer ended: \(try process.wait())")
            }
            take(line)
        }
    }

    /// Waits for a flush that was begun after now.
    func waitForProgress() throws {
        for line in try process.linesSoFar() { take(line) }
        // The first was under way perhaps, and what follows "ready" was not.
        try waitForReports(2)
    }

    /// Waits for its end, and takes what it had reported until then.
    func end() throws -> (exitCode: Int32, errors: String) {
        let result = try process.wait()
        // A line without its end was not reported.
        let lines = result.output.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
        for line in lines { take(line) }
        return (result.exitCode, result.errors)
    }

    func kill() throws {
        process.signal(SIGKILL)
        _ = try end()
    }
}

/// A machine with two disks that outlives its daemons.
final class MachineWithDisks {
    let directory: TemporaryDirectory
    let disks: [TestDisk]
    private let board: String

    init(seed: UInt64) throws {
        directory = try TemporaryDirectory()
        board = String(decoding: try contents(of: Paths.package + "/dts/virt.dts"), as: UTF8.self)
        disks = [
            try TestDisk("virtio-blk", at: "0000:00:01.0", in: directory, seed: seed),
            try TestDisk("nvme", at: "0000:00:02.0", in: directory, seed: ~seed),
        ]
    }

    /// Starts a daemon on the same files and sockets as the last.
    func startDaemon() throws -> Daemon {
        let devices = disks.flatMap { ["--device", $0.device] }
        return try Daemon(
            board: board,
            in: directory,
            arguments: ["--vfio-user", directory.file("v")] + devices
        )
    }
}
