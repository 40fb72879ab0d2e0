// docs/dma-protocol.md as a test: its tables of bytes and its numbers are those of the code.

import ControlProtocol
import FoundationEssentials
import Testing

private struct Row {
    let offset: Int
    let size: Int
    let field: String
}

private struct Documentation {
    let text: String

    init() throws {
        // Tests/ControlProtocolTests/DMADocumentationTests.swift, three steps below the package.
        let path = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()
        let file = try #require(FileManager.default.contents(atPath: path + "/docs/dma-protocol.md"))
        text = String(decoding: file, as: UTF8.self)
    }

    /// The rows of a section's table of bytes that have a size.
    func rows(ofSection heading: String) throws -> [Row] {
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        let start = try #require(lines.firstIndex(of: Substring(heading)))
        let section = lines[(start + 1)...].prefix { !$0.hasPrefix("#") }
        return section.compactMap { line in
            let cells = line.split(separator: "|").map { $0.filter { $0 != " " && $0 != "`" } }
            guard cells.count == 4, let offset = Int(cells[0]), let size = Int(cells[1]) else { return nil }
            return Row(offset: offset, size: size, field: cells[2])
        }
    }

    /// The bytes that the table lays these fields out to.
    func layout(_ heading: String, _ fields: [String: UInt64]) throws -> [UInt8] {
        var bytes: [UInt8] = []
        for row in try rows(ofSection: heading) {
            #expect(row.offset == bytes.count, "a gap or an overlap at \(row.field)")
            let value = try #require(fields[row.field], "\(row.field)")
            bytes += (0..<row.size).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
        }
        return bytes
    }

    /// The bytes of the example, by line.
    func example() throws -> [UInt8] {
        let example = try #require(text.split(separator: "## Example\n").last)
        let block = try #require(example.split(separator: "```\n").dropFirst().first)
        return block.split(separator: "\n").flatMap { line in
            line.prefix(50).split(separator: " ").compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
        }
    }
}

@Suite("docs/dma-protocol.md")
struct DMADocumentationTests {
    @Test("A request is laid out as the table says")
    func requestTable() throws {
        let fields: [String: UInt64] = [
            "length": 64, "opcode": 6, "flags": 0x1f, "id": 0x0102_0304_0506_0708, "endpoint": 0x1112_1314,
            "stream": 0x2122_2324, "substream": 0x31323, "buffer": 0x4142_4344, "iova": 0x5152_5354_5556_5758,
            "count": 0x6162_6364_6566_6768, "offset": 0x7172_7374_7576_7778, "reserved": 0,
        ]
        let request = DMARequest(
            .write,
            id: 0x0102_0304_0506_0708,
            flags: [.substream, .privileged, .instruction, .buffer, .direct],
            endpoint: 0x1112_1314,
            stream: 0x2122_2324,
            substream: 0x31323,
            buffer: 0x4142_4344,
            iova: 0x5152_5354_5556_5758,
            count: 0x6162_6364_6566_6768,
            offset: 0x7172_7374_7576_7778
        )
        #expect(try DMARequestEncoder.message(request) == Documentation().layout("## Request", fields))
    }

    @Test("An answer is laid out as the table says")
    func answerTable() throws {
        let fields: [String: UInt64] = [
            "length": 64, "opcode": 0x8006, "status": 3, "id": 9, "transferred": 0x1112_1314_1516_1718,
            "address": 0x2122_2324_2526_2728, "event": 0x3132_3334, "handle": 0x4142_4344,
            "value0": 0x5152_5354_5556_5758, "value1": 0x6162_6364_6566_6768, "value2": 0x7172_7374_7576_7778,
        ]
        let answer = DMAResponse(
            to: DMARequest(.write, id: 9),
            .busError,
            transferred: 0x1112_1314_1516_1718,
            address: 0x2122_2324_2526_2728,
            event: 0x3132_3334,
            handle: 0x4142_4344,
            value0: 0x5152_5354_5556_5758,
            value1: 0x6162_6364_6566_6768,
            value2: 0x7172_7374_7576_7778
        )
        #expect(try DMAResponseEncoder.message(answer) == Documentation().layout("## Answer", fields))
    }

    @Test("The example is a request and its answer")
    func example() throws {
        let bytes = try Documentation().example()
        #expect(bytes.count == 64 + 72)
        let request = DMARequest(.read, id: 7, endpoint: 1, iova: 0x10000, count: 16)
        let answer = DMAResponse(to: request, .fault, transferred: 8, address: 0x10008, event: 0x10)
        let expected =
            DMARequestEncoder.message(request)
            + DMAResponseEncoder.message(answer, payload: Array("datadata".utf8))
        #expect(bytes == expected)
    }

    @Test("The tables of opcodes, flags and statuses have the code's numbers")
    func numbers() throws {
        let text = try Documentation().text
        let opcodes: [(DMAOpcode, String)] = [
            (.hello, "HELLO"), (.echo, "ECHO"), (.open, "OPEN"), (.close, "CLOSE"), (.read, "READ"),
            (.write, "WRITE"),
            (.attachBuffer, "ATTACH_BUFFER"), (.detachBuffer, "DETACH_BUFFER"), (.ramInfo, "RAM_INFO"),
            (.ramFile, "RAM_FD"), (.processMap, "PROCESS_MAP"), (.processUnmap, "PROCESS_UNMAP"),
            (.processBind, "PROCESS_BIND"), (.processUnbind, "PROCESS_UNBIND"),
        ]
        for (opcode, name) in opcodes { #expect(text.contains("\n| \(opcode.rawValue) | \(name) |")) }
        let flags: [(DMAFlags, String)] = [
            (.substream, "SUBSTREAM"), (.privileged, "PRIVILEGED"), (.instruction, "INSTRUCTION"),
            (.buffer, "BUFFER"),
            (.direct, "DIRECT"), (.stream, "STREAM"),
        ]
        for (flag, name) in flags {
            #expect(text.contains("\n| \(flag.rawValue.trailingZeroBitCount) | \(name) |"))
        }
        let statuses: [(DMAStatus, String)] = [
            (.ok, "OK"), (.fault, "FAULT"), (.aborted, "ABORTED"), (.busError, "BUS_ERROR"),
            (.malformed, "MALFORMED"),
            (.handshake, "HANDSHAKE"), (.unsupported, "UNSUPPORTED"), (.parameter, "PARAMETER"),
            (.range, "RANGE"),
            (.notFound, "NOT_FOUND"), (.noDescriptor, "NO_DESCRIPTOR"), (.limit, "LIMIT"),
            (.failed, "FAILED"),
        ]
        for (status, name) in statuses { #expect(text.contains("\n| \(status.rawValue) | \(name) |")) }
    }
}
