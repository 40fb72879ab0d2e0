// The daemon's life: ready, stopped, started again, in the way of another.

import ControlProtocol
import Glibc
import SMMUClient
import Testing

@Suite(.timeLimit(.minutes(20)))
struct StartAndStopTests {
    @Test func aReadyDaemonNamesItsSocketsWhichOnlyItsUserMayUse() throws {
        let daemon = try Daemon()
        #expect(daemon.readyLine == "smmud: ready: control \(daemon.controlPath) dma \(daemon.dmaPath)")
        #expect(mode(of: daemon.controlPath) == S_IFSOCK | 0o600)
        #expect(mode(of: daemon.dmaPath) == S_IFSOCK | 0o600)
        #expect(try daemon.serves())
    }

    @Test func theReadyLineIsJSONForThoseWhoAskForIt() throws {
        let daemon = try Daemon(arguments: ["--driver", "none", "--json"])
        #expect(
            daemon.readyLine == """
                {"control":"\(daemon.controlPath)","dma":"\(daemon.dmaPath)",\
                "processID":\(daemon.process.processID),"ready":true}
                """
        )
    }

    @Test(arguments: [SIGTERM, SIGINT])
    func aSignalStopsItAndItsSocketsAreGone(_ signal: CInt) throws {
        let daemon = try Daemon()
        let control = try daemon.control()
        let dma = try daemon.dma()
        let result = try daemon.stop(signal)
        #expect(result.exitCode == 0)
        #expect(result.errors == "")
        #expect(mode(of: daemon.controlPath) == nil)
        #expect(mode(of: daemon.dmaPath) == nil)
        #expect(throws: ClientError.self) { try control.call(Methods.DaemonVersion.self, Nothing()) }
        #expect(throws: ClientError.self) { try dma.echo([1]) }
    }

    @Test func shutdownOverTheControlSocketIsAnsweredAndStopsIt() throws {
        let daemon = try Daemon()
        #expect(try daemon.control().call(Methods.DaemonShutdown.self, Nothing()) == Nothing())
        #expect(try daemon.process.wait().exitCode == 0)
        #expect(mode(of: daemon.controlPath) == nil)
    }

    @Test func itStopsWhileAClientDoesNotReadItsAnswers() throws {
        let daemon = try Daemon()
        // More answers than a socket holds: the daemon waits in the middle of sending them.
        let client = try RawSocket(daemon.dmaPath)
        client.send(DMARequestEncoder.message(.hello(id: 1)))
        let answer = try client.receive(DMAProtocol.headerByteCount)
        #expect(answer.count == DMAProtocol.headerByteCount)
        let read = DMARequest(.read, id: 2, flags: .direct, stream: 1, iova: TestBoard.memory, count: 1 << 20)
        for _ in 0..<16 { client.send(DMARequestEncoder.message(read)) }
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test func aSecondOneIsRefusedAndTheFirstGoesOn() throws {
        let daemon = try Daemon()
        let second = try ChildProcess.run(
            Paths.smmud,
            [daemon.directory.file("board.dtb"), "--control", daemon.controlPath, "--dma", daemon.dmaPath]
        )
        #expect(second.exitCode == 69)
        #expect(
            second.errors
                == "smmud: \(daemon.controlPath): another process serves this socket; stop it, or give another path\n"
        )
        #expect(try daemon.serves())
    }

    @Test func oneStartedAfterAnotherTakesItsPlaceAtOnce() throws {
        let first = try Daemon()
        try first.stop()
        #expect(try Daemon(in: first.directory).serves())
    }

    @Test func theSocketsOfOneThatWasKilledAreReplaced() throws {
        let first = try Daemon()
        #expect(try first.stop(SIGKILL).exitCode == 128 + SIGKILL)
        #expect(mode(of: first.controlPath) == S_IFSOCK | 0o600)
        #expect(try Daemon(in: first.directory).serves())
    }

    @Test func aFileThatIsNoSocketIsLeftAlone() throws {
        let directory = try TemporaryDirectory()
        let path = try directory.write(Array("precious".utf8), to: "control.sock")
        let board = try directory.compile(TestBoard.source)
        let result = try ChildProcess.run(
            Paths.smmud,
            [board, "--control", path, "--dma", directory.file("dma.sock")]
        )
        #expect(result.exitCode == 73)
        #expect(
            result.errors
                == "smmud: \(path): there is a file that is no socket; remove it, or give another path\n"
        )
        #expect(try contents(of: path) == Array("precious".utf8))
    }

    @Test func aPathThatIsTooLongIsSaidToBe() throws {
        let directory = try TemporaryDirectory()
        let board = try directory.compile(TestBoard.source)
        let path = directory.file(String(repeating: "x", count: 108 - directory.path.utf8.count - 1))
        let result = try ChildProcess.run(
            Paths.smmud,
            [board, "--control", path, "--dma", directory.file("dma.sock")]
        )
        #expect(path.utf8.count == 108)
        #expect(result.exitCode == 73)
        #expect(result.errors == "smmud: \(path): a path of 108 bytes; a Unix socket's has 1 to 107\n")
    }

    @Test func theUsualPlaceIsADirectoryForItsUserAlone() throws {
        // Root's is a fixed one, which may be in use.
        try #require(geteuid() != 0 || mode(of: "/run/smmud") == nil)
        let directory = try TemporaryDirectory()
        let board = try directory.compile(TestBoard.source)
        let process = try ChildProcess(Paths.smmud, [board], environment: ["XDG_RUNTIME_DIR": directory.path])
        let place = geteuid() == 0 ? "/run/smmud" : directory.file("smmud")
        defer { rmdir(place) }
        #expect(try process.nextLine() == "smmud: ready: control \(place)/control.sock dma \(place)/dma.sock")
        #expect(mode(of: place) == S_IFDIR | 0o700)
        process.signal(SIGTERM)
        #expect(try process.wait().exitCode == 0)
    }

    @Test func aBoardThatIsWrongLeavesNoSocketBehind() throws {
        let directory = try TemporaryDirectory()
        let board = try directory.write([0xD0, 0x0D], to: "board.dtb")
        let result = try ChildProcess.run(
            Paths.smmud,
            [board, "--control", directory.file("control.sock"), "--dma", directory.file("dma.sock")]
        )
        #expect(result.exitCode == 65)
        #expect(mode(of: directory.file("control.sock")) == nil)
        #expect(mode(of: directory.file("dma.sock")) == nil)
    }
}
