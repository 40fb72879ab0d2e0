// One translation, step by step, with or without QEMU's ways.

import SMMUv3Spec

/// How one stage's tables are read.
private struct PlainStage {
    var shape: StageShape
    var base: UInt64
    var isStage2: Bool
    var affd: Bool
    var had = false
}

/// A terminated access.
private struct PlainFault: Error {
    var number: UInt64
    var isStage2 = false
    /// 0 CD, 1 TT, 2 IN.
    var eventClass: UInt64 = 2
    /// IPA or FetchAddr.
    var address: UInt64 = 0
    /// The fault is one of the first table's, or of the CD's.
    var isStructure = false
    var isAlwaysRecorded = false
    /// An abort that is never recorded.
    var isSilent = false
}

/// An STE that is none for the referee.
private struct UnknownStructure: Error {}

/// The walk of one DMA.
struct RefereeWalk {
    let ram: GuestRAM
    let ste: STE
    let quirks: Quirks
    let dma: DMA
    private var cd = CD()

    init(ram: GuestRAM, ste: STE, quirks: Quirks, dma: DMA) {
        (self.ram, self.ste, self.quirks, self.dma) = (ram, ste, quirks, dma)
    }

    private static let sizes = [32, 36, 40, 42, 44, 44, 44, 44]

    /// How the DMA ends; nil where this does not know its structures.
    mutating func outcome(_ index: Int) -> DMAOutcome? {
        var result = DMAOutcome()
        do {
            guard let output = try translate() else { return nil }
            if dma.isWrite {
                result.landing = ram.load32(output) != nil && output >= Layout.streamTable ? output : nil
            } else {
                result.word = ram.load32(output) ?? 0
            }
        } catch let fault as PlainFault {
            if isRecorded(fault) { result.records = [record(fault)] }
        } catch {
            return nil
        }
        return result
    }

    // MARK: Records

    private func isRecorded(_ fault: PlainFault) -> Bool {
        if fault.isSilent { return false }
        // F_WALK_EABT, and what is no translation's.
        if fault.number == 0x0B || fault.isAlwaysRecorded { return true }
        if !fault.isStage2 { return cd.r }
        if quirks.contains(.tableFaultAsStage1), fault.eventClass == 1, !fault.isStructure { return cd.r }
        return ste.s2R
    }

    private func record(_ fault: PlainFault) -> EventRecord {
        var record = EventRecord()
        record.words[0] = fault.number | UInt64(Layout.streams[dma.requester]) << 32
        if fault.number == 0x09 {
            record.words[quirks.contains(.cdFetchAddressEarly) ? 2 : 3] = fault.address
            return record
        }
        if fault.number == 0x0A { return record }
        var isRead = !dma.isWrite
        if quirks.contains(.structureFaultReads), fault.isStructure, fault.isStage2 { isRead = true }
        var isStage2 = fault.isStage2
        if quirks.contains(.tableFaultAsStage1), fault.eventClass == 1, !fault.isStructure {
            isStage2 = false
        }
        record.words[1] = (isRead ? 1 : 0) << 35 | (isStage2 ? 1 : 0) << 39 | fault.eventClass << 40
        if fault.number == 0x13, fault.eventClass == 1, !quirks.contains(.ttRnWZero) {
            record.words[1] |= 1 << 44
        }
        record.words[2] = dma.address
        let isWhole = quirks.contains(.wholeIPA) && fault.number != 0x0B
        record.words[3] = isWhole ? fault.address : fault.address & (fault.number == 0x0B ? ~7 : ~0xFFF)
        return record
    }

    // MARK: Translation

    private mutating func translate() throws -> UInt64? {
        var address = dma.address
        if ste.config.translatesStage1 {
            guard try fetchContext() else { return nil }
            guard let output = try first(address) else { return nil }
            address = output
        } else if address >> 44 != 0 {
            throw PlainFault(
                number: 0x11,
                isAlwaysRecorded: true,
                isSilent: quirks.contains(.beyondIASAsStage1)
            )
        }
        guard ste.config.translatesStage2 else { return address }
        return try second(address, eventClass: 2)
    }

    private mutating func fetchContext() throws -> Bool {
        var address = ste.s1ContextPtr
        if ste.config.translatesStage2 { address = try second(address, eventClass: 0, isStructure: true) }
        for index in 0..<8 {
            guard let word = ram.load64(address + UInt64(index) * 8) else {
                throw PlainFault(number: 0x09, address: address, isAlwaysRecorded: true)
            }
            cd.words[index] = word
        }
        try checkContext()
        return true
    }

    /// C_BAD_CD where the CD is not valid, in both halves whichever is used.
    ///
    /// QEMU translates TTB0 before it looks at the other half: a stage-2 fault there comes before what is wrong here.
    private func checkContext() throws {
        let bad = PlainFault(number: 0x0A, isAlwaysRecorded: true)
        guard cd.v, cd.aa64, cd.a, !cd.s, !cd.ha, !cd.hd else { throw bad }
        let isRootTranslated = quirks.contains(.rootTranslatedWithCD) && ste.config.translatesStage2
        for isUpper in [false, true] where !(isUpper ? cd.epd1 : cd.epd0) {
            guard !cd.endi, let stage = stage1(isUpper: isUpper),
                stage.base >> UInt64(stage.shape.outputBits) == 0
            else {
                throw bad
            }
            if isRootTranslated { _ = try second(stage.base, eventClass: 1, isStructure: true) }
        }
    }

    private func stage1(isUpper: Bool) -> PlainStage? {
        let size = Int(isUpper ? cd.t1SZ : cd.t0SZ)
        let granule = isUpper ? [0, 14, 12, 16][Int(cd.tg1)] : [12, 16, 14, 0][Int(cd.tg0)]
        guard granule != 0, (16...39).contains(size) else { return nil }
        let shape = StageShape.stage1(
            granule: granule,
            inputBits: 64 - size,
            outputBits: Self.sizes[Int(cd.ips)]
        )
        return PlainStage(
            shape: shape,
            base: isUpper ? cd.ttb1 : cd.ttb0,
            isStage2: false,
            affd: cd.affd,
            had: isUpper ? cd.had1 : cd.had0
        )
    }

    /// Stage 1; nil where the CD is not one that this knows.
    private func first(_ address: UInt64) throws -> UInt64? {
        let isUpper = address >> 55 & 1 == 1
        guard !(isUpper ? cd.epd1 : cd.epd0) else { throw PlainFault(number: 0x10) }
        guard let stage = stage1(isUpper: isUpper) else { return nil }
        let ignoresTop = isUpper && !quirks.contains(.tbi0ForBoth) ? cd.tbi1 : cd.tbi0
        for bit in stage.shape.inputBits...(ignoresTop ? 55 : 63) {
            guard address >> UInt64(bit) & 1 == (isUpper ? 1 : 0) else { throw PlainFault(number: 0x10) }
        }
        return try walk(stage, address & ((1 << UInt64(stage.shape.inputBits)) - 1), eventClass: 2)
    }

    private func second(_ address: UInt64, eventClass: UInt64, isStructure: Bool = false) throws -> UInt64 {
        let granule = [12, 16, 14, 12][Int(ste.s2TG)]
        let levels = granule == 12 ? [2, 1, 0, 3] : [3, 2, 1, 0]
        let shape = StageShape(
            granule: granule,
            inputBits: 64 - Int(ste.s2T0SZ),
            startLevel: levels[Int(ste.s2SL0)],
            outputBits: Self.sizes[Int(ste.s2PS)]
        )
        guard (1...(granule + 1)).contains(shape.startBits), ste.s2TG != 3 else { throw UnknownStructure() }
        let stage = PlainStage(shape: shape, base: ste.s2TTB, isStage2: true, affd: ste.s2AFFD)
        let limit = eventClass == 1 ? Self.sizes[Int(cd.ips)] : 44
        if address >> UInt64(limit) != 0, quirks.contains(.beyondIASAsStage1) {
            throw PlainFault(number: 0x11, eventClass: eventClass, address: address)
        }
        guard address >> UInt64(shape.inputBits) == 0 else {
            throw PlainFault(
                number: 0x10,
                isStage2: true,
                eventClass: eventClass,
                address: address,
                isStructure: isStructure
            )
        }
        return try walk(stage, address, eventClass: eventClass, isStructure: isStructure)
    }

    // MARK: Tables

    /// What a walk has collected on its way.
    private struct Way {
        var stage: PlainStage
        var input: UInt64
        var eventClass: UInt64
        var isStructure: Bool
        var tables: UInt64 = 0

        func fault(_ number: UInt64) -> PlainFault {
            PlainFault(
                number: number,
                isStage2: stage.isStage2,
                eventClass: eventClass,
                address: stage.isStage2 ? input : 0,
                isStructure: isStructure
            )
        }
    }

    private func walk(
        _ stage: PlainStage,
        _ input: UInt64,
        eventClass: UInt64,
        isStructure: Bool = false
    ) throws -> UInt64 {
        var way = Way(stage: stage, input: input, eventClass: eventClass, isStructure: isStructure)
        let shape = stage.shape
        var table = stage.base
        for level in shape.startLevel...3 {
            let isFirst = level == shape.startLevel
            var bits = isFirst ? shape.startBits : shape.granule - 3
            if isFirst, !isNestedFirst(stage) { table &= ~(shape.startBytes - 1) }
            if isFirst, quirks.contains(.firstTableAlone), shape.isConcatenated {
                bits = shape.granule - 3
                let number = input >> UInt64(shape.shift(level) + bits)
                table = (stage.base + (number << UInt64(shape.granule))) & ~(shape.startBytes - 1)
            }
            let low = UInt64(shape.shift(level))
            let index = (input >> low) & ((1 << UInt64(bits)) - 1)
            let word = try fetch(way, table, index * 8, isFirst)
            let isTable = level < 3 && word & 3 == 3
            let isBlock =
                level < 3 && word & 3 == 1
                && (shape.hasBlocks(level) || quirks.contains(.blocksEverywhere))
            guard isTable || isBlock || level == 3 && word & 3 == 3 else { throw way.fault(0x10) }
            if isTable {
                table = word & 0xFFFF_FFFF_F000 & ~(shape.pageBytes - 1)
                try checkTable(&way, word, table)
                continue
            }
            let size: UInt64 = 1 << low
            let output = word & 0xFFFF_FFFF_F000 & ~(size - 1)
            try checkLeaf(way, word, output)
            return output | input & (size - 1)
        }
        throw way.fault(0x10)
    }

    /// Whether where stage 1's first table is has to go through stage 2 as it stands.
    private func isNestedFirst(_ stage: PlainStage) -> Bool {
        !stage.isStage2 && ste.config.translatesStage2 && quirks.contains(.tableBaseTranslated)
    }

    private func fetch(_ way: Way, _ table: UInt64, _ offset: UInt64, _ isFirst: Bool) throws -> UInt64 {
        var address = table + offset
        if !way.stage.isStage2, ste.config.translatesStage2 {
            if quirks.contains(.tableBaseTranslated) {
                var base = try second(table, eventClass: 1, isStructure: isFirst)
                // CD.IPS cuts the physical address.
                if isFirst {
                    base &=
                        ~(way.stage.shape.startBytes - 1) & ((1 << UInt64(way.stage.shape.outputBits)) - 1)
                }
                address = base + offset
            } else {
                address = try second(address, eventClass: 1, isStructure: false)
            }
        }
        // The flash memory of QEMU's machine, which is empty.
        if quirks.contains(.tableBaseTranslated), address < 0x800_0000 { return 0 }
        guard let word = ram.load64(address) else {
            var fault = way.fault(0x0B)
            fault.address = address
            if !way.stage.isStage2 { fault.eventClass = 1 }
            let isForTable = way.stage.isStage2 && way.eventClass == 1 && !way.isStructure
            if isForTable, quirks.contains(.tableAbortTellsIPA) { fault.address = way.input }
            throw fault
        }
        return word
    }

    private func checkTable(_ way: inout Way, _ word: UInt64, _ table: UInt64) throws {
        if !quirks.contains(.tableSizeUnchecked), table >> UInt64(way.stage.shape.outputBits) != 0 {
            throw way.fault(0x11)
        }
        guard !way.stage.isStage2, !way.stage.had else { return }
        guard !quirks.contains(.apTableForgotten) else { return }
        way.tables |= word
        if quirks.contains(.apTableAtOnce), dma.isWrite, word >> 62 & 1 == 1 { throw way.fault(0x13) }
    }

    private func checkLeaf(_ way: Way, _ word: UInt64, _ output: UInt64) throws {
        let isBeyond = output >> UInt64(way.stage.shape.outputBits) != 0
        if isBeyond, !quirks.contains(.addressSizeLast) { throw way.fault(0x11) }
        if word >> 10 & 1 == 0, !way.stage.affd { throw way.fault(0x12) }
        guard isPermitted(way, word) else { throw way.fault(0x13) }
        if isBeyond { throw way.fault(0x11) }
    }

    private func isPermitted(_ way: Way, _ word: UInt64) -> Bool {
        if way.stage.isStage2 {
            let isWrite = way.eventClass == 2 && dma.isWrite
            if way.eventClass == 2, quirks.contains(.stage2PermissionsForgotten) { return true }
            guard word >> (isWrite ? 7 : 6) & 1 == 1 else { return false }
            guard ste.s2PTW, way.eventClass != 2, ste.config.translatesStage1 else { return true }
            let memAttr = word >> 2 & 0xF
            return quirks.contains(.s2PTWIgnored) || !(memAttr < 4 || memAttr & 3 == 0)
        }
        let isReadOnly = word >> 7 & 1 == 1 || way.tables >> 62 & 1 == 1
        if dma.isWrite, isReadOnly { return false }
        if quirks.contains(.alwaysPrivileged) { return true }
        return word >> 6 & 1 == 1 && way.tables >> 61 & 1 == 0
    }
}
