// `smmud --check`: what it prints of good boards, and what it says of others.

import Glibc
import Testing

@Suite(.timeLimit(.minutes(20)))
struct CheckTests {
    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private func check(_ path: String, _ arguments: String...) throws -> (
        exitCode: Int32, output: String, errors: String
    ) {
        try ChildProcess.run(Paths.smmud, ["--check", path] + arguments)
    }

    @Test func aBoardIsPrintedForAPerson() throws {
        let result = try check(try directory.compile(TestBoard.source))
        #expect(result.exitCode == 0)
        #expect(result.errors == "")
        for expected in ["end to end", "/iommu@9050000", "SPI 74 (INTID 106)", "/dma@a000000", "256 MiB"] {
            #expect(result.output.contains(expected), "\(expected)")
        }
    }

    @Test func aBoardIsPrintedForAProgram() throws {
        let result = try check(try directory.compile(TestBoard.source), "--json")
        #expect(result.exitCode == 0)
        for expected in [
            #""model" : "end to end""#, #""path" : "/iommu@9050000""#, #""name" : "/dma@a000000""#,
            #""0x42""#,
        ] {
            #expect(result.output.contains(expected), "\(expected)")
        }
    }

    @Test(arguments: ["virt", "soc"])
    func ourOwnBoardsAreGood(_ name: String) throws {
        let blob = try directory.compile(file: Paths.package + "/dts/\(name).dts")
        let result = try check(blob)
        #expect(result.exitCode == 0)
        #expect(result.errors == "")
        #expect(result.output.hasPrefix(name == "virt" ? "smmud virt" : "smmud SoC"))
    }

    @Test func aTruncatedFileGivesOneMessage() throws {
        let whole = try contents(of: try directory.compile(TestBoard.source))
        let path = try directory.write(Array(whole.prefix(200)), to: "cut.dtb")
        let result = try check(path)
        #expect(result.exitCode == 65)
        #expect(result.output == "")
        #expect(
            result.errors == """
                smmud: \(path): the device tree blob is truncated: the file has 200 bytes; its header says \
                \(whole.count) (totalsize)

                """
        )
    }

    @Test func everyProblemOfABoardHasItsLine() throws {
        let source = TestBoard.source.replacing("reg = <0 0x09050000 0 0x20000>;", with: "")
            .replacing("reg = <0 0x80000000 0 0x10000000>;", with: "")
        let result = try check(try directory.compile(source))
        #expect(result.exitCode == 65)
        let lines = result.errors.split(separator: "\n")
        #expect(lines.contains { $0.contains("/iommu@9050000: reg") })
        #expect(lines.contains { $0.contains("/memory@80000000: reg") })
    }

    @Test(arguments: ["/nonexistent/board.dtb", "/"])
    func aFileThatCannotBeReadHasACodeOfItsOwn(_ path: String) throws {
        let result = try check(path)
        #expect(result.exitCode == 66)
        #expect(result.errors.hasPrefix("smmud: \(path): cannot be read: "))
        #expect(result.errors.split(separator: "\n").count == 1)
    }

    @Test func anEndlessFileIsNotReadToItsEnd() throws {
        #expect(try check("/dev/zero").exitCode == 65)
    }

    @Test(arguments: [
        ["--tlb-entries", "-1"], ["--tlb-entries", "many"], ["--page-size", "5K"], ["--driver", "other"], [],
    ])
    func wrongOptionsAreAUsageError(_ arguments: [String]) throws {
        let board = arguments.isEmpty ? [] : [try directory.compile(TestBoard.source)]
        #expect(try ChildProcess.run(Paths.smmud, board + arguments).exitCode == 64)
    }
}
