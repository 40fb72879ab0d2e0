// smmuctl and the Python client against a daemon whose own driver runs dts/soc.dts.

import Glibc
import Testing

@Suite("The tools, on dts/soc.dts with the daemon's own driver", .timeLimit(.minutes(20)))
struct ToolTests {
    private static let device = "dma-controller@100000"
    private static let function = "0000:00:02.0"

    /// A daemon on the board that the README begins with.
    private func start() throws -> Daemon {
        try Daemon(board: try sourceOfSoC(), arguments: [])
    }

    private func sourceOfSoC() throws -> String {
        let result = try ChildProcess.run("cat", [Paths.package + "/dts/soc.dts"])
        return result.output
    }

    /// Runs smmuctl; its exit code and what it printed.
    private func smmuctl(_ daemon: Daemon, _ words: String...) throws -> (
        exitCode: Int32, output: String, errors: String
    ) {
        try ChildProcess.run(
            Paths.programs + "/smmuctl",
            words,
            environment: ["SMMUD_SOCKET": daemon.controlPath]
        )
    }

    @Test("map, DMA, explain, unmap, fault, event and interrupt, as the demo tells it")
    func lifeOfABuffer() throws {
        let daemon = try start()
        let board = try smmuctl(daemon, "board")
        #expect(board.exitCode == 0)
        #expect(board.output.contains("/iommu@2b400000"))
        #expect(board.output.contains("0000:01:00.0"))
        for (device, iova) in [(Self.device, "0x10000"), (Self.function, "0x7f0000000")] {
            let map = try smmuctl(daemon, "map", device, "64K", "--iova", iova)
            #expect(map.exitCode == 0, "\(map.errors)")
            #expect(try smmuctl(daemon, "dma", "write", device, iova, "--text", "some bytes").exitCode == 0)
            let read = try smmuctl(daemon, "dma", "read", device, iova, "10", "--raw")
            #expect(read.output == "some bytes")
            let explained = try smmuctl(daemon, "explain", device, iova)
            #expect(explained.exitCode == 0)
            for part in [
                "STE of StreamID", "CD (no SubstreamID)", "stage 1 level 3 descriptor", "=  physical",
            ] {
                #expect(explained.output.contains(part), "\(part)")
            }
            let unmap = try smmuctl(daemon, "unmap", device, iova)
            #expect(unmap.exitCode == 0, "\(unmap.errors)")
            let fault = try smmuctl(daemon, "dma", "read", device, iova, "10")
            #expect(fault.exitCode == 3, "a DMA that faults has an exit code of its own")
            #expect((fault.output + fault.errors).contains("F_TRANSLATION"))
        }
        let events = try smmuctl(daemon, "events")
        // StreamIDs 0x10 and 0x10010; reads (RnW, bit 99) of class IN (105:104 = 0b10).
        #expect(events.output.contains("0x00000010_00000010 0x00000208_00000000 0x00000000_00010000"))
        #expect(events.output.contains("0x00010010_00000010 0x00000208_00000000 0x00000007_f0000000"))
        let interrupts = try smmuctl(daemon, "irq", "--json")
        #expect(interrupts.output.contains("\"label\" : \"eventq\""))
        #expect(interrupts.output.contains("\"pulses\" : 1"))
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("exit codes tell a script what happened: 1 for a refusal, 2 without a daemon, 64 for wrong usage")
    func exitCodes() throws {
        let daemon = try start()
        #expect(try smmuctl(daemon, "map", "nobody@0", "4K").exitCode == 1)
        #expect(try smmuctl(daemon, "map", Self.device, "4K", "--iova", "0x10001").exitCode == 1)
        #expect(try smmuctl(daemon, "map").exitCode == 64)
        let alone = try ChildProcess.run(
            Paths.programs + "/smmuctl",
            ["--socket", daemon.directory.file("nothing.sock"), "board"]
        )
        #expect(alone.exitCode == 2)
        #expect(try smmuctl(daemon, "regs").exitCode == 1, "two SMMUs: which is meant must be said")
        #expect(try smmuctl(daemon, "shutdown").exitCode == 0)
        #expect(try daemon.process.wait().exitCode == 0)
    }

    @Test("every command that prints can print JSON")
    func json() throws {
        let daemon = try start()
        #expect(try smmuctl(daemon, "map", Self.device, "4K", "--iova", "0x10000", "--json").exitCode == 0)
        let commands: [[String]] = [
            ["board"], ["mappings"], ["events"], ["irq"], ["stats"], ["log"], ["version"],
            ["translate", Self.device, "0x10000"], ["explain", Self.device, "0x10000"],
            ["dma", "read", Self.device, "0x10000", "16"], ["mem", "read", "0x80000000", "16"],
            ["mmio", "read", "0x2b400000"], ["regs", "--smmu", "0"], ["stat", "--for", "0"],
        ]
        for words in commands {
            let result = try ChildProcess.run(
                Paths.programs + "/smmuctl",
                words + ["--json"],
                environment: ["SMMUD_SOCKET": daemon.controlPath]
            )
            #expect(result.exitCode == 0, "\(words): \(result.errors)")
            let parsed = try ChildProcess.run(
                "python3",
                ["-c", "import json, sys; json.loads(sys.argv[1])", result.output]
            )
            #expect(parsed.exitCode == 0, "\(words): \(result.output.prefix(200))")
        }
    }

    @Test("stat counts for a command, of one StreamID, and hands the command's exit code on")
    func countingACommand() throws {
        let daemon = try start()
        #expect(try smmuctl(daemon, "map", Self.device, "64K", "--iova", "0x10000").exitCode == 0)
        let program = Paths.programs + "/smmuctl"
        func count(_ stream: String, _ command: String...) throws -> (
            exitCode: Int32, output: String, errors: String
        ) {
            try ChildProcess.run(
                program,
                ["stat", "--pmcg", "pmu@2b420000", "-e", "transaction", "-e", "tlb_miss", "--stream", stream]
                    + ["--", program] + command,
                environment: ["SMMUD_SOCKET": daemon.controlPath]
            )
        }
        // Ten bytes before a page's end and six behind it: two translations.
        let counted = try count("0x10", "dma", "write", Self.device, "0x10ff6", "--text", "sixteen letters.")
        #expect(counted.exitCode == 0, "\(counted.errors)")
        #expect(
            counted.output.hasPrefix(
                """
                wrote 16 bytes
                /pmu@2b420000  of /iommu@2b400000  StreamID 0x10
                  COUNT  EVENT
                      2  transaction
                      2  tlb_miss     100.0% of transactions

                """
            ),
            "\(counted.output)"
        )
        let others = try count("0x11", "dma", "read", Self.device, "0x10000", "16", "--raw")
        #expect(others.output.contains("      0  transaction\n"), "\(others.output)")
        #expect(try count("0x10", "dma", "read", Self.device, "0x666000", "4").exitCode == 3)
    }

    @Test("stat counts until a signal, and leaves the counters to whoever counts with them")
    func countingUntilASignal() throws {
        let daemon = try start()
        let stat = try ChildProcess(
            Paths.programs + "/smmuctl",
            ["stat", "--pmcg", "1", "-e", "transaction", "-e", "0"],
            environment: ["SMMUD_SOCKET": daemon.controlPath]
        )
        // SMMU_PMCG_CR of the group of the PCIe host's SMMU.
        while try smmuctl(daemon, "mmio", "read", "0x2b620e04").output != "0x00000001\n" { sched_yield() }
        let refused = try smmuctl(daemon, "stat", "--for", "0")
        #expect(refused.exitCode == 1)
        #expect(refused.errors.contains("/pmu@2b620000 is in use"))
        #expect(try smmuctl(daemon, "map", Self.function, "4K", "--iova", "0x10000").exitCode == 0)
        for _ in 0..<3 {
            #expect(try smmuctl(daemon, "dma", "read", Self.function, "0x10000", "4").exitCode == 0)
        }
        stat.signal(SIGINT)
        let result = try stat.wait()
        #expect(result.exitCode == 0, "\(result.errors)")
        #expect(result.output.hasPrefix("/pmu@2b620000  of /iommu@2b600000\n"), "\(result.output)")
        #expect(result.output.contains("  3  transaction\n"), "\(result.output)")
        #expect(try smmuctl(daemon, "mmio", "read", "0x2b620e04").output == "0x00000000\n")
    }

    @Test("the Python client writes and reads by DMA, inline and in memory that it shares")
    func pythonClient() throws {
        let daemon = try start()
        #expect(try smmuctl(daemon, "map", Self.device, "64K", "--iova", "0x10000").exitCode == 0)
        func client(_ words: String...) throws -> (exitCode: Int32, output: String, errors: String) {
            try ChildProcess.run(
                "python3",
                [Paths.package + "/examples/dma_client.py", "--socket", daemon.dmaPath] + Array(words)
            )
        }
        let write = try client("write", Self.device, "0x10ffc", "from python")
        #expect(write.exitCode == 0, "\(write.errors)")
        #expect(try client("read", Self.device, "0x10ffc", "11").output.contains("from python"))
        #expect(try client("--shared", "write", "sid:0:0x11", "0x12000", "in shared memory").exitCode == 0)
        #expect(
            try client("--shared", "read", Self.device, "0x12000", "16").output.contains("in shared memory")
        )
        let fault = try client("read", Self.device, "0x900000", "4")
        #expect(fault.exitCode == 3)
        #expect((fault.output + fault.errors).contains("0x10"))
    }

    @Test("events and interrupts can be followed while they happen")
    func following() throws {
        let daemon = try start()
        let events = try ChildProcess(
            Paths.programs + "/smmuctl",
            ["events", "--follow", "--json"],
            environment: ["SMMUD_SOCKET": daemon.controlPath]
        )
        // It lists what there was and then waits: a fault is repeated until it has subscribed and tells of one.
        let teller = try ChildProcess(
            "sh",
            [
                "-c",
                "while :; do '\(Paths.programs)/smmuctl' --socket '\(daemon.controlPath)' "
                    + "dma read \(Self.device) 0x666000 4; done",
            ]
        )
        var text = ""
        while !text.contains("0x666000"), let line = try events.nextLine() { text += line }
        #expect(text.contains("F_TRANSLATION"))
        teller.signal(SIGKILL)
        events.signal(SIGTERM)
        #expect(try daemon.serves())
    }
}
