// Whether a thread that waits for messages polls, and that it sleeps all the same.

import Foundation
import HostIO
import Testing
import VFIOUserServer

@Suite("Polling before sleeping")
struct PollingTests {
    private static let limit: Int64 = 100_000

    /// After as many short waits as make polling worthwhile.
    private func busy() -> WaitPolling {
        var polling = WaitPolling(limit: Self.limit)
        for _ in 0..<16 { polling.ended(after: 1000) }
        return polling
    }

    @Test("Nobody polls before some waits were short, and nobody with a limit of 0")
    func beginning() {
        var polling = WaitPolling(limit: Self.limit)
        #expect(!polling.isWorthwhile)
        for _ in 0..<3 { polling.ended(after: Self.limit) }
        #expect(!polling.isWorthwhile)
        polling.ended(after: Self.limit)
        #expect(polling.isWorthwhile)
        var never = WaitPolling(limit: 0)
        for _ in 0..<16 { never.ended(after: 0) }
        #expect(!never.isWorthwhile)
    }

    @Test("Bursts of two are worth it, single messages are not")
    func bursts() {
        var polling = WaitPolling(limit: Self.limit)
        for _ in 0..<16 {
            polling.ended(after: 1000)
            polling.ended(after: 1_000_000)
        }
        #expect(polling.isWorthwhile)
        for _ in 0..<8 { polling.ended(after: Self.limit + 1) }
        #expect(!polling.isWorthwhile)
        for _ in 0..<8 {
            polling.ended(after: 1_000_000)
            #expect(!polling.isWorthwhile)
        }
    }

    @Test("A poll ends at its limit")
    func end() {
        var polling = busy()
        let answers = [
            polling.goesOn(since: 5, from: 5, to: 100_004),
            polling.goesOn(since: 5, from: 100_004, to: 100_005),
        ]
        #expect(answers == [true, false])
        // It was not held up: the next wait polls again.
        #expect(polling.isWorthwhile)
    }

    @Test("Who waits for work looks only after short waits, finds it, and gives up at the limit")
    func workWait() {
        var never = WorkWait(limitMicroseconds: 0)
        var wait = WorkWait(limitMicroseconds: 5_000_000)
        for _ in 0..<16 {
            #expect(!never.looks { true })
            never.found()
        }
        var looks = 0
        for _ in 0..<3 {
            #expect(
                !wait.looks {
                    looks += 1
                    return true
                }
            )
            wait.found()
        }
        #expect(looks == 0)
        // On a busy host it may be held up at looking: then the next one is to find it.
        let isFound = (0..<100).contains { _ in
            var wait = WorkWait(limitMicroseconds: 5_000_000)
            for _ in 0..<4 {
                _ = wait.looks { false }
                wait.found()
                // Found once: more of it is no wait.
                wait.found()
            }
            var countdown = 3
            let found = wait.looks {
                countdown -= 1
                return countdown == 0
            }
            return found && countdown == 0
        }
        #expect(isFound)
        var brief = WorkWait(limitMicroseconds: 1000)
        for _ in 0..<64 {
            _ = brief.looks { true }
            brief.found()
        }
        #expect(!brief.looks { false })
    }

    /// How many waits there are without polling after the thread was held up.
    private func pause(_ polling: inout WaitPolling) -> Int {
        let goesOn = polling.goesOn(since: 0, from: 0, to: 200_001)
        #expect(!goesOn)
        var count = 0
        while !polling.isWorthwhile, count < 10_000 {
            polling.ended(after: 1000)
            count += 1
        }
        return count
    }

    @Test("Who was held up while polling stops for a while, each time for longer, and forgets it in the end")
    func heldUp() {
        var polling = busy()
        #expect([4, 8, 16, 32, 64, 128, 256, 256].allSatisfy { pause(&polling) == $0 })
        for _ in 0..<200 { polling.ended(after: 1000) }
        #expect(pause(&polling) < 32)
    }

    /// The state of the server's thread as the kernel has it: S is asleep, R is running.
    private func state(ofThread name: String) -> Character? {
        for thread in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")) ?? [] {
            guard let text = try? String(contentsOfFile: "/proc/self/task/\(thread)/stat", encoding: .utf8),
                let open = text.firstIndex(of: "("), let close = text.lastIndex(of: ")"),
                text[text.index(after: open)..<close] == name
            else { continue }
            return text[text.index(close, offsetBy: 2)...].first
        }
        return nil
    }

    /// A client whose messages came in a burst, so that the server polls for so long after the last.
    private func client(_ name: String, seconds: Int) throws -> (TestServer, TestClient) {
        let server = try TestServer {
            $0.name = name
            $0.pollMicroseconds = seconds * 1_000_000
        }
        let client = try server.greeted()
        for value in UInt8(0)..<32 {
            try #require(
                try client.ask(command(10, access(4, 0x20, 1) + [value])) == success(10, access(4, 0x20, 1))
            )
            try #require(
                try client.ask(command(9, access(4, 0x20, 1))) == success(9, access(4, 0x20, 1) + [value])
            )
        }
        return (server, client)
    }

    @Test("A server that polls takes descriptors, sees its client go, and stops when it is told to")
    func stop() throws {
        let (server, client) = try client("vfio-poll-stop", seconds: 3600)
        // On a busy host it is held up, and sleeps until enough messages have come.
        #expect(
            eventually { (try? client.isAlive()) == true && state(ofThread: "vfio-poll-stop") == "R" }
        )
        let file = try memoryFile()
        #expect(try client.ask(command(2, map(0x10_0000, 0x1000)), descriptors: [file]) == success(2))
        #expect(server.mappings.count == 1)
        client.close()
        // Served only after the first one was seen to have gone.
        let other = try server.greeted()
        for _ in 0..<32 { #expect(try other.isAlive()) }
        server.server.stop()
        #expect(state(ofThread: "vfio-poll-stop") == nil)
    }

    @Test("A server whose client says nothing any more sleeps")
    func idle() throws {
        let (server, client) = try client("vfio-poll-idle", seconds: 1)
        // A second at most, and then for good.
        #expect(eventually { state(ofThread: "vfio-poll-idle") == "S" })
        #expect((0..<200).allSatisfy { _ in state(ofThread: "vfio-poll-idle") == "S" })
        #expect(try client.isAlive())
        withExtendedLifetime(server) {}
    }
}
