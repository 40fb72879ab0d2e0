// The configuration structures: STE, CD and their first-level descriptors.

import SMMUv3Spec
import Testing

@Suite("Stream table")
struct StreamTableTests {
    @Test("each field is where the specification's table says")
    func fieldsMatchTheSpecification() {
        check(goldenSTE)
        check(goldenL1STD)
    }

    @Test("each field that the Linux driver uses is where its header says")
    func fieldsMatchTheDriver() { check(linuxSTE) }

    @Test("the tables of fields for people agree with the specification and the accessors")
    func decodersMatchTheSpecification() {
        checkDecoder(STE.layout, goldenSTE)
        checkDecoder(L1STD.layout, goldenL1STD)
    }

    @Test("an STE takes 64 bytes and an L1STD 8")
    func sizes() {
        #expect(STE.byteCount == 64)
        #expect(L1STD.byteCount == 8)
        #expect(STE().words == .zero)
        #expect(L1STD().word == 0)
    }

    @Test("the STE with which the Linux driver blocks a stream")
    func abortOfTheDriver() {
        var ste = STE()
        ste.v = true
        ste.config = .abort
        #expect(ste.words == SIMD8(0x1, 0, 0, 0, 0, 0, 0, 0))
        #expect(ste.fields.map(\.description) == ["V [0] = 0x1 (valid)", "Config [3:1] = 0x0 (abort)"])
    }

    @Test("the STE with which the Linux driver bypasses a stream")
    func bypassOfTheDriver() {
        var ste = STE()
        ste.v = true
        ste.config = .bypass
        ste.shCfg = 1
        #expect(ste.words == SIMD8(0x9, 0x0000_1000_0000_0000, 0, 0, 0, 0, 0, 0))
        #expect(
            ste.fields.map(\.description) == [
                "V [0] = 0x1 (valid)", "Config [3:1] = 0x4 (bypass)", "MTCFG [100] = 0x0 (incoming)",
                "ALLOCCFG [104:101] = 0x0 (incoming)", "SHCFG [109:108] = 0x1 (incoming)",
                "PRIVCFG [113:112] = 0x0 (incoming)", "INSTCFG [115:114] = 0x0 (incoming)",
            ]
        )
    }

    @Test("the STE with which the Linux driver translates in stage 1, with ATS and no stalls")
    func stage1OfTheDriver() {
        // V, CFG 5, S1CTXPTR; S1DSS SSID0, S1CIR and S1COR WBRA, S1CSH ISH, S1STALLD, EATS TRANS.
        let golden = STE(words: SIMD8(0x8000_100B, 0x1800_00D6, 0, 0, 0, 0, 0, 0))
        var ste = STE()
        ste.v = true
        ste.config = .stage1
        ste.s1ContextPtr = 0x8000_1000
        ste.s1DSS = 2
        ste.s1CIR = 1
        ste.s1COR = 1
        ste.s1CSH = 3
        ste.s1STALLD = true
        ste.eats = 1
        #expect(ste == golden)
        #expect(golden.config == .stage1)
        #expect(golden.s1ContextPtr == 0x8000_1000)
        let names = golden.fields.map(\.name)
        #expect(names.contains("S2VMID"))
        #expect(!names.contains("S2TTB"))
        #expect(!names.contains("S1Fmt"))
    }

    @Test("the STE with which the Linux driver translates in stage 1 with a two-level CD table at EL2-E2H")
    func stage1WithSubstreamsOfTheDriver() {
        // S1FMT 2, S1CDMAX 20; STRW EL2.
        let golden = STE(
            words: SIMD8(0xA000_0000_8000_102B, 0x8000_00D6, 0, 0, 0, 0, 0, 0)
        )
        var ste = STE()
        ste.v = true
        ste.config = .stage1
        ste.s1Fmt = 2
        ste.s1ContextPtr = 0x8000_1000
        ste.s1CDMax = 20
        ste.s1DSS = 2
        ste.s1CIR = 1
        ste.s1COR = 1
        ste.s1CSH = 3
        ste.strw = 2
        #expect(ste == golden)
        let meanings = golden.fields.compactMap(\.meaning)
        #expect(meanings.contains("2-level, 64 KiB tables"))
        #expect(meanings.contains("1048576 CDs"))
        #expect(meanings.contains("EL2"))
    }

    @Test("the STE with which the Linux driver translates in stage 2")
    func stage2OfTheDriver() {
        // 40-bit IPA from level 1 with 4 KiB pages, write-back, inner shareable, S2PTW and S2R.
        let golden = STE(
            words: SIMD8(0xD, 0x0000_1000_0000_0000, 0x044A_3558_0000_0001, 0x4_2000_0000, 0, 0, 0, 0)
        )
        var ste = STE()
        ste.v = true
        ste.config = .stage2
        ste.shCfg = 1
        ste.s2VMID = 1
        ste.s2T0SZ = 24
        ste.s2SL0 = 1
        ste.s2IR0 = 1
        ste.s2OR0 = 1
        ste.s2SH0 = 3
        ste.s2TG = Granule.kib4.s2TG
        ste.s2PS = 2
        ste.s2AA64 = true
        ste.s2PTW = true
        ste.s2R = true
        ste.s2TTB = 0x4_2000_0000
        #expect(ste == golden)
        let fields = golden.fields.map(\.description)
        #expect(fields.contains("S2T0SZ [165:160] = 0x18 (40-bit IPA)"))
        #expect(fields.contains("S2PS [178:176] = 0x2 (40 bits)"))
        #expect(fields.contains("S2TTB [243:196] = 0x420000000"))
        #expect(!fields.contains { $0.hasPrefix("S1") })
    }

    @Test("an invalid STE shows no more than that")
    func invalidDecodesToLittle() {
        let ste = STE(words: SIMD8(0xFFFF_FFFF_FFFF_FFFE, .max, .max, .max, .max, .max, .max, .max))
        #expect(ste.fields.map(\.name) == ["V", "Config"])
        #expect(L1STD(word: 0x8000_0000).fields.map(\.description) == ["Span [4:0] = 0x0 (invalid)"])
    }

    @Test("the L1STD that the Linux driver writes for 256 STEs")
    func firstLevelOfTheDriver() {
        var descriptor = L1STD()
        descriptor.span = 9
        descriptor.l2Ptr = 0x8010_0000
        #expect(descriptor.word == 0x8010_0009)
        #expect(
            descriptor.fields.map(\.description) == [
                "Span [4:0] = 0x9 (256 STEs)", "L2Ptr [55:6] = 0x80100000",
            ]
        )
    }

    @Test("Config selects stages by its bits, whatever they hold")
    func configPredicates() {
        let configs = (UInt8(0)...7).map(StreamConfig.init(rawValue:))
        #expect(configs.map(\.abortsSilently) == [true, true, true, true, false, false, false, false])
        #expect(configs.map(\.translatesStage1) == [false, false, false, false, false, true, false, true])
        #expect(configs.map(\.translatesStage2) == [false, false, false, false, false, false, true, true])
    }

    @Test("STRW selects the StreamWorld of a Non-secure stage-1 stream")
    func streamWorlds() {
        #expect(StreamWorld(strw: 0b00, e2H: true) == .nsEL1)
        #expect(StreamWorld(strw: 0b10, e2H: false) == .nsEL2)
        #expect(StreamWorld(strw: 0b10, e2H: true) == .nsEL2E2H)
        #expect(StreamWorld(strw: 0b01, e2H: false) == nil)
        #expect(StreamWorld(strw: 0b11, e2H: true) == nil)
        #expect(StreamWorld.nsEL2E2H.hasTwoRanges)
        #expect(!StreamWorld.nsEL2.hasTwoRanges)
    }

    @Test("a stage-2 overlay permission is read by its index")
    func overlayPermissions() {
        var ste = STE()
        ste.words[7] = 0xFEDC_BA98_7654_3210
        #expect((0..<16).map { ste.s2POI(at: $0) } == Array(0...15))
        #expect(ste.s2POI(at: -1) == 15)
    }
}

@Suite("Context descriptors")
struct ContextDescriptorTests {
    @Test("each field is where the specification's table says")
    func fieldsMatchTheSpecification() {
        check(goldenCD)
        check(goldenL1CD)
    }

    @Test("each field that the Linux driver uses is where its header says")
    func fieldsMatchTheDriver() { check(linuxCD) }

    @Test("the tables of fields for people agree with the specification and the accessors")
    func decodersMatchTheSpecification() {
        checkDecoder(CD.layout, goldenCD)
        checkDecoder(L1CD.layout, goldenL1CD)
    }

    @Test("a CD takes 64 bytes and an L1CD 8")
    func sizes() {
        #expect(CD.byteCount == 64)
        #expect(L1CD.byteCount == 8)
        #expect(CD().words == .zero)
        #expect(L1CD().word == 0)
    }

    @Test("the CD of a Linux stage-1 domain")
    func domainOfTheDriver() {
        // 48-bit addresses with 4 KiB pages, write-back, inner shareable, EPD1, 48-bit output, R, A, ASET,
        // ASID 1.
        let golden = CD(
            words: SIMD8(0x0001_E205_C000_3510, 0x8000_2000, 0, 0xF404_FF44, 0, 0, 0, 0)
        )
        var cd = CD()
        cd.t0SZ = 16
        cd.tg0 = Granule.kib4.tg0
        cd.ir0 = 1
        cd.or0 = 1
        cd.sh0 = 3
        cd.epd1 = true
        cd.v = true
        cd.ips = 5
        cd.aa64 = true
        cd.r = true
        cd.a = true
        cd.aset = true
        cd.asid = 1
        cd.ttb0 = 0x8000_2000
        cd.mair = 0xF404_FF44
        #expect(cd == golden)
        #expect(golden.mair0 == 0xF404_FF44)
        #expect((0..<4).map { golden.mair(at: $0) } == [0x44, 0xFF, 0x04, 0xF4])
        let fields = golden.fields.map(\.description)
        #expect(fields.contains("T0SZ [5:0] = 0x10 (48-bit addresses)"))
        #expect(fields.contains("TTB0 [115:68] = 0x80002000"))
        #expect(
            fields.contains(
                "MAIR0 [223:192] = 0xf404ff44 (NC, WB RA WA, Device-nGnRE, inner NC, outer WB RA WA)"
            )
        )
        #expect(!fields.contains { $0.hasPrefix("T1SZ") })
    }

    @Test("an invalid CD shows no more than that")
    func invalidDecodesToLittle() {
        let cd = CD(words: SIMD8(0xFFFF_FFFF_7FFF_FFFF, .max, .max, .max, .max, .max, .max, .max))
        #expect(cd.fields.map(\.name) == ["V"])
        #expect(L1CD(word: 0x8000_0000).fields.map(\.description) == ["V [0] = 0x0 (invalid)"])
    }

    @Test("the L1CD that the Linux driver writes")
    func firstLevelOfTheDriver() {
        var descriptor = L1CD()
        descriptor.v = true
        descriptor.l2Ptr = 0x8020_0000
        #expect(descriptor.word == 0x8020_0001)
    }

    @Test("base permissions are read by their index")
    func basePermissions() {
        var cd = CD()
        // Octal digits are the three-bit elements, the highest index first.
        cd.words[6] = 0o7654_3210_0123_4567
        cd.words[7] = 0o0123_4567_7654_3210
        #expect((0..<16).map { cd.piiu(at: $0) } == [7, 6, 5, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7])
        #expect((0..<16).map { cd.piip(at: $0) } == [0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0])
    }
}
