// iasl, the reference tool for ACPI tables, reads the same tables: each field that both have is the same.

import ACPITables
import Glibc
import IORTFixtures
import Testing

@Suite("IORTs as iasl reads them")
struct ReferenceTests {
    @Test(
        "Each field has the value that iasl prints",
        arguments: ["qemu-virt", "altra", "everything"]
    )
    func fields(_ name: String) throws {
        var fixture = try IORTFixture(name)
        if name == "everything" {
            // iasl of 2020 knows neither RMRs nor root complexes of revision 4: the nodes before them.
            fixture.bytes.removeSubrange(0x1B8...)
            fixture = fixture.with(IORTChange(4, 0x1B8), IORTChange(36, 6))
        }
        let table = try IORTTable(fixture.bytes)
        let printed = try disassembled(fixture.bytes)
        var compared = 0
        for node in table.nodes {
            for (place, field, value) in expectations(of: node) {
                let key = Field(offset: node.offset + place, name: field)
                #expect(printed[key] == value, "\(name): \(node.label): \(field)")
                compared += 1
            }
        }
        #expect(compared > 12)
    }

    private struct Field: Hashable {
        let offset: Int
        let name: String
    }

    /// What of a node iasl prints too: where, by which name, and what we made of it.
    private func expectations(of node: IORTNode) -> [(Int, String, UInt64)] {
        var fields: [(Int, String, UInt64)] = [
            (0, "Type", UInt64(node.type.rawValue)), (1, "Length", UInt64(node.byteCount)),
            (3, "Revision", UInt64(node.revision)), (8, "Mapping Count", UInt64(node.mappings.count)),
        ]
        for (index, mapping) in node.mappings.enumerated() {
            // The mappings of these tables are the last thing in their nodes.
            let place = node.byteCount - 20 * (node.mappings.count - index)
            fields += [
                (place, "Input base", UInt64(mapping.inputBase)),
                (place + 4, "ID Count", UInt64(mapping.countMinusOne)),
                (place + 8, "Output Base", UInt64(mapping.outputBase)),
                (place + 12, "Output Reference", UInt64(mapping.outputReference)),
            ]
        }
        switch node.content {
        case .itsGroup(let identifiers): fields.append((16, "ItsCount", UInt64(identifiers.count)))
        case .smmuV3(let smmu):
            fields += [
                (16, "Base Address", smmu.base), (40, "Model", UInt64(smmu.model.rawValue)),
                (44, "Event GSIV", UInt64(smmu.eventGSIV)), (48, "PRI GSIV", UInt64(smmu.priGSIV)),
                (52, "GERR GSIV", UInt64(smmu.globalErrorGSIV)), (56, "Sync GSIV", UInt64(smmu.syncGSIV)),
                (64, "Device ID Mapping Index", UInt64(smmu.deviceIDMappingIndex)),
            ]
        case .rootComplex(let complex):
            fields += [
                (16, "Cache Coherency", UInt64(complex.memoryAccess.cacheCoherency)),
                (24, "ATS Attribute", UInt64(complex.atsAttribute)),
                (28, "PCI Segment Number", UInt64(complex.segment)),
                (32, "Memory Size Limit", UInt64(complex.addressSizeLimit ?? 0)),
            ]
        case .pmcg(let group):
            fields += [
                (16, "Page 0 Base Address", group.page0),
                (24, "Overflow Interrupt GSIV", UInt64(group.overflowGSIV)),
                (28, "Node Reference", UInt64(group.nodeReference)),
                (32, "Page 1 Base Address", group.page1 ?? 0),
            ]
        default: break
        }
        return fields
    }

    /// iasl's text of a table, by field.
    private func disassembled(_ bytes: [UInt8]) throws -> [Field: UInt64] {
        var template = Array("/tmp/smmud-iasl-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw IORTFixtureError(description: "mkdtemp") }
        let folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer {
            unlink(folder + "/iort.aml")
            unlink(folder + "/iort.dsl")
            rmdir(folder)
        }
        try write(bytes, to: folder + "/iort.aml")
        try run(["iasl", "-d", folder + "/iort.aml"])
        var fields: [Field: UInt64] = [:]
        for line in try read(folder + "/iort.dsl").split(separator: "\n") where line.hasPrefix("[") {
            guard let bracket = line.firstIndex(of: "]"),
                let offset = Int(line.dropFirst().prefix { $0 != "h" }, radix: 16)
            else { continue }
            let parts = line[line.index(after: bracket)...].split(separator: ":", maxSplits: 1)
            guard parts.count == 2, let word = parts[1].split(separator: " ").first,
                let value = UInt64(word, radix: 16)
            else { continue }
            let name = parts[0].split(separator: " ").joined(separator: " ")
            fields[Field(offset: offset, name: name)] = value
        }
        return fields
    }

    private func write(_ bytes: [UInt8], to path: String) throws {
        guard let file = fopen(path, "wb") else { throw IORTFixtureError(description: path) }
        defer { fclose(file) }
        guard fwrite(bytes, 1, bytes.count, file) == bytes.count else {
            throw IORTFixtureError(description: path)
        }
    }

    private func read(_ path: String) throws -> String {
        guard let file = fopen(path, "rb") else {
            throw IORTFixtureError(description: "iasl wrote no \(path)")
        }
        defer { fclose(file) }
        var text: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = fread(&chunk, 1, chunk.count, file)
            guard count > 0 else { return String(decoding: text, as: UTF8.self) }
            text += chunk[..<count]
        }
    }

    private func run(_ words: [String]) throws {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        for descriptor in [1, 2] as [CInt] {
            posix_spawn_file_actions_addopen(&actions, descriptor, "/dev/null", O_WRONLY, 0)
        }
        let arguments = words.map { strdup($0) } + [nil]
        defer { arguments.forEach { free($0) } }
        var child: pid_t = 0
        guard posix_spawnp(&child, words[0], &actions, nil, arguments, environ) == 0 else {
            throw IORTFixtureError(description: "cannot run \(words[0]); install the package acpica-tools")
        }
        var status: CInt = 0
        while waitpid(child, &status, 0) < 0, errno == EINTR {}
    }
}
