// Numbers, bytes, permissions and requesters as they are spelled in JSON and on command lines.

import ControlProtocol
import Testing

@Suite("Spelling")
struct ValueTests {
    @Test(
        "Numbers are decimal, hexadecimal or have a size's suffix",
        arguments: [
            ("0", 0), ("42", 42), ("0x2B400000", 0x2b40_0000), ("1_000", 1000), ("4K", 4096), ("4k", 4096),
            ("2MiB", 2 << 20), ("1G", 1 << 30), ("16T", 16 << 40), ("18446744073709551615", UInt64.max),
            ("0xffff_ffff_ffff_ffff", UInt64.max),
        ] as [(String, UInt64)]
    )
    func numbers(text: String, value: UInt64) {
        #expect(NumberText.value(of: text, allowsSizeSuffix: true) == value)
    }

    @Test(
        "What is no number is none",
        arguments: [
            "", "-1", "+1", "0x", "0xg", "1.5", "K", "4KB", "18446744073709551616", "0x10000000000000000",
            "16777216T",
            "0x-1", " 1", "_1",
        ]
    )
    func noNumbers(text: String) {
        #expect(NumberText.value(of: text, allowsSizeSuffix: true) == nil)
    }

    @Test("A suffix is only taken where it is allowed")
    func suffixes() {
        #expect(NumberText.value(of: "4K") == nil)
        // In hexadecimal no letter is a suffix.
        #expect(NumberText.value(of: "0x4K", allowsSizeSuffix: true) == nil)
    }

    @Test("Hex digits go in pairs, with blanks between")
    func hexDigits() {
        #expect(ByteString.bytes(hexDigits: "de ad BEef\n") == [0xde, 0xad, 0xbe, 0xef])
        #expect(ByteString.bytes(hexDigits: "") == [])
        for text in ["d", "dea", "d e", "xy", "de:ad"] { #expect(ByteString.bytes(hexDigits: text) == nil) }
    }

    @Test("Bytes are read from base64 and from hex digits, and nothing else")
    func bytes() throws {
        func data(_ text: String) -> [UInt8]? {
            let line = #"{"jsonrpc":"2.0","id":1,"method":"x","params":{"address":0,"data":"\#(text)"}}"#
            let request = try? ControlRequest(line: Array(line.utf8))
            return try? request?.parameters(as: Methods.MemoryWrite.Parameters.self).data.bytes
        }
        #expect(data("3q2+7w==") == [0xde, 0xad, 0xbe, 0xef])
        #expect(data("hex:de ad be ef") == [0xde, 0xad, 0xbe, 0xef])
        #expect(data("") == [])
        #expect(data("hex:xyz") == nil)
        #expect(data("***") == nil)
    }

    @Test("Permissions are letters, each once, with something to permit")
    func permissions() {
        #expect(Permissions("rw") == .readWrite)
        #expect(Permissions("wr") == .readWrite)
        #expect(Permissions("rxp")?.description == "rxp")
        for text in ["", "p", "rr", "rq", "RW"] { #expect(Permissions(text) == nil) }
    }

    @Test("A requester is a device, or a StreamID, and never both halves of nothing")
    func requesters() throws {
        func requester(
            device: String? = nil,
            smmu: SMMUSelector? = nil,
            stream: Hex? = nil
        ) throws(ControlError) -> Requester {
            try DMAEnd(device: device, smmu: smmu, stream: stream, iova: 0).requester()
        }
        #expect(try requester(device: "a") == .device("a", stream: nil))
        #expect(try requester(device: "a", stream: 0x42) == .device("a", stream: 0x42))
        #expect(try requester(stream: 0x42) == .stream(0x42, smmu: nil))
        #expect(try requester(smmu: .index(1), stream: 0x42) == .stream(0x42, smmu: .index(1)))
        #expect(throws: ControlError.self) { try requester() }
        #expect(throws: ControlError.self) { try requester(smmu: .index(0)) }
        #expect(throws: ControlError.self) { try requester(device: "a", smmu: .index(0)) }
        let wide = #expect(throws: ControlError.self) { try requester(stream: 0x1_0000_0000) }
        #expect(wide?.data?.parameter == "stream")
        let substream = #expect(throws: ControlError.self) {
            try DMAEnd(device: "a", substream: 0x10_0000, iova: 0).substreamID()
        }
        #expect(substream?.data?.parameter == "substream")
    }

    @Test("A length that no call carries names its parameter")
    func lengths() throws {
        #expect(try Methods.dataByteCount(8_388_608) == 8_388_608)
        let error = #expect(throws: ControlError.self) { try Methods.dataByteCount(Size(UInt64(1) << 63)) }
        #expect(error?.code == .invalidParameters && error?.data?.parameter == "length")
    }
}
