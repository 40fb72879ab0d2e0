// The daemon under test, started on a small board.

import ControlProtocol
import Glibc
import SMMUClient

/// A small board: 256 MiB of RAM at 0x80000000, one SMMU with three lines, one device behind it.
enum TestBoard {
    static let memory: UInt64 = 0x8000_0000
    static let registers: UInt64 = 0x905_0000
    static let smmu = "/iommu@9050000"
    static let device = "/dma@a000000"
    static let stream: UInt32 = 0x42

    static let source = """
        /dts-v1/;
        / {
            model = "end to end";
            compatible = "smmud,end-to-end";
            #address-cells = <2>;
            #size-cells = <2>;
            interrupt-parent = <&gic>;
            memory@80000000 { device_type = "memory"; reg = <0 0x80000000 0 0x10000000>; };
            gic: interrupt-controller@8000000 {
                compatible = "arm,gic-v3";
                reg = <0 0x08000000 0 0x10000>, <0 0x080a0000 0 0x40000>;
                interrupt-controller;
                #interrupt-cells = <3>;
            };
            smmu: iommu@9050000 {
                compatible = "arm,smmu-v3";
                reg = <0 0x09050000 0 0x20000>;
                interrupts = <0 74 1>, <0 75 1>, <0 76 1>;
                interrupt-names = "eventq", "gerror", "cmdq-sync";
                #iommu-cells = <1>;
                dma-coherent;
            };
            dma@a000000 {
                compatible = "smmud,test-dma";
                reg = <0 0x0a000000 0 0x1000>;
                iommus = <&smmu 0x42>, <&smmu 0x43>;
            };
        };
        """
}

/// A daemon that is ready, with sockets in a directory of its own.
final class Daemon {
    let directory: TemporaryDirectory
    let process: ChildProcess
    /// What it said when it was ready.
    let readyLine: String
    var controlPath: String { directory.file("control.sock") }
    var dmaPath: String { directory.file("dma.sock") }

    /// Starts one on ``TestBoard`` or another board, and waits until it is ready.
    ///
    /// - Parameter openFilesMax: How many files it may have open; as many as the tests where nil.
    init(
        board: String = TestBoard.source,
        in directory: TemporaryDirectory? = nil,
        arguments: [String] = ["--driver", "none"],
        openFilesMax: Int? = nil
    ) throws {
        let directory = try directory ?? TemporaryDirectory()
        self.directory = directory
        let blob = try directory.compile(board)
        let command =
            [
                Paths.smmud, blob, "--control", directory.file("control.sock"), "--dma",
                directory.file("dma.sock"),
            ] + arguments
        if let openFilesMax {
            let script = "ulimit -n \(openFilesMax); exec \"$@\""
            process = try ChildProcess("sh", ["-c", script, "sh"] + command)
        } else {
            process = try ChildProcess(command[0], Array(command.dropFirst()))
        }
        guard let line = try process.nextLine() else {
            throw TestFailure("smmud did not start: \(try process.wait())")
        }
        readyLine = line
    }

    /// Has it stop, and waits until it has.
    @discardableResult
    func stop(_ signal: CInt = SIGTERM) throws -> (exitCode: Int32, output: String, errors: String) {
        process.signal(signal)
        return try process.wait()
    }

    func control() throws -> ControlClient {
        let client = try ControlClient(path: controlPath)
        client.timeoutMilliseconds = Int(ChildProcess.patienceMilliseconds)
        return client
    }

    func dma() throws -> DMAClient {
        let client = try DMAClient(path: dmaPath)
        client.timeoutMilliseconds = Int(ChildProcess.patienceMilliseconds)
        return client
    }

    /// Whether it answers on both sockets.
    func serves() throws -> Bool {
        let version = try control().call(Methods.DaemonVersion.self, Nothing())
        return try version.name == "smmud" && dma().echo([1, 2, 3]) == [1, 2, 3]
    }
}

/// A register's or a memory's word, as a CPU accesses it.
extension ControlClient {
    func store(_ value: UInt64, _ bits: Int, at address: UInt64) throws {
        _ = try call(
            Methods.BusStore.self,
            Methods.BusStore.Parameters(address: Hex(address), width: bits, value: Hex(value))
        )
    }

    func load(_ bits: Int, at address: UInt64) throws -> UInt64 {
        try call(Methods.BusLoad.self, Methods.BusLoad.Parameters(address: Hex(address), width: bits)).value
            .value
    }

    func writeMemory(_ bytes: [UInt8], at address: UInt64) throws {
        _ = try call(
            Methods.MemoryWrite.self,
            Methods.MemoryWrite.Parameters(address: Hex(address), data: ByteString(bytes))
        )
    }

    func readMemory(_ count: UInt64, at address: UInt64) throws -> [UInt8] {
        try call(
            Methods.MemoryRead.self,
            Methods.MemoryRead.Parameters(address: Hex(address), length: Size(count))
        ).data.bytes
    }
}
