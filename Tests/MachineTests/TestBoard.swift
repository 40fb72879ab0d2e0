// Boards for tests: compiled from text by dtc.

import DeviceTree
import Glibc
import Machine
import Testing

/// Why a board could not be had.
struct TestBoardError: Error, CustomStringConvertible {
    let description: String
}

enum TestBoard {
    /// Compiles device tree source with dtc, which `scripts/test` installs.
    static func load(_ source: String) throws -> BoardDescription {
        let name = "/tmp/smmud-test-\(getpid())-\(UInt64.random(in: 0...UInt64.max))"
        try write(source, to: name + ".dts")
        defer {
            unlink(name + ".dts")
            unlink(name + ".dtb")
        }
        try run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", name + ".dtb", name + ".dts"])
        return try BoardDescription.load(try read(name + ".dtb"))
    }

    private static func write(_ text: String, to path: String) throws {
        guard let file = fopen(path, "w") else { throw TestBoardError(description: "cannot write \(path)") }
        fputs(text, file)
        fclose(file)
    }

    private static func read(_ path: String) throws -> [UInt8] {
        guard let file = fopen(path, "r") else { throw TestBoardError(description: "cannot read \(path)") }
        defer { fclose(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = fread(&buffer, 1, buffer.count, file)
            guard count > 0 else { return bytes }
            bytes += buffer[..<count]
        }
    }

    private static func run(_ words: [String]) throws {
        var arguments = words.map { strdup($0) }
        defer { for argument in arguments { free(argument) } }
        arguments.append(nil)
        var process = pid_t()
        guard posix_spawnp(&process, words[0], nil, nil, arguments, environ) == 0 else {
            throw TestBoardError(description: "cannot start \(words[0]); install device-tree-compiler")
        }
        var status: CInt = 0
        waitpid(process, &status, 0)
        guard status == 0 else { throw TestBoardError(description: "\(words.joined(separator: " ")) failed") }
    }

    /// A board with one SMMU, a platform device with two StreamIDs, a device without an SMMU, and PCIe.
    static let small = """
        /dts-v1/;
        / {
            model = "test board";
            compatible = "smmud,test";
            #address-cells = <2>;
            #size-cells = <2>;
            interrupt-parent = <&gic>;
            memory@80000000 { device_type = "memory"; reg = <0 0x80000000 0 0x40000000>; };
            reserved-memory {
                #address-cells = <2>;
                #size-cells = <2>;
                ranges;
                firmware@80000000 { reg = <0 0x80000000 0 0x100000>; no-map; };
                picture: picture@90000000 {
                    reg = <0 0x90000000 0 0x10000>;
                    iommu-addresses = <&display 0 0x90000000 0 0x10000>;
                };
            };
            gic: interrupt-controller@30000000 {
                compatible = "arm,gic-v3";
                reg = <0 0x30000000 0 0x10000>, <0 0x30080000 0 0x40000>;
                interrupt-controller;
                #interrupt-cells = <3>;
            };
            smmu: iommu@2b400000 {
                compatible = "arm,smmu-v3";
                reg = <0 0x2b400000 0 0x20000>;
                interrupts = <0 74 1>, <0 75 1>, <0 77 1>;
                interrupt-names = "eventq", "gerror", "cmdq-sync";
                #iommu-cells = <1>;
                dma-coherent;
            };
            dma@40000000 {
                compatible = "smmud,dma";
                reg = <0 0x40000000 0 0x1000>;
                iommus = <&smmu 0x10>, <&smmu 0x11>;
                pasid-num-bits = <4>;
                dma-coherent;
            };
            display: display@40010000 {
                compatible = "smmud,display";
                reg = <0 0x40010000 0 0x1000>;
                iommus = <&smmu 0x20>;
                memory-region = <&picture>;
            };
            ethernet@40020000 { compatible = "smmud,ethernet"; reg = <0 0x40020000 0 0x1000>; };
            pcie@50000000 {
                compatible = "pci-host-ecam-generic";
                device_type = "pci";
                reg = <0 0x50000000 0 0x01000000>;
                bus-range = <0 0xf>;
                #address-cells = <3>;
                #size-cells = <2>;
                ranges = <0x02000000 0 0x60000000 0 0x60000000 0 0x10000000>;
                iommu-map = <0x0 &smmu 0x10000 0x1000>;
                nic@2,0 { reg = <0x1000 0 0 0 0>; };
            };
        };
        """
}
