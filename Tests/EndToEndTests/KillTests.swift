// Clients and daemons that are killed at any point: the other side goes on or says why not, and no flush is forgotten.

import DiskJournal
import Glibc
import SeededRandomness
import Testing

/// What a moment is chosen by.
private struct Moment: CustomStringConvertible {
    /// After so many reports; the first is "ready".
    var reportCount: Int
    var microseconds: UInt32

    init(_ generator: inout SplitMix) {
        reportCount = Int.random(in: 0...4, using: &generator)
        // Before the first report, any point of connecting and bringing the disk up; else of a write and its flush.
        microseconds = UInt32.random(in: 0..<(reportCount == 0 ? 60_000 : 3000), using: &generator)
    }

    func wait(for writer: DiskUser) throws {
        try writer.waitForReports(reportCount)
        usleep(microseconds)
    }

    var description: String { "\(microseconds) us after report \(reportCount)" }
}

@Suite(.timeLimit(.minutes(20)), .serialized)
struct KillTests {
    private static let clientRoundCount = 30
    private static let daemonRoundCount = 40
    private static let truncationRoundCount = 8

    /// What the daemon has of the system.
    private func resources(of daemon: Daemon) -> (descriptors: Int, threads: Int) {
        let process = "/proc/\(daemon.process.processID)"
        return (entryCount(of: process + "/fd"), entryCount(of: process + "/task"))
    }

    /// Waits until the daemon has no more than it had: it lets go of a client after the client has ended.
    private func waitUntil(_ daemon: Daemon, hasAtMost allowed: (descriptors: Int, threads: Int)) -> Bool {
        for _ in 0..<ChildProcess.patienceMilliseconds {
            let current = resources(of: daemon)
            if current.descriptors <= allowed.descriptors, current.threads <= allowed.threads { return true }
            usleep(1000)
        }
        return false
    }

    /// Runs rounds in which a client of one disk comes to harm, while a client of the other disk goes on.
    private func clientRounds(
        _ count: Int,
        victim index: Int,
        seed: UInt64,
        _ round: (_ disk: TestDisk, _ generator: inout SplitMix) throws -> [String]
    ) throws {
        var generator = SplitMix(seed: seed)
        let machine = try MachineWithDisks(seed: seed)
        let daemon = try machine.startDaemon()
        let disk = machine.disks[index]
        let other = machine.disks[1 - index]
        let bystander = try other.startWriter(["--pause", "5"])
        try bystander.waitForReports(2)
        // The first client of the disk: what is made once is made by it.
        #expect(try disk.complaintsOfNextClient() == [])
        let allowed = resources(of: daemon)
        for number in 0..<count {
            let place = "seed \(seed), round \(number)"
            let complaints = try round(disk, &generator)
            #expect(complaints == [], "\(place)")
            try bystander.waitForProgress()
        }
        #expect(waitUntil(daemon, hasAtMost: allowed), "\(allowed) became \(resources(of: daemon))")
        #expect(try daemon.serves())
        try bystander.kill()
        #expect(try other.complaintsOfNextClient() == [])
        #expect(try other.complaints(after: bystander) == [])
        let result = try daemon.stop()
        #expect(result.exitCode == 0)
        #expect(result.errors == "")
    }

    @Test(arguments: [0, 1])
    func aClientThatIsKilledLeavesItsDiskToTheNextAndHarmsNobody(_ index: Int) throws {
        let seed: UInt64 = 0x6b69_6c6c_0000 + UInt64(index)
        try clientRounds(Self.clientRoundCount, victim: index, seed: seed) { disk, generator in
            let byMessage = Bool.random(using: &generator)
            let moment = Moment(&generator)
            let victim = try disk.startWriter(byMessage ? ["--messages"] : [])
            try moment.wait(for: victim)
            try victim.kill()
            // The next client's reset ends what the last had begun; then nobody writes.
            let complaints = try disk.complaintsOfNextClient() + disk.complaints(after: victim)
            return complaints.map { "\($0) (by message: \(byMessage), \(moment))" }
        }
    }

    @Test(arguments: [0, 1])
    func aClientThatTruncatesItsMemoryUnderDMAHarmsItselfOnly(_ index: Int) throws {
        let seed: UInt64 = 0x7472_756e_0000 + UInt64(index)
        try clientRounds(Self.truncationRoundCount, victim: index, seed: seed) { disk, generator in
            let write = UInt64.random(in: 0..<12, using: &generator)
            let victim = try disk.startWriter(["--truncate", "\(write)"])
            let result = try victim.end()
            var complaints: [String] = []
            if result.exitCode != 1 || !result.errors.contains("was truncated") {
                complaints.append("the client ended with \(result)")
            }
            complaints += try disk.complaintsOfNextClient()
            complaints += try disk.complaints(after: victim, tookMemoryAway: true)
            return complaints.map { "\($0) (from write \(write) on)" }
        }
    }

    @Test func clientsOfAKilledDaemonSaySoAndWhatWasFlushedIsThereForTheNext() throws {
        let seed: UInt64 = 0x6461_656d_6f6e
        var generator = SplitMix(seed: seed)
        let machine = try MachineWithDisks(seed: seed)
        for number in 0..<Self.daemonRoundCount {
            let daemon = try machine.startDaemon()
            let writers = try machine.disks.map {
                try $0.startWriter(Bool.random(using: &generator) ? ["--messages"] : [])
            }
            let moment = Moment(&generator)
            let place: Comment = "seed \(seed), round \(number), \(moment)"
            try moment.wait(for: writers[number % 2])
            #expect(try daemon.stop(SIGKILL).exitCode == 128 + SIGKILL)
            for (disk, writer) in zip(machine.disks, writers) {
                let (exitCode, errors) = try writer.end()
                #expect(exitCode == 1, place)
                let isClear =
                    errors.contains("the connection to the server has ended: ")
                    || errors.contains("cannot connect to \(disk.socket): ")
                #expect(isClear && errors.contains(disk.socket), "\(place): \(errors)")
                #expect(try disk.complaints(after: writer) == [], place)
            }
        }
        let daemon = try machine.startDaemon()
        for disk in machine.disks { #expect(try disk.complaintsOfNextClient() == []) }
        #expect(try daemon.stop().exitCode == 0)
    }
}
