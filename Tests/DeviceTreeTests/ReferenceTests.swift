// Our reading of a blob beside that of dtc, which shares no code with it but libfdt's format.

import AddressSpace
import DeviceTree
import Testing

/// A property as a line of `dtc -O dts`: where it stands, its name, and its cells where it is shown as cells.
private struct Line: Equatable {
    let path: String
    let name: String
    let cells: [UInt32]?
}

/// Reads the output of `dtc -O dts`: one node or property a line.
private func lines(_ source: String) -> [Line] {
    var result: [Line] = []
    var path: [String] = []
    for raw in source.split(separator: "\n") {
        let line = raw.drop { $0 == "\t" }
        if line.hasSuffix(" {") {
            path.append(line == "/ {" ? "" : String(line.dropLast(2)))
        } else if line == "};" {
            path.removeLast()
        } else if line.hasSuffix(";"), !path.isEmpty {
            let parts = line.dropLast().split(separator: "=", maxSplits: 1)
            let name = String(parts[0].prefix { $0 != " " })
            var cells: [UInt32]?
            if parts.count == 2, parts[1].hasPrefix(" <"), parts[1].hasSuffix(">") {
                cells = parts[1].dropFirst(2).dropLast().split(separator: " ").compactMap {
                    UInt32($0.dropFirst(2), radix: 16)
                }
            }
            result.append(
                Line(path: path.count == 1 ? "/" : path.joined(separator: "/"), name: name, cells: cells)
            )
        }
    }
    return result
}

@Suite("Beside dtc")
struct ReferenceTests {
    static let boards = [
        "qemu/virt-smmuv3.dtb", "arm/fvp-base-revc.dtb", "hisilicon/hip07-d05.dtb",
        "rockchip/rk3588-rock-5b.dtb",
    ]

    @Test("Every node and property of a real board is read as dtc reads it", arguments: boards)
    func sameAsDTC(_ name: String) throws {
        let blob = try board(name)
        let file = try TemporaryFile(blob)
        let source = try run("dtc", ["-q", "-I", "dtb", "-O", "dts", file.path])
        let expected = lines(String(decoding: source, as: UTF8.self))
        let tree = try FlattenedDeviceTree(blob)
        let actual = tree.nodes.flatMap { node in node.properties.map { (node.path, $0) } }
        #expect(actual.map { $0.0 + ":" + $0.1.name } == expected.map { $0.path + ":" + $0.name })
        for ((path, property), line) in zip(actual, expected) where line.cells != nil {
            #expect(property.cells == line.cells, "\(path): \(property.name)")
        }
        // So that the comparison is known to compare something.
        #expect(expected.count { $0.cells != nil } > 50)
    }

    @Test("The /memreserve/ entry of the FVP is read")
    func memoryReservation() throws {
        // fvp-base-revc.dts: /memreserve/ 0x80000000 0x00010000;
        let tree = try FlattenedDeviceTree(board("arm/fvp-base-revc.dtb"))
        #expect(tree.memoryReservations.map(\.description) == ["0x80000000-0x8000ffff"])
    }
}
