// `smmud --iort`: what it prints, what it refuses, and a client's DMA on a board without a device tree.

import ControlProtocol
import Glibc
import IORTFixtures
import SMMUClient
import Testing

@Suite(.timeLimit(.minutes(20)))
struct IORTTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func table(_ name: String) throws -> String {
        try directory.write(IORTFixture(name).bytes, to: name + ".aml")
    }

    @Test func anIORTAloneIsPrintedLikeATree() throws {
        let path = try table("everything")
        let arguments = ["--check", "--iort", path, "--ram", "0x80000000,256M"]
        let result = try ChildProcess.run(Paths.smmud, arguments)
        #expect(result.exitCode == 0)
        #expect(result.errors == "")
        for expected in [
            "SMMUD FIXTURE", "/iort/smmuv3@2b400000", "SPI 74 (INTID 106)", "/iort/_SB_/DMA0", "256 MiB",
            "/iort/rmr@88300000", "/iort/pmcg@2b420000",
        ] {
            #expect(result.output.contains(expected), "\(expected)")
        }
        let json = try ChildProcess.run(Paths.smmud, arguments + ["--json"])
        #expect(json.exitCode == 0)
        #expect(json.output.contains(#""path" : "/iort/smmuv3@2b400000""#))
    }

    @Test func ramByDefaultIsWarnedOf() throws {
        let result = try ChildProcess.run(Paths.smmud, ["--check", "--iort", try table("altra")])
        #expect(result.exitCode == 0)
        #expect(
            result.errors
                == "smmud: warning: --ram: missing, and an IORT says nothing of RAM: 0x40000000-0x4fffffff is RAM; "
                + "--ram ADDRESS,SIZE puts it elsewhere\n"
        )
        let lent = try ChildProcess.run(
            Paths.smmud,
            ["--check", "--iort", try table("altra"), "--memory", "client", "--driver", "none"]
        )
        #expect(lent.exitCode == 0)
        #expect(lent.errors == "")
    }

    @Test func whatIsWrongHasTheFileAndTheNode() throws {
        let broken = try IORTFixture("qemu-virt").with(IORTChange(0x58, 0x1234))
        let path = try directory.write(broken.bytes, to: "broken.aml")
        let result = try ChildProcess.run(Paths.smmud, ["--check", "--iort", path])
        #expect(result.exitCode == 65)
        #expect(
            result.errors
                == "smmud: \(path): IORT node 0x48 (SMMUv3): Base Address: is 0x1234; the registers stand at a "
                + "multiple of 64 KiB, not at 0, and within 52 bits\n"
        )
        let swapped = try ChildProcess.run(Paths.smmud, ["--check", path])
        #expect(swapped.exitCode == 65)
        #expect(swapped.errors == "smmud: \(path): not a device tree blob but an IORT; give it with --iort\n")
        let missing = try ChildProcess.run(Paths.smmud, ["--check", "--iort", directory.file("none")])
        #expect(missing.exitCode == 66)
    }

    @Test(arguments: [
        [], ["--ram", "0x80000000,1G"], ["--iort", "x", "--ram", "0x80000000"],
        ["--iort", "x", "--ram", "0x80000000,0"], ["--iort", "x", "--ram", "0xffffffffffffffff,16T"],
        ["--iort", "x", "--ram", "0,99999999999T"],
    ])
    func optionsThatCannotBeAreRefused(_ arguments: [String]) throws {
        #expect(try ChildProcess.run(Paths.smmud, ["--check"] + arguments).exitCode == 64)
    }

    @Test func dmaOfAFunctionIsTranslatedOnABoardByAnIORTAlone() throws {
        let process = try ChildProcess(
            Paths.smmud,
            [
                "--iort", try table("qemu-virt"), "--ram", "0x80000000,256M", "--control",
                directory.file("control.sock"), "--dma", directory.file("dma.sock"),
            ]
        )
        _ = try #require(try process.nextLine())
        let control = try ControlClient(path: directory.file("control.sock"))
        let dma = try DMAClient(path: directory.file("dma.sock"))
        control.timeoutMilliseconds = Int(ChildProcess.patienceMilliseconds)
        dma.timeoutMilliseconds = Int(ChildProcess.patienceMilliseconds)
        let mapping = try control.call(
            Methods.IOMMUMap.self,
            .init(device: "0000:00:01.0", iova: 0x10000, length: 0x1000)
        )
        let endpoint = try dma.open("0000:00:01.0")
        #expect(endpoint.stream == 8)
        let written = try dma.write([1, 2, 3, 4], endpoint.requester, at: 0x10020)
        #expect(written.status == .ok)
        #expect(try control.readMemory(4, at: mapping.address.value + 0x20) == [1, 2, 3, 4])
        #expect(try dma.read(endpoint.requester, at: 0x20000, count: 4).0.status == .fault)
        process.signal(SIGTERM)
        #expect(try process.wait().exitCode == 0)
    }
}
