// The queues' entries: commands, event records and page requests.

import AddressSpace
import SMMUv3Spec
import SeededRandomness
import Testing

@Suite("Commands")
struct CommandTests {
    @Test("each field is where the specification says")
    func fieldsMatchTheSpecification() { check(goldenCommand) }

    @Test("each field that the Linux driver uses is where its header says")
    func fieldsMatchTheDriver() { check(linuxCommand) }

    @Test("a command takes 16 bytes")
    func size() {
        #expect(Command.byteCount == 16)
        #expect(Command().words == .zero)
    }

    @Test("each opcode has its name and its fields", arguments: goldenCommandLayouts.map(\.0))
    func layoutsMatchTheSpecification(_ code: UInt8) throws {
        let golden = try #require(goldenCommandLayouts.first { $0.0 == code })
        let opcode = Opcode(rawValue: code)
        #expect(opcode.name == golden.1)
        let layout = Command.layout(for: opcode)
        #expect(layout.map(\.name) == golden.2.map(\.2))
        #expect(layout.map { $0.low / 64 } == golden.2.map(\.0))
        #expect(layout.map { UInt64.ones($0.high, $0.low) } == golden.2.map(\.1))
        for (lower, upper) in zip(layout, layout.dropFirst()) { #expect(lower.high < upper.low) }
    }

    @Test("only the architecture's opcodes have names")
    func namedOpcodes() {
        let named = Set(Opcode.all.map(\.rawValue))
        #expect(named == Set(goldenCommandLayouts.map(\.0)).union([0x70, 0x73]))
        for code in UInt8.min...UInt8.max where !named.contains(code) {
            #expect(Opcode(rawValue: code).name == nil)
            #expect(Command.layout(for: Opcode(rawValue: code)).map(\.name) == ["Opcode"])
        }
    }

    @Test("whatever a command holds decodes to what the accessors read")
    func decodingNeverTraps() {
        let seed: UInt64 = 0xC0DE
        var random = SplitMix(seed: seed)
        for code in UInt8.min...UInt8.max {
            for _ in 0..<20 {
                var command = Command(words: SIMD2(random.nextWord(), random.nextWord()))
                command.opcode = Opcode(rawValue: code)
                for field in command.fields {
                    let mask = UInt64.ones(field.high, field.low)
                    let golden = goldenCommand.first {
                        $0.name == field.name && $0.dword == field.low / 64 && $0.mask == mask
                    }
                    #expect(
                        golden.map { $0.get(command) } == field.value,
                        "\(command.name) \(field), seed \(seed)"
                    )
                }
            }
        }
    }

    @Test("the commands with which the Linux driver starts")
    func resetCommandsOfTheDriver() {
        #expect(Command.cfgiAll().words == SIMD2(0x04, 0x1F))
        #expect(Command.tlbiEL2All().words == SIMD2(0x20, 0))
        #expect(Command.tlbiNSNHAll().words == SIMD2(0x30, 0))
        #expect(Command.sync(cs: 2).words == SIMD2(0x2046, 0))
        #expect(Command.sync().words == SIMD2(0x46, 0))
        #expect(Command.cfgiAll().name == "CMD_CFGI_ALL")
    }

    @Test("the CMD_SYNC that the Linux driver polls in the queue itself")
    func syncByMessage() {
        let command = Command.sync(cs: 1, msiAddress: 0x8004_0010, msiData: 0, msh: 3, msiAttr: 0xF)
        #expect(command.words == SIMD2(0x0FC0_1046, 0x8004_0010))
        let written = Command.sync(cs: 1, msiAddress: 0x8004_0010, msiData: 0xDEAD_BEEF)
        #expect(written.words == SIMD2(0xDEAD_BEEF_0000_1046, 0x8004_0010))
        #expect(written.msiData == 0xDEAD_BEEF)
        #expect(written.fields.map(\.description).contains("CS [13:12] = 0x1 (SIG_IRQ)"))
    }

    @Test("configuration commands")
    func configurationCommands() {
        let stream = StreamID(0x1234)
        #expect(Command.cfgiSTE(stream, leaf: true).words == SIMD2(0x1234_0000_0003, 1))
        #expect(Command.cfgiSTE(stream, leaf: false).words == SIMD2(0x1234_0000_0003, 0))
        #expect(Command.cfgiSTERange(stream, range: 7).words == SIMD2(0x1234_0000_0004, 7))
        #expect(Command.cfgiSTERange(stream, range: 7).name == "CMD_CFGI_STE_RANGE")
        #expect(Command.cfgiCD(stream, SubstreamID(5), leaf: true).words == SIMD2(0x1234_0000_5005, 1))
        #expect(Command.cfgiCDAll(stream).words == SIMD2(0x1234_0000_0006, 0))
        #expect(Command.cfgiVMSPIDM(vmid: 3).words == SIMD2(0x3_0000_0007, 0))
        #expect(Command.prefetchConfig(stream).words == SIMD2(0x1234_0000_0001, 0))
        #expect(Command.prefetchConfig(stream, SubstreamID(5)).words == SIMD2(0x1234_0000_5801, 0))
        let prefetch = Command.prefetchAddr(stream, address: 0x8000_0000, size: 3, stride: 1)
        #expect(prefetch.words == SIMD2(0x1234_0000_0002, 0x8000_0023))
    }

    @Test("invalidations of stage 1")
    func stage1Invalidations() {
        #expect(Command.tlbiNHAll(vmid: 7).words == SIMD2(0x7_0000_0010, 0))
        #expect(Command.tlbiNHASID(vmid: 7, asid: 9).words == SIMD2(0x0009_0007_0000_0011, 0))
        // The low 12 bits of an address have no place in a command.
        let page = Command.tlbiNHVA(vmid: 0, asid: 1, address: 0xFFFF_FFFF_8000_1234, leaf: true)
        #expect(page.words == SIMD2(0x0001_0000_0000_0012, 0xFFFF_FFFF_8000_1001))
        #expect(
            Command.tlbiNHVAA(vmid: 7, address: 0x1000, leaf: false).words == SIMD2(0x7_0000_0013, 0x1000)
        )
        #expect(Command.tlbiEL2ASID(asid: 9).words == SIMD2(0x0009_0000_0000_0021, 0))
        let el2 = Command.tlbiEL2VA(asid: 9, address: 0x1000, leaf: true)
        #expect(el2.words == SIMD2(0x0009_0000_0000_0022, 0x1001))
        #expect(Command.tlbiEL2VAA(address: 0x1000, leaf: true).words == SIMD2(0x23, 0x1001))
    }

    @Test("1023 pages take the Linux driver two range invalidations")
    func rangeInvalidationsOfTheDriver() {
        // 31 pages, then 31 times 32 pages, 4 KiB each, last level 3.
        let first = Command.tlbiNHVA(
            vmid: 0,
            asid: 1,
            address: 0x4000_0000,
            leaf: true,
            range: TLBIRange(num: 30, scale: 0, ttl: 3, granule: .kib4)
        )
        #expect(first.words == SIMD2(0x0001_0000_0001_E012, 0x4000_0701))
        let second = Command.tlbiNHVA(
            vmid: 0,
            asid: 1,
            address: 0x4001_F000,
            leaf: true,
            range: TLBIRange(num: 30, scale: 5, ttl: 3, granule: .kib4)
        )
        #expect(second.words == SIMD2(0x0001_0000_0051_E012, 0x4001_F701))
        #expect(second.tlbiRange(ds: false) == TLBIRange(num: 30, scale: 5, ttl: 3, tg: 1))
    }

    @Test("SCALE has a sixth bit only with DS")
    func scaleBySupport() {
        let command = Command(words: SIMD2(0x0270_0012, 0))
        #expect(command.tlbiRange(ds: false).scale == 7)
        #expect(command.tlbiRange(ds: true).scale == 39)
    }

    @Test("invalidations of stage 2")
    func stage2Invalidations() {
        #expect(Command.tlbiS12VMAll(vmid: 7).words == SIMD2(0x7_0000_0028, 0))
        let page = Command.tlbiS2IPA(vmid: 7, ipa: 0x00FF_1234_5678_9ABC, leaf: true)
        #expect(page.words == SIMD2(0x7_0000_002A, 0x00FF_1234_5678_9001))
        let range = Command.tlbiS2IPA(
            vmid: 7,
            ipa: 0x8000_0000,
            leaf: false,
            range: TLBIRange(num: 1, scale: 2, ttl: 0, granule: .kib64)
        )
        #expect(range.words == SIMD2(0x7_0020_102A, 0x8000_0C00))
    }

    @Test("commands of ATS, page requests and stalls")
    func deviceCommands() {
        let stream = StreamID(0x100)
        #expect(Command.atcInv(stream, address: 0, size: 52).words == SIMD2(0x100_0000_0040, 0x34))
        let substream = Command.atcInv(stream, SubstreamID(5), address: 0x8000_0000, size: 3, global: true)
        #expect(substream.words == SIMD2(0x100_0000_5A40, 0x8000_0003))
        let response = Command.priResp(stream, SubstreamID(5), prgIndex: 0x1FF, response: .success)
        #expect(response.words == SIMD2(0x100_0000_5841, 0x21FF))
        #expect(
            Command.resume(stream, stag: 0xBEEF, ac: true, ab: false).words == SIMD2(0x100_0000_1044, 0xBEEF)
        )
        #expect(
            Command.resume(stream, stag: 0xBEEF, ac: false, ab: true).words == SIMD2(0x100_0000_2044, 0xBEEF)
        )
        #expect(Command.stallTerm(stream).words == SIMD2(0x100_0000_0045, 0))
    }
}

@Suite("Event records")
struct EventRecordTests {
    @Test("each field is where the specification says")
    func fieldsMatchTheSpecification() { check(goldenEvent) }

    @Test("each field that the Linux driver uses is where its header says")
    func fieldsMatchTheDriver() { check(linuxEvent) }

    @Test("an event record takes 32 bytes")
    func size() {
        #expect(EventRecord.byteCount == 32)
        #expect(EventRecord().words == .zero)
    }

    /// Numbers and names from the specification's list of records.
    static let numbers: [(UInt8, String)] = [
        (0x01, "F_UUT"), (0x02, "C_BAD_STREAMID"), (0x03, "F_STE_FETCH"), (0x04, "C_BAD_STE"),
        (0x05, "F_BAD_ATS_TREQ"), (0x06, "F_STREAM_DISABLED"), (0x07, "F_TRANSL_FORBIDDEN"),
        (0x08, "C_BAD_SUBSTREAMID"), (0x09, "F_CD_FETCH"), (0x0A, "C_BAD_CD"), (0x0B, "F_WALK_EABT"),
        (0x10, "F_TRANSLATION"), (0x11, "F_ADDR_SIZE"), (0x12, "F_ACCESS"), (0x13, "F_PERMISSION"),
        (0x20, "F_TLB_CONFLICT"), (0x21, "F_CFG_CONFLICT"), (0x24, "E_PAGE_REQUEST"), (0x25, "F_VMS_FETCH"),
    ]

    @Test("each event has its number and name")
    func namesMatchTheSpecification() {
        #expect(EventNumber.all.map(\.rawValue) == Self.numbers.map(\.0))
        #expect(EventNumber.all.map(\.name) == Self.numbers.map(\.1))
        #expect(EventNumber(rawValue: 0xE0).name == nil)
        let related = EventNumber.all.filter(\.isTranslationRelated).map(\.name)
        #expect(related == ["F_TRANSLATION", "F_ADDR_SIZE", "F_ACCESS", "F_PERMISSION"])
    }

    /// What each record has beside number and StreamID, from the specification's list.
    static let contents: [(UInt8, [String])] = [
        (0x01, ["SSV", "SubstreamID", "Reason", "PnU", "InD", "RnW", "InputAddr"]),
        (0x02, ["SSV", "SubstreamID"]),
        (0x03, ["SSV", "SubstreamID", "Reason", "GPCF", "FetchAddr"]),
        (0x04, ["SSV", "SubstreamID"]),
        (0x05, ["SSV", "SubstreamID", "InputAddr"]),
        (0x06, ["SSV", "SubstreamID"]),
        (0x07, ["SSV", "SubstreamID", "RnW", "InputAddr"]),
        (0x08, ["SubstreamID"]),
        (0x09, ["SSV", "SubstreamID", "Reason", "GPCF", "FetchAddr"]),
        (0x0A, ["SSV", "SubstreamID"]),
        (
            0x0B,
            [
                "SSV", "SubstreamID", "Reason", "GPCF", "PnU", "InD", "RnW", "S2", "CLASS", "InputAddr",
                "FetchAddr",
            ]
        ),
        (
            0x10,
            ["SSV", "SubstreamID", "STAG", "Stall", "PnU", "InD", "RnW", "S2", "CLASS", "InputAddr", "IPA"]
        ),
        (
            0x13,
            [
                "SSV", "SubstreamID", "STAG", "Stall", "PnU", "InD", "RnW", "S2", "CLASS", "TTRnW",
                "InputAddr",
                "IPA",
            ]
        ),
        (0x20, ["SSV", "SubstreamID", "Reason", "PnU", "InD", "RnW", "S2", "InputAddr", "IPA"]),
        (0x21, ["SSV", "SubstreamID", "Reason"]),
        (0x24, ["SSV", "SubstreamID", "uX", "uW", "uR", "pX", "pW", "pR", "Span", "InputAddr"]),
        (0x25, ["SSV", "SubstreamID", "Reason", "GPCF", "FetchAddr"]),
    ]

    @Test("each event has the fields of its record", arguments: contents)
    func layoutsMatchTheSpecification(_ number: UInt8, _ names: [String]) {
        let layout = EventRecord.layout(for: EventNumber(rawValue: number))
        #expect(layout.map(\.name).filter { $0 != "Event" && $0 != "StreamID" } == names)
        for (lower, upper) in zip(layout, layout.dropFirst()) { #expect(lower.high < upper.low) }
    }

    @Test("whatever a record holds decodes to what the accessors read")
    func decodingNeverTraps() {
        let seed: UInt64 = 0xE7E7
        var random = SplitMix(seed: seed)
        for number in UInt8.min...UInt8.max {
            for _ in 0..<20 {
                var record = EventRecord()
                for word in 0..<4 { record.words[word] = random.nextWord() }
                record.number = EventNumber(rawValue: number)
                for field in record.fields {
                    let mask = UInt64.ones(field.high, field.low)
                    let golden = goldenEvent.first {
                        $0.name == field.name && $0.dword == field.low / 64 && $0.mask == mask
                    }
                    #expect(golden.map { $0.get(record) } == field.value, "\(field), seed \(seed)")
                }
            }
        }
    }

    @Test("a translation fault of a read")
    func translationFault() {
        // Worked out from arm-smmu-v3.h: ID [7:0], SID [63:32], RnW 35, CLASS [41:40] = IN.
        let record = EventRecord.translationRelated(
            .fTranslation,
            streamID: StreamID(0x42),
            substreamID: nil,
            pnu: false,
            ind: false,
            rnw: true,
            s2: false,
            eventClass: .in,
            inputAddress: 0x1000_2000
        )
        #expect(record.words == SIMD4(0x0000_0042_0000_0010, 0x0000_0208_0000_0000, 0x1000_2000, 0))
        #expect(
            record.fields.map(\.description) == [
                "Event [7:0] = 0x10 (F_TRANSLATION)", "SSV [11] = 0x0 (no SubstreamID)",
                "StreamID [63:32] = 0x42", "Stall [95] = 0x0 (terminated)", "PnU [97] = 0x0 (unprivileged)",
                "InD [98] = 0x0 (data)", "RnW [99] = 0x1 (read)", "S2 [103] = 0x0 (stage 1)",
                "CLASS [105:104] = 0x2 (IN)", "InputAddr [191:128] = 0x10002000",
            ]
        )
    }

    @Test("a stalled stage-2 permission fault of a table read")
    func stalledPermissionFault() {
        // STAG [15:0], STALL 31, RnW 35, S2 39, CLASS [41:40] = TT, TT_READ 44; the IPA loses its low 12
        // bits.
        let record = EventRecord.translationRelated(
            .fPermission,
            streamID: StreamID(7),
            substreamID: SubstreamID(3),
            pnu: false,
            ind: false,
            rnw: true,
            s2: true,
            eventClass: .ttd,
            inputAddress: 0xFFFF_0000_1234_5678,
            ipa: 0x8000_1234,
            stag: 0xABCD,
            ttRnW: true
        )
        let golden = SIMD4<UInt64>(0x7_0000_3813, 0x0000_1188_8000_ABCD, 0xFFFF_0000_1234_5678, 0x8000_1000)
        #expect(record.words == golden)
        #expect(record.fields.map(\.name).contains("TTRnW"))
    }

    @Test("an external abort of a table walk")
    func walkExternalAbort() {
        let record = EventRecord.walkExternalAbort(
            streamID: StreamID(7),
            substreamID: SubstreamID(3),
            pnu: true,
            ind: false,
            rnw: false,
            s2: false,
            eventClass: .ttd,
            inputAddress: 0x1000,
            fetchAddress: 0x8000_000C
        )
        #expect(record.words == SIMD4(0x7_0000_380B, 0x0000_0102_0000_0000, 0x1000, 0x8000_0008))
    }

    @Test("configuration errors; C_BAD_SUBSTREAMID has no SSV")
    func configurationErrors() {
        let plain = EventRecord.configuration(.cBadSTE, streamID: StreamID(7), substreamID: nil)
        #expect(plain.words == SIMD4(0x7_0000_0004, 0, 0, 0))
        let bad = EventRecord.configuration(.cBadCD, streamID: StreamID(7), substreamID: SubstreamID(3))
        #expect(bad.words == SIMD4(0x7_0000_380A, 0, 0, 0))
        let substream = EventRecord.configuration(
            .cBadSubstreamID,
            streamID: StreamID(7),
            substreamID: SubstreamID(3)
        )
        #expect(substream.words == SIMD4(0x7_0000_3008, 0, 0, 0))
    }

    @Test("aborted fetches and the rest")
    func otherRecords() {
        let stream = StreamID(7)
        let fetch = EventRecord.fetchAbort(
            .fSTEFetch,
            streamID: stream,
            substreamID: nil,
            fetchAddress: 0x8000_0040,
            reason: 1
        )
        #expect(fetch.words == SIMD4(0x7_0000_0003, 1, 0, 0x8000_0040))
        let unsupported = EventRecord.unsupportedTransaction(
            streamID: stream,
            substreamID: nil,
            pnu: true,
            ind: true,
            rnw: true,
            inputAddress: 0x1000
        )
        #expect(unsupported.words == SIMD4(0x7_0000_0001, 0x0000_000E_0000_0000, 0x1000, 0))
        let request = EventRecord.badATSTranslationRequest(
            streamID: stream,
            substreamID: nil,
            inputAddress: 0x1000
        )
        #expect(request.words == SIMD4(0x7_0000_0005, 0, 0x1000, 0))
        let forbidden = EventRecord.translationForbidden(
            streamID: stream,
            substreamID: nil,
            rnw: true,
            inputAddress: 0x1000
        )
        #expect(forbidden.words == SIMD4(0x7_0000_0007, 0x8_0000_0000, 0x1000, 0))
        let conflict = EventRecord.tlbConflict(
            streamID: stream,
            substreamID: nil,
            pnu: false,
            ind: false,
            rnw: true,
            s2: true,
            inputAddress: 0x1000,
            ipa: 0x2000
        )
        #expect(conflict.words == SIMD4(0x7_0000_0020, 0x88_0000_0000, 0x1000, 0x2000))
        let configuration = EventRecord.configurationConflict(streamID: stream, substreamID: nil, reason: 2)
        #expect(configuration.words == SIMD4(0x7_0000_0021, 2, 0, 0))
        let page = EventRecord.pageRequest(streamID: stream, substreamID: nil, address: 0x1234, span: 5)
        #expect(page.words == SIMD4(0x7_0000_0024, 0x5000_0000_0000, 0x1000, 0))
    }

    @Test("a device's addresses and SubstreamIDs of any size fit a record")
    func foreignValuesAreCut() {
        let record = EventRecord.walkExternalAbort(
            streamID: StreamID(.max),
            substreamID: SubstreamID(.max),
            pnu: true,
            ind: true,
            rnw: true,
            s2: true,
            eventClass: .in,
            inputAddress: .max,
            fetchAddress: .max
        )
        #expect(record.words == SIMD4(0xFFFF_FFFF_FFFF_F80B, 0x28E_0000_0000, .max, 0x00FF_FFFF_FFFF_FFF8))
        let fault = EventRecord.translationRelated(
            .fAddrSize,
            streamID: StreamID(0),
            substreamID: nil,
            pnu: false,
            ind: false,
            rnw: false,
            s2: true,
            eventClass: .in,
            inputAddress: 0,
            ipa: .max
        )
        #expect(fault.words[3] == 0x00FF_FFFF_FFFF_F000)
    }
}

@Suite("Page requests")
struct PRIEntryTests {
    @Test("each field is where the specification says")
    func fieldsMatchTheSpecification() { check(goldenPRIEntry) }

    @Test("each field that the Linux driver uses is where its header says")
    func fieldsMatchTheDriver() { check(linuxPRIEntry) }

    @Test("the table of fields for people agrees with the specification and the accessors")
    func decoderMatchesTheSpecification() { checkDecoder(PRIEntry.layout, goldenPRIEntry) }

    @Test("a page request of a process")
    func request() {
        var entry = PRIEntry()
        entry.streamID = StreamID(0x100)
        entry.substreamID = SubstreamID(5)
        entry.ssv = true
        entry.r = true
        entry.w = true
        entry.last = true
        entry.prgIndex = 0x1FF
        entry.pageAddress = 0x7FFF_1234_5678
        #expect(entry.words == SIMD2(0xF000_0005_0000_0100, 0x7FFF_1234_51FF))
        #expect(PRIEntry.byteCount == 16)
    }

    @Test("a stop marker is Last of a PASID without read or write")
    func stopMarker() {
        #expect(PRIEntry(words: SIMD2(0xC000_0005_0000_0100, 0)).isStopMarker)
        #expect(!PRIEntry(words: SIMD2(0x4000_0005_0000_0100, 0)).isStopMarker)
        #expect(!PRIEntry(words: SIMD2(0xD000_0005_0000_0100, 0)).isStopMarker)
    }
}
