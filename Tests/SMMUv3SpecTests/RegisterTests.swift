// The registers' words and map.

import SMMUv3Spec
import SeededRandomness
import Testing

@Suite("Register words")
struct RegisterWordTests {
    @Test("each field is where the specification's tables say")
    func fieldsMatchTheSpecification() {
        check(goldenIDR0)
        check(goldenIDR1)
        check(goldenIDR2)
        check(goldenIDR3)
        check(goldenIDR5)
        check(goldenIDR6)
        check(goldenIIDR)
        check(goldenAIDR)
        check(goldenCR0)
        check(goldenCR1)
        check(goldenCR2)
        check(goldenSTATUSR)
        check(goldenGBPA)
        check(goldenAGBPA)
        check(goldenIRQCtrl)
        check(goldenGError)
        check(goldenIRQCfg0)
        check(goldenIRQCfg1)
        check(goldenIRQCfg2)
        check(goldenStrtabBase)
        check(goldenStrtabBaseCfg)
        check(goldenQueueBase)
        check(goldenCmdqProd)
        check(goldenCmdqCons)
        check(goldenOutputQueueProd)
        check(goldenOutputQueueCons)
        check(goldenCmdqControlPageBase)
        check(goldenECMDQProd)
        check(goldenECMDQCons)
        check(goldenGATOSCtrl)
        check(goldenGATOSSid)
        check(goldenGATOSAddr)
        check(goldenGATOSPar)
        check(goldenVATOSSel)
        check(goldenPMCGEvtyper)
        check(goldenPMCGSmr)
        check(goldenPMCGCfgr)
        check(goldenPMCGCr)
        check(goldenPMCGCapr)
        check(goldenPMCGScr)
        check(goldenPMCGIRQCtrl)
        check(goldenPMCGIRQStatus)
        check(goldenMPAMIDR)
        check(goldenGMPAM)
        check(goldenGBPMPAM)
    }

    @Test("each field that the Linux driver uses is where its header says")
    func fieldsMatchTheDriver() {
        check(linuxIDR0)
        check(linuxIDR1)
        check(linuxIDR3)
        check(linuxIDR5)
        check(linuxIIDR)
        check(linuxCR0)
        check(linuxCR1)
        check(linuxCR2)
        check(linuxGBPA)
        check(linuxIRQCtrl)
        check(linuxGError)
        check(linuxStrtabBaseCfg)
        check(linuxQueueBase)
        check(linuxCmdqCons)
    }

    @Test("each table of fields for people agrees with the specification and the accessors")
    func decodersMatchTheSpecification() {
        checkDecoder(IDR0.layout, goldenIDR0)
        checkDecoder(IDR1.layout, goldenIDR1)
        checkDecoder(IDR2.layout, goldenIDR2)
        checkDecoder(IDR3.layout, goldenIDR3)
        checkDecoder(IDR5.layout, goldenIDR5)
        checkDecoder(IDR6.layout, goldenIDR6)
        checkDecoder(IIDR.layout, goldenIIDR)
        checkDecoder(AIDR.layout, goldenAIDR)
        checkDecoder(CR0.layout, goldenCR0)
        checkDecoder(CR1.layout, goldenCR1)
        checkDecoder(CR2.layout, goldenCR2)
        checkDecoder(STATUSR.layout, goldenSTATUSR)
        checkDecoder(GBPA.layout, goldenGBPA)
        checkDecoder(AGBPA.layout, goldenAGBPA)
        checkDecoder(IRQCtrl.layout, goldenIRQCtrl)
        checkDecoder(GError.layout, goldenGError)
        checkDecoder(IRQCfg0.layout, goldenIRQCfg0)
        checkDecoder(IRQCfg1.layout, goldenIRQCfg1)
        checkDecoder(IRQCfg2.layout, goldenIRQCfg2)
        checkDecoder(StrtabBase.layout, goldenStrtabBase)
        checkDecoder(StrtabBaseCfg.layout, goldenStrtabBaseCfg)
        checkDecoder(QueueBase.layout, goldenQueueBase)
        checkDecoder(CmdqProd.layout, goldenCmdqProd)
        checkDecoder(CmdqCons.layout, goldenCmdqCons)
        checkDecoder(OutputQueueProd.layout, goldenOutputQueueProd)
        checkDecoder(OutputQueueCons.layout, goldenOutputQueueCons)
        checkDecoder(CmdqControlPageBase.layout, goldenCmdqControlPageBase)
        checkDecoder(ECMDQProd.layout, goldenECMDQProd)
        checkDecoder(ECMDQCons.layout, goldenECMDQCons)
        checkDecoder(GATOSCtrl.layout, goldenGATOSCtrl)
        checkDecoder(GATOSSid.layout, goldenGATOSSid)
        checkDecoder(GATOSAddr.layout, goldenGATOSAddr)
        checkDecoder(VATOSSel.layout, goldenVATOSSel)
        checkDecoder(PMCGEvtyper.layout, goldenPMCGEvtyper)
        checkDecoder(PMCGCfgr.layout, goldenPMCGCfgr)
        checkDecoder(PMCGCr.layout, goldenPMCGCr)
        checkDecoder(PMCGCapr.layout, goldenPMCGCapr)
        checkDecoder(PMCGScr.layout, goldenPMCGScr)
        checkDecoder(PMCGIRQCtrl.layout, goldenPMCGIRQCtrl)
        checkDecoder(PMCGIRQStatus.layout, goldenPMCGIRQStatus)
        checkDecoder(MPAMIDR.layout, goldenMPAMIDR)
        checkDecoder(GMPAM.layout, goldenGMPAM)
        checkDecoder(GBPMPAM.layout, goldenGBPMPAM)
    }

    @Test("a SMRn holds one StreamID, or a PARTID and a PMG in the same bits")
    func filterDecodesAsStream() {
        #expect(PMCGSmr.layout.map(\.name) == ["STREAMID"])
        #expect(PMCGSmr(rawValue: 0x00AB_1234).fields.map(\.value) == [0x00AB_1234])
    }

    @Test("GATOS_PAR shows the translation or the failure")
    func translationResultDecodesByFault() {
        // ATTR 0xFF, ADDR 0x80001000, SH 3.
        let done = GATOSPar(rawValue: 0xFF00_0000_8000_1300)
        #expect(
            done.fields.map(\.description) == [
                "FAULT [0] = 0x0 (translated)", "SH [9:8] = 0x3 (ISH)", "Size [11] = 0x0 (4 KiB)",
                "ADDR [55:12] = 0x80001000", "ATTR [63:56] = 0xff (WB RA WA)",
            ]
        )
        // FADDR 0x80001000, FAULTCODE 0x10, REASON 3, FAULT.
        let failed = GATOSPar(rawValue: 0x0000_0000_8000_1107)
        #expect(
            failed.fields.map(\.description) == [
                "FAULT [0] = 0x1 (failed)", "REASON [2:1] = 0x3 (stage 2 of the input)",
                "FAULTCODE [11:4] = 0x10 (F_TRANSLATION)", "FADDR [55:12] = 0x80001000",
            ]
        )
    }

    @Test("the values that the Linux driver writes at reset")
    func resetValuesOfTheDriver() {
        var cr1 = CR1()
        cr1.tableSH = 3
        cr1.tableOC = 1
        cr1.tableIC = 1
        cr1.queueSH = 3
        cr1.queueOC = 1
        cr1.queueIC = 1
        #expect(cr1.rawValue == 0xD75)
        var cr2 = CR2()
        cr2.ptm = true
        cr2.recinvsid = true
        #expect(cr2.rawValue == 0x6)
        var base = QueueBase()
        base.addr = 0x8010_0000
        base.log2size = 8
        base.hint = true
        #expect(base.rawValue == 0x4000_0000_8010_0008)
        var shape = StrtabBaseCfg()
        shape.fmt = 1
        shape.split = 8
        shape.log2size = 16
        #expect(shape.rawValue == 0x1_0210)
        var enables = CR0()
        enables.smmuen = true
        enables.cmdqen = true
        enables.eventqen = true
        #expect(enables.rawValue == 0xD)
    }

    @Test("an address field drops what lies outside it")
    func addressesAreCutToTheirField() {
        var base = StrtabBase()
        base.addr = .max
        #expect(base.rawValue == 0x00FF_FFFF_FFFF_FFC0)
    }
}

@Suite("Register map")
struct RegisterMapTests {
    /// Names and offsets from the specification's memory map; the driver's header has the same.
    static let offsets: [(String, UInt64, Int)] = [
        ("SMMU_IDR0", 0x0, 4), ("SMMU_IDR1", 0x4, 4), ("SMMU_IDR2", 0x8, 4), ("SMMU_IDR3", 0xC, 4),
        ("SMMU_IDR4", 0x10, 4), ("SMMU_IDR5", 0x14, 4), ("SMMU_IIDR", 0x18, 4), ("SMMU_AIDR", 0x1C, 4),
        ("SMMU_CR0", 0x20, 4), ("SMMU_CR0ACK", 0x24, 4), ("SMMU_CR1", 0x28, 4), ("SMMU_CR2", 0x2C, 4),
        ("SMMU_S2PII", 0x30, 8), ("SMMU_STATUSR", 0x40, 4), ("SMMU_GBPA", 0x44, 4), ("SMMU_AGBPA", 0x48, 4),
        ("SMMU_IRQ_CTRL", 0x50, 4), ("SMMU_IRQ_CTRLACK", 0x54, 4), ("SMMU_GERROR", 0x60, 4),
        ("SMMU_GERRORN", 0x64, 4), ("SMMU_GERROR_IRQ_CFG0", 0x68, 8), ("SMMU_GERROR_IRQ_CFG1", 0x70, 4),
        ("SMMU_GERROR_IRQ_CFG2", 0x74, 4), ("SMMU_STRTAB_BASE", 0x80, 8), ("SMMU_STRTAB_BASE_CFG", 0x88, 4),
        ("SMMU_CMDQ_BASE", 0x90, 8), ("SMMU_CMDQ_PROD", 0x98, 4), ("SMMU_CMDQ_CONS", 0x9C, 4),
        ("SMMU_EVENTQ_BASE", 0xA0, 8), ("SMMU_EVENTQ_IRQ_CFG0", 0xB0, 8), ("SMMU_EVENTQ_IRQ_CFG1", 0xB8, 4),
        ("SMMU_EVENTQ_IRQ_CFG2", 0xBC, 4), ("SMMU_PRIQ_BASE", 0xC0, 8), ("SMMU_PRIQ_IRQ_CFG0", 0xD0, 8),
        ("SMMU_PRIQ_IRQ_CFG1", 0xD8, 4), ("SMMU_PRIQ_IRQ_CFG2", 0xDC, 4), ("SMMU_GATOS_CTRL", 0x100, 4),
        ("SMMU_GATOS_SID", 0x108, 8), ("SMMU_GATOS_ADDR", 0x110, 8), ("SMMU_GATOS_PAR", 0x118, 8),
        ("SMMU_MPAMIDR", 0x130, 4), ("SMMU_GMPAM", 0x138, 4), ("SMMU_GBPMPAM", 0x13C, 4),
        ("SMMU_VATOS_SEL", 0x180, 4), ("SMMU_IDR6", 0x190, 4), ("SMMU_DPT_BASE", 0x200, 8),
        ("SMMU_DPT_BASE_CFG", 0x208, 4), ("SMMU_DPT_CFG_FAR", 0x210, 8), ("SMMU_PIDR4", 0xFD0, 4),
        ("SMMU_PIDR5", 0xFD4, 4), ("SMMU_PIDR6", 0xFD8, 4), ("SMMU_PIDR7", 0xFDC, 4),
        ("SMMU_PIDR0", 0xFE0, 4),
        ("SMMU_PIDR1", 0xFE4, 4), ("SMMU_PIDR2", 0xFE8, 4), ("SMMU_PIDR3", 0xFEC, 4),
        ("SMMU_CIDR0", 0xFF0, 4),
        ("SMMU_CIDR1", 0xFF4, 4), ("SMMU_CIDR2", 0xFF8, 4), ("SMMU_CIDR3", 0xFFC, 4),
        ("SMMU_EVENTQ_PROD", 0x1_00A8, 4), ("SMMU_EVENTQ_CONS", 0x1_00AC, 4), ("SMMU_PRIQ_PROD", 0x1_00C8, 4),
        ("SMMU_PRIQ_CONS", 0x1_00CC, 4),
    ]

    @Test("every register is where the specification's map has it")
    func offsetsMatchTheSpecification() {
        #expect(RegisterMap.all.map(\.name) == Self.offsets.map(\.0))
        #expect(RegisterMap.all.map(\.offset) == Self.offsets.map(\.1))
        #expect(RegisterMap.all.map(\.byteCount) == Self.offsets.map(\.2))
    }

    @Test("the constants lead to the registers of their name")
    func constantsNameTheirRegisters() {
        #expect(RegisterOffset.cr0 == 0x20)
        #expect(RegisterOffset.gbpa == 0x44)
        #expect(RegisterOffset.strtabBaseCfg == 0x88)
        #expect(RegisterOffset.cmdqCons == 0x9C)
        #expect(RegisterOffset.eventqProd == 0x100A8)
        #expect(RegisterOffset.eventqCons == 0x100AC)
        #expect(RegisterOffset.priqProd == 0x100C8)
        #expect(RegisterOffset.priqCons == 0x100CC)
        #expect(RegisterOffset.cmdqControlPageBase(2) == 0x4040)
        #expect(RegisterOffset.cmdqControlPageCfg(2) == 0x4048)
        #expect(RegisterOffset.cmdqControlPageStatus(2) == 0x404C)
        #expect(SecureRegisterOffset.sInit == 0x803C)
        #expect(SecureRegisterOffset.sEventqProd == 0x80A8)
        #expect(VATOSRegisterOffset.par == 0xA18)
        #expect(ECMDQRegisterOffset.cons == 0xC)
    }

    @Test("no two registers share a byte", arguments: [RegisterMap.all, PMCGRegisterMap.all])
    func registersDoNotOverlap(_ map: [RegisterInfo]) {
        for (lower, upper) in zip(map, map.dropFirst()) {
            #expect(lower.offset + UInt64(lower.byteCount) <= upper.offset, "\(lower.name), \(upper.name)")
        }
    }

    @Test("a register is found whatever the case and with or without the prefix")
    func lookupByName() {
        #expect(RegisterMap.register(named: "SMMU_CR0")?.offset == 0x20)
        #expect(RegisterMap.register(named: "cr0")?.offset == 0x20)
        #expect(RegisterMap.register(named: "smmu_Gerror_irq_cfg0")?.byteCount == 8)
        #expect(RegisterMap.register(named: "CR9") == nil)
        #expect(RegisterMap.register(named: "") == nil)
        #expect(PMCGRegisterMap.register(named: "cfgr")?.offset == 0xE00)
    }

    @Test("a register is found by any of its bytes")
    func lookupByOffset() {
        #expect(RegisterMap.register(at: 0x84)?.name == "SMMU_STRTAB_BASE")
        #expect(RegisterMap.register(at: 0x88)?.name == "SMMU_STRTAB_BASE_CFG")
        #expect(RegisterMap.register(at: 0x8C) == nil)
        #expect(RegisterMap.register(at: .max) == nil)
    }

    @Test("a value decodes by the register's offset")
    func decodingByOffset() {
        let fields = RegisterMap.fields(at: RegisterOffset.cr0, value: 0xD)
        #expect(
            fields.map(\.description) == [
                "SMMUEN [0] = 0x1 (on)", "PRIQEN [1] = 0x0 (off)", "EVENTQEN [2] = 0x1 (on)",
                "CMDQEN [3] = 0x1 (on)", "ATSCHK [4] = 0x0 (translated traffic passes)",
                "VMW [8:6] = 0x0 (exact VMID)",
            ]
        )
        #expect(RegisterMap.fields(at: 0x48C, value: 1).isEmpty)
    }

    @Test("no value of any register stops the decoder")
    func decodingNeverTraps() {
        let seed: UInt64 = 0x0FF5E7
        var random = SplitMix(seed: seed)
        for register in RegisterMap.all {
            for _ in 0..<100 {
                let value = random.nextWord()
                for field in RegisterMap.fields(at: register.offset, value: value) {
                    #expect(!field.name.isEmpty, "\(register.name) \(value), seed \(seed)")
                }
            }
        }
    }
}

@Suite("PMCG registers")
struct PMCGRegisterTests {
    /// Names and offsets from the specification's memory map.
    static let offsets: [(String, UInt64)] = [
        ("EVCNTR0", 0x0), ("EVTYPER0", 0x400), ("SVR0", 0x600), ("SMR0", 0xA00), ("CNTENSET0", 0xC00),
        ("CNTENCLR0", 0xC20), ("INTENSET0", 0xC40), ("INTENCLR0", 0xC60), ("OVSCLR0", 0xC80),
        ("OVSSET0", 0xCC0),
        ("CAPR", 0xD88), ("SCR", 0xDF8), ("CFGR", 0xE00), ("CR", 0xE04), ("IIDR", 0xE08), ("CEID0", 0xE20),
        ("CEID1", 0xE28), ("ROOTCR", 0xE48), ("IRQ_CTRL", 0xE50), ("IRQ_CTRLACK", 0xE54), ("IRQ_CFG0", 0xE58),
        ("IRQ_CFG1", 0xE60), ("IRQ_CFG2", 0xE64), ("IRQ_STATUS", 0xE68), ("GMPAM", 0xE6C), ("AIDR", 0xE70),
        ("MPAMIDR", 0xE74), ("S_MPAMIDR", 0xE78), ("PMDEVARCH", 0xFBC), ("PMDEVTYPE", 0xFCC),
    ]

    @Test("every register is where the specification's map has it", arguments: offsets)
    func offsetsMatchTheSpecification(_ name: String, _ offset: UInt64) {
        #expect(PMCGRegisterMap.register(named: name)?.offset == offset)
    }

    @Test("the registers of the other counters follow at their stride")
    func countersFollowAtTheirStride() {
        #expect(PMCGRegisterOffset.evcntr(3, stride: 4) == 0xC)
        #expect(PMCGRegisterOffset.evcntr(3, stride: 8) == 0x18)
        #expect(PMCGRegisterOffset.svr(3, stride: 8) == 0x618)
        #expect(PMCGRegisterOffset.evtyper(3) == 0x40C)
        #expect(PMCGRegisterOffset.smr(63) == 0xAFC)
    }
}
