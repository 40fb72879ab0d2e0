// Each fixture under dts/fixtures/broken says what a load of it must say; here it is loaded and compared.

import AddressSpace
import DeviceTree
import Testing

/// A fixture: its file and the lines `// error: ...` and `// warning: ...` in it.
struct Fixture: CustomTestStringConvertible, Sendable {
    let name: String
    let errors: [String]
    let warnings: [String]

    var testDescription: String { name }

    static let folder = "dts/fixtures/broken"

    static let all: [Fixture] = {
        let listing = (try? run("ls", ["\(packageRoot)/\(folder)"])) ?? []
        let names = String(decoding: listing, as: UTF8.self).split(separator: "\n").map(String.init)
        return names.filter { $0.hasSuffix(".dts") }.map { name in
            let text = (try? readFile("\(packageRoot)/\(folder)/\(name)")) ?? []
            let lines = String(decoding: text, as: UTF8.self).split(separator: "\n")
            func expected(_ prefix: String) -> [String] {
                lines.filter { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }
            }
            return Fixture(name: name, errors: expected("// error: "), warnings: expected("// warning: "))
        }
    }()
}

@Suite("Broken device trees")
struct BrokenFixtureTests {
    @Test("Each mistake gets its message, and no other", arguments: Fixture.all)
    func message(_ fixture: Fixture) throws {
        try #require(!fixture.errors.isEmpty || !fixture.warnings.isEmpty, "the fixture expects nothing")
        let blob = try compile("\(Fixture.folder)/\(fixture.name)", isForced: true)
        do throws(DeviceTreeErrors) {
            let board = try BoardDescription.load(blob)
            #expect(fixture.errors.isEmpty)
            #expect(board.warnings.map(\.description) == fixture.warnings)
        } catch {
            #expect(error.diagnostics.map(\.description) == fixture.errors)
        }
    }

    @Test("All fixtures are found")
    func count() {
        #expect(Fixture.all.count >= 102)
    }

    @Test("The board that the fixtures spoil is right")
    func base() throws {
        let base = try readFile(packageRoot + "/dts/fixtures/base.dtsi")
        let source = try TemporaryFile(Array("/dts-v1/;\n".utf8) + base)
        let board = try BoardDescription.load(run("dtc", ["-q", "-I", "dts", "-O", "dtb", source.path]))
        #expect(board.warnings.isEmpty)
        #expect(board.smmus.map(\.path) == ["/soc@40000000/iommu@400000", "/iommu@2b600000"])
    }

    // MARK: - Files that are no device tree

    @Test(
        "A foreign file is named for what it is",
        arguments: [
            ([], "an empty file", "give a flattened device tree (.dtb), which starts with d0 0d fe ed"),
            (
                Array("\u{7f}ELF....".utf8), "an ELF file",
                "give a flattened device tree (.dtb), which starts with d0 0d fe ed"
            ),
            (
                Array("/* a board */\n/dts-v1/;\n/ { };\n".utf8), "device tree source",
                "compile it first: dtc -I dts -O dtb -o board.dtb board.dts"
            ),
            ([0x1f, 0x8b, 8, 0], "a gzip file", "unpack it first"),
            (
                [0xed, 0xfe, 0x0d, 0xd0], "one whose bytes are swapped",
                "give a flattened device tree (.dtb), which starts with d0 0d fe ed"
            ),
            (
                Array("MZ\u{0}\u{0}".utf8), "an EFI or kernel image",
                "give a flattened device tree (.dtb), which starts with d0 0d fe ed"
            ),
            (
                Array("root:x:0:0".utf8), "text",
                "give a flattened device tree (.dtb), which starts with d0 0d fe ed"
            ),
            (
                [0, 1, 2, 0xab, 9], "something that starts with 00 01 02 ab",
                "give a flattened device tree (.dtb), which starts with d0 0d fe ed"
            ),
        ] as [([UInt8], String, String)]
    )
    func foreign(_ bytes: [UInt8], _ kind: String, _ remedy: String) {
        #expect(message(bytes) == "not a device tree blob but \(kind); \(remedy)")
    }

    @Test("A truncated file says how long it should be")
    func truncated() throws {
        let blob = try compile("dts/virt.dts")
        #expect(
            message(Array(blob.dropLast(100)))
                == "the device tree blob is truncated: the file has \(blob.count - 100) bytes; "
                + "its header says \(blob.count) (totalsize)"
        )
        #expect(
            message(Array(blob.prefix(20)))
                == "the device tree blob is truncated: 20 bytes; its header alone has 40 bytes"
        )
    }

    @Test("A damaged structure block is libfdt's to describe")
    func damaged() throws {
        var blob = try compile("dts/virt.dts")
        // off_dt_struct is the third word of the header: let it point behind the end.
        blob[8] = 0x7f
        #expect(message(blob)?.hasPrefix("the device tree blob is damaged: libfdt says FDT_ERR_") == true)
    }

    @Test("A file larger than any device tree is refused before it is read")
    func tooLarge() {
        let bytes = [0xd0, 0x0d, 0xfe, 0xed] + [UInt8](repeating: 0, count: 2 << 20)
        #expect(
            message(bytes)
                == "the device tree blob is too large; a device tree has at most 2097152 bytes (2 MiB)"
        )
    }

    @Test("A file that cannot be read says why; a device that never ends is not read to its end")
    func unreadable() {
        func message(_ path: String) -> String? {
            do throws(DeviceTreeErrors) {
                _ = try BoardDescription.load(contentsOf: path)
                return nil
            } catch {
                return error.description
            }
        }
        #expect(message("/nowhere/board.dtb") == "the file cannot be read: No such file or directory")
        #expect(message("/") == "the file cannot be read: Is a directory")
        #expect(message("/dev/null")?.hasPrefix("not a device tree blob but an empty file") == true)
        #expect(message("/dev/zero")?.hasPrefix("the device tree blob is too large") == true)
    }

    @Test("A file loads like its bytes")
    func file() throws {
        let blob = try compile("dts/soc.dts")
        let file = try TemporaryFile(blob)
        #expect(try BoardDescription.load(contentsOf: file.path) == BoardDescription.load(blob))
    }

    @Test("A property that a node has twice is named")
    func propertyTwice() throws {
        // dtc merges them, so make the second one in the blob: both names are in the strings block.
        let source = try TemporaryFile(Array("/dts-v1/; / { first-a = <1>; first-b = <2>; };".utf8))
        var blob = try run("dtc", ["-q", "-I", "dts", "-O", "dtb", source.path])
        let name = Array("first-b".utf8)
        let place = try #require(blob.indices.first { blob[$0...].starts(with: name) })
        blob[place + 6] = UInt8(ascii: "a")
        #expect(message(blob) == "/: first-a: given twice; a node has a property once")
    }

    @Test("Nodes may nest 64 deep, and no deeper")
    func tooDeep() throws {
        func nested(_ depth: Int) throws -> [UInt8] {
            let open = (1...depth).map { "n\($0) { " }.joined()
            let close = String(repeating: "}; ", count: depth)
            let source = try TemporaryFile(Array("/dts-v1/; / { \(open)\(close)};".utf8))
            return try run("dtc", ["-q", "-I", "dts", "-O", "dtb", source.path])
        }
        #expect(message(try nested(63)) == nil)
        #expect(message(try nested(64)) == "the device tree blob nests nodes more than 64 deep")
    }

    /// The first message of a load that fails; nil where it does not.
    private func message(_ bytes: [UInt8]) -> String? {
        do throws(DeviceTreeErrors) {
            _ = try BoardDescription.load(bytes)
            return nil
        } catch {
            return error.diagnostics.first?.description
        }
    }
}
