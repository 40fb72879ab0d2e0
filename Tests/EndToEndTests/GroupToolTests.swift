// smmuctl's view of the daemon's IOMMU core: groups, domains, devices, traces; and the three ways past translation.

import ControlProtocol
import Glibc
import SMMUClient
import Testing

@Suite("smmuctl and the IOMMU core", .timeLimit(.minutes(20)))
struct GroupToolTests {
    private static let device = "dma-controller@100000"
    private static let function = "0000:01:00.0"

    private typealias Output = (exitCode: Int32, output: String, errors: String)

    private func soc(_ arguments: String...) throws -> Daemon {
        let source = try ChildProcess.run("cat", [Paths.package + "/dts/soc.dts"])
        return try Daemon(board: source.output, arguments: Array(arguments))
    }

    private func smmuctl(_ daemon: Daemon, _ words: String...) throws -> Output {
        try ChildProcess.run(
            Paths.programs + "/smmuctl",
            words,
            environment: ["SMMUD_SOCKET": daemon.controlPath]
        )
    }

    /// The group that a device's row is in; `groups` prints a group's number before its first device.
    private func group(of device: String, _ daemon: Daemon) throws -> GroupInfo? {
        try daemon.control().call(Methods.IOMMUGroups.self, Nothing()).groups.first {
            $0.devices.contains { $0.device.hasSuffix(device) }
        }
    }

    @Test("groups and domains as tables, as sysfs and as JSON")
    func groupsAndDomains() throws {
        let daemon = try soc()
        let groups = try smmuctl(daemon, "groups")
        #expect(groups.exitCode == 0, "\(groups.errors)")
        #expect(groups.output.hasPrefix("GROUP  TYPE  DOMAIN  DEVICE"))
        #expect(groups.output.contains(Self.device))
        let number = try #require(try group(of: Self.device, daemon)).group
        let sysfs = try smmuctl(daemon, "groups", "--sysfs")
        #expect(sysfs.output.contains("/sys/kernel/iommu_groups/\(number)/type: DMA\n"))
        #expect(
            sysfs.output.contains(
                "/sys/class/iommu/smmu3.0x000000002b400000/devices/100000.dma-controller -> "
            )
        )
        #expect(try smmuctl(daemon, "map", Self.device, "64K", "--iova", "0x10000").exitCode == 0)
        let domains = try smmuctl(daemon, "domains")
        #expect(domains.exitCode == 0, "\(domains.errors)")
        let row = try #require(
            domains.output.split(separator: "\n").first { $0.contains("of group \(number) ") }
        )
        #expect(row.contains("64 KiB") || row.contains("64K"), "\(row)")
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("every command of the IOMMU core can print JSON")
    func json() throws {
        let daemon = try soc()
        let commands: [[String]] = [
            ["groups"], ["domains"], ["domains", "make", "shared", "--smmu", "0"], ["type", "0"],
            ["attach", Self.device, "shared"], ["attach", Self.device, "dma"], ["domains", "free", "shared"],
            ["device", "bind", Self.device], ["device", "unbind", Self.device],
            ["device", "remove", Self.device],
            ["device", "add", Self.device], ["dmesg"], ["trace", "--smmu", "0"], ["trace", "--counts"],
            ["strict-lazy", Self.device, "--buffers", "4"], ["alloc", Self.device, "64K"],
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

    @Test("a domain with a name is made, shared by two devices, kept while it is used, and freed")
    func sharedDomain() throws {
        let daemon = try Daemon(board: Self.twoDevices, arguments: [])
        #expect(try smmuctl(daemon, "domains", "make", "shared").exitCode == 0)
        for device in ["a000000", "b000000"] {
            let attached = try smmuctl(daemon, "attach", "dma@\(device)", "shared")
            #expect(attached.output == "/dma@\(device) is in the domain shared\n", "\(attached.errors)")
        }
        #expect(try smmuctl(daemon, "map", "dma@a000000", "4K", "--iova", "0x7000").exitCode == 0)
        #expect(try smmuctl(daemon, "dma", "write", "dma@b000000", "0x7000", "--text", "both").exitCode == 0)
        #expect(try smmuctl(daemon, "dma", "read", "dma@a000000", "0x7000", "4", "--raw").output == "both")
        let refused = try smmuctl(daemon, "domains", "free", "shared")
        #expect(refused.exitCode == 1)
        #expect(refused.errors.contains("EBUSY"))
        for device in ["a000000", "b000000"] {
            #expect(try smmuctl(daemon, "attach", "dma@\(device)", "dma").exitCode == 0)
        }
        #expect(try smmuctl(daemon, "dma", "read", "dma@b000000", "0x7000", "4").exitCode == 3)
        #expect(try smmuctl(daemon, "domains", "free", "shared").exitCode == 0)
        #expect(try smmuctl(daemon, "attach", "dma@a000000", "shared").exitCode == 1)
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("coherent memory is allocated, reached, shown and freed")
    func coherentMemory() throws {
        let daemon = try Daemon(arguments: [])
        let made = try smmuctl(daemon, "alloc", TestBoard.device, "16K")
        #expect(made.exitCode == 0, "\(made.errors)")
        let mappings = try daemon.control().call(Methods.IOMMUMappings.self, .init()).mappings
        let iova = try #require(mappings.first).iova.description
        #expect(made.output.contains("at IOVA \(iova)\n"))
        #expect(try smmuctl(daemon, "dma", "write", TestBoard.device, iova, "--text", "shared").exitCode == 0)
        #expect(try smmuctl(daemon, "free", TestBoard.device, iova).exitCode == 0)
        #expect(try smmuctl(daemon, "dma", "read", TestBoard.device, iova, "4").exitCode == 3)
        #expect(try smmuctl(daemon, "free", TestBoard.device, iova).exitCode == 1)
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("type: changes while it runs, and the kernel's refusals")
    func types() throws {
        let daemon = try Daemon(arguments: [])
        #expect(try smmuctl(daemon, "type", "0").output == "DMA\n")
        #expect(try smmuctl(daemon, "device", "bind", TestBoard.device, "--driver", "dmatest").exitCode == 0)
        #expect(try smmuctl(daemon, "type", "0", "DMA-FQ").output == "DMA-FQ\n")
        let refused = try smmuctl(daemon, "type", "0", "identity")
        #expect(refused.exitCode == 1)
        #expect(refused.errors.contains("EPERM"))
        #expect(try smmuctl(daemon, "groups").output.contains("dmatest"))
        #expect(try smmuctl(daemon, "device", "unbind", TestBoard.device).exitCode == 0)
        #expect(try smmuctl(daemon, "type", "0", "identity").output == "identity\n")
        #expect(try smmuctl(daemon, "type", "0", "lazy").exitCode == 1)
        #expect(try smmuctl(daemon, "type").exitCode == 64)
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("a device is unplugged and comes back; the log tells it as the kernel does")
    func hotPlugAndLog() throws {
        let daemon = try Daemon(arguments: [])
        #expect(try smmuctl(daemon, "device", "remove", TestBoard.device).exitCode == 0)
        #expect(try smmuctl(daemon, "groups").output == "no groups\n")
        #expect(try smmuctl(daemon, "map", TestBoard.device, "4K").exitCode == 1)
        #expect(try smmuctl(daemon, "dma", "read", TestBoard.device, "0x80000000", "4").exitCode == 3)
        #expect(
            try smmuctl(daemon, "device", "add", TestBoard.device).output.contains("in group 1, no driver")
        )
        let log = try smmuctl(daemon, "dmesg").output.split(separator: "\n").map(String.init)
        for text in [
            "] iommu: Default domain type: Translated", "] arm-smmu-v3 9050000.iommu: ias ",
            "] platform a000000.dma: Adding to iommu group 0",
            "] platform a000000.dma: Removing from iommu group 0",
            "] platform a000000.dma: Adding to iommu group 1",
        ] {
            #expect(log.contains { $0.contains(text) }, "\(text)")
        }
        #expect(log.allSatisfy { $0.hasPrefix("[    ") })
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("trace shows an unmap's invalidation and its CMD_SYNC, and counts them")
    func trace() throws {
        let daemon = try Daemon(arguments: [])
        #expect(try smmuctl(daemon, "map", TestBoard.device, "4K", "--iova", "0x10000").exitCode == 0)
        func syncs() throws -> UInt64 {
            let counts = try daemon.control().call(Methods.DriverCounts.self, .init()).smmus
            return try #require(counts.first?.commands.first { $0.name == "CMD_SYNC" }).count
        }
        let before = try syncs()
        #expect(try smmuctl(daemon, "unmap", TestBoard.device, "0x10000").exitCode == 0)
        #expect(try syncs() > before)
        let lines = try smmuctl(daemon, "trace", "--limit", "8").output.split(separator: "\n").map(
            String.init
        )
        #expect(lines.last?.contains("CMD_SYNC") == true)
        #expect(lines.contains { $0.contains("CMD_TLBI_NH_VA") && $0.contains("Addr=0x10000") }, "\(lines)")
        let counts = try smmuctl(daemon, "trace", "--counts")
        #expect(counts.output.hasPrefix(TestBoard.smmu + "\n"))
        #expect(counts.output.contains("CMD_TLBI_NH_VA"))
        #expect(try smmuctl(daemon, "trace", "--counts", "--follow").exitCode == 64)
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("the log and the commands can be followed while they happen")
    func following() throws {
        let daemon = try Daemon(arguments: [])
        for (words, wanted) in [
            (["dmesg", "--follow"], "iommu group"), (["trace", "--follow", "--smmu", "0"], "CMD_SYNC"),
        ] {
            let follower = try ChildProcess(
                Paths.programs + "/smmuctl",
                words + ["--json"],
                environment: ["SMMUD_SOCKET": daemon.controlPath]
            )
            // Repeated until the follower has subscribed and tells of one.
            let teller = try ChildProcess(
                "sh",
                [
                    "-c",
                    "while :; do '\(Paths.programs)/smmuctl' --socket '\(daemon.controlPath)' device remove "
                        + "\(TestBoard.device); '\(Paths.programs)/smmuctl' --socket '\(daemon.controlPath)' "
                        + "device add \(TestBoard.device); done",
                ]
            )
            var text = ""
            while !text.contains(wanted), let line = try follower.nextLine() { text += line }
            #expect(text.contains(wanted), "\(words)")
            teller.signal(SIGKILL)
            follower.signal(SIGTERM)
        }
        #expect(try daemon.serves())
    }

    @Test("strict beside lazy: TLBI and CMD_SYNC for each unmap, or one flush that closes a window")
    func strictLazy() throws {
        let daemon = try Daemon(arguments: [])
        let result = try smmuctl(daemon, "strict-lazy", TestBoard.device, "--buffers", "32")
        #expect(result.exitCode == 0, "\(result.errors)")
        #expect(result.output.contains("STRICT (DMA)"))
        #expect(result.output.contains("CMD_TLBI_NH_ASID, flush"))
        let numbers = try daemon.control().call(
            Methods.IOMMUCompare.self,
            .init(device: TestBoard.device, buffers: 32)
        )
        #expect(numbers.strict.hits == 0)
        #expect(numbers.strict.fault == "F_TRANSLATION")
        #expect(numbers.strict.total > numbers.lazy.total)
        #expect(numbers.lazy.fault == "F_TRANSLATION")
        #expect(try smmuctl(daemon, "strict-lazy", TestBoard.device, "--buffers", "0").exitCode == 1)
        #expect(try daemon.stop().exitCode == 0)
    }

    // MARK: The three ways past translation

    private static let twoDevices = TestBoard.source.replacing(
        "dma@a000000 {",
        with: """
            dma@b000000 { compatible = "smmud,test-dma"; reg = <0 0x0b000000 0 0x1000>; iommus = <&smmu 0x50>; };
            plain@c000000 { compatible = "smmud,test-dma"; reg = <0 0x0c000000 0 0x1000>; };
            dma@a000000 {
            """
    )

    @Test("iommu.passthrough=1: groups are of type identity, and DMA reaches physical memory")
    func passthrough() throws {
        let daemon = try Daemon(arguments: ["--append", "iommu.passthrough=1"])
        #expect(try group(of: TestBoard.device, daemon)?.type == "identity")
        #expect(try group(of: TestBoard.device, daemon)?.domain == "identity")
        let row = try smmuctl(daemon, "domains").output.split(separator: "\n").last
        #expect(row?.contains("identity") == true)
        #expect(
            try smmuctl(daemon, "dma", "write", TestBoard.device, "0x80001000", "--text", "plain").exitCode
                == 0
        )
        #expect(try daemon.control().readMemory(5, at: 0x8000_1000) == Array("plain".utf8))
        #expect(
            try smmuctl(daemon, "dmesg").output.contains(
                "Default domain type: Passthrough (set via kernel command line)"
            )
        )
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("on an SMMU that has stage 2 alone domains have VMIDs, and DMA is translated until the unmap")
    func stage2() throws {
        let daemon = try Daemon(arguments: ["--smmu", "stage2"])
        let domains = try daemon.control().call(Methods.IOMMUDomains.self, Nothing()).domains
        #expect(domains.first?.vmid == 1 && domains.first?.asid == nil)
        let mapping = try smmuctl(daemon, "map", TestBoard.device, "4K", "--iova", "0x10000")
        #expect(mapping.exitCode == 0, "\(mapping.errors)")
        let written = try smmuctl(daemon, "dma", "write", TestBoard.device, "0x10010", "--text", "two")
        #expect(written.exitCode == 0, "\(written.errors)")
        #expect(try smmuctl(daemon, "dma", "read", TestBoard.device, "0x10010", "3", "--raw").output == "two")
        #expect(try smmuctl(daemon, "unmap", TestBoard.device, "0x10000").exitCode == 0)
        #expect(try smmuctl(daemon, "dma", "read", TestBoard.device, "0x10010", "3").exitCode == 3)
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test(
        "arm-smmu-v3.disable_bypass: a stream that no endpoint has is aborted, or with 0 bypasses",
        arguments: [("", 3 as Int32), ("arm-smmu-v3.disable_bypass=0", 0)]
    )
    func disableBypass(_ parameters: String, _ exitCode: Int32) throws {
        let daemon = try Daemon(arguments: ["--append", parameters])
        try daemon.control().writeMemory([1, 2, 3, 4], at: 0x8000_1000)
        // 0x44: in the table's leaf that 0x42 has, so the entry is there, preset.
        let read = try smmuctl(daemon, "dma", "read", "sid:0x44", "0x80001000", "4", "--raw")
        #expect(read.exitCode == exitCode, "\(read.errors)")
        #expect(try daemon.control().call(Methods.IOMMUGroups.self, Nothing()).groups.count == 1)
        // The endpoint's own stream is translated either way.
        #expect(try smmuctl(daemon, "dma", "read", TestBoard.device, "0x80001000", "4").exitCode == 3)
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test("without an SMMU before it a device has no group, and its DMA reaches physical memory")
    func noSMMU() throws {
        let daemon = try Daemon(board: Self.twoDevices, arguments: [])
        try daemon.control().writeMemory(Array("plain".utf8), at: 0x8000_1000)
        #expect(
            try smmuctl(daemon, "dma", "read", "plain@c000000", "0x80001000", "5", "--raw").output == "plain"
        )
        #expect(try group(of: "plain@c000000", daemon) == nil)
        #expect(try smmuctl(daemon, "attach", "plain@c000000", "identity").exitCode == 1)
        #expect(try daemon.stop().exitCode == 0)

        let bare = try Daemon(board: Self.withoutSMMU, arguments: [])
        try bare.control().writeMemory(Array("plain".utf8), at: 0x8000_1000)
        #expect(try smmuctl(bare, "groups").output == "no groups\n")
        #expect(try smmuctl(bare, "domains").output == "no domains\n")
        #expect(try smmuctl(bare, "dma", "read", "dma@a000000", "0x80001000", "5", "--raw").output == "plain")
        #expect(try bare.stop().exitCode == 0)
    }

    private static let withoutSMMU = """
        /dts-v1/;
        / {
            compatible = "smmud,end-to-end";
            #address-cells = <2>;
            #size-cells = <2>;
            memory@80000000 { device_type = "memory"; reg = <0 0x80000000 0 0x10000000>; };
            dma@a000000 { compatible = "smmud,test-dma"; reg = <0 0x0a000000 0 0x1000>; };
        };
        """
}
