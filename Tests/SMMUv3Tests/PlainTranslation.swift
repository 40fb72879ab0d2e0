// Translation as the specification tells it, step by step, without caches and without a line of the model's code:
// what the model's answers are compared with.

/// How one stage's tables are read.
struct PlainStage {
    /// log2 of the granule.
    var granule = 12
    var startLevel = 1
    /// 64 - TxSZ.
    var inputBits = 39
    var base: UInt64 = 0
    var outputBits = 48
    var isBigEndian = false
    /// The output address size of the SMMU is 52 bits.
    var isLarge = false
    /// CD.DS or STE.S2DS.
    var ds = false
    var affd = false
    /// Stage 1: HADn.
    var had = false
}

/// A stage-1 context: both halves share all but their stage.
struct PlainContext {
    var lower: PlainStage?
    var upper: PlainStage?
    var tbi0 = false
    var tbi1 = false
    var wxn = false
    var pan = false
    var e0pd0 = false
    var e0pd1 = false
    /// NS-EL2: one half, one privilege.
    var isSingle = false
    /// Tables of VMSAv8-32: 32-bit addresses, which the sizes of the halves share out.
    var isAArch32 = false
    var uwxn = false

    /// VMSAv8-32: whether the upper half translates an address; nil where neither does.
    ///
    /// A half of 32 bits takes what the other one leaves.
    func isUpperOf32Bits(_ va: UInt64) -> Bool? {
        let end: UInt64 = 1 << 32
        let lowerBits = lower?.inputBits ?? 32
        let upperBits = upper?.inputBits ?? 32
        let upperStart = upperBits < 32 ? end - (1 << UInt64(upperBits)) : nil
        let lowerEnd = lowerBits < 32 ? 1 << UInt64(lowerBits) : upperStart ?? end
        if va < lowerEnd { return false }
        return va >= upperStart ?? lowerEnd && va < end ? true : nil
    }
}

struct PlainAccess {
    var isWrite = false
    var isPrivileged = false
    var isInstruction = false
}

/// A terminated access: which event, and what its record says.
struct PlainFault: Error, Equatable {
    var event: UInt64
    var isStage2 = false
    /// 0 CD, 1 TTD, 2 IN.
    var eventClass: UInt64 = 2
    /// IPA or FetchAddr.
    var address: UInt64 = 0
    var isTableRead = false
}

/// Reads memory and says where an access goes.
struct PlainTranslation {
    var context: PlainContext?
    var stage2: PlainStage?
    var s2PTW = false
    var hasXNX = true
    /// Stage 2's tables are of VMSAv8-32: what cannot be read cannot be executed.
    var isStage2AArch32 = false
    /// nil where no RAM is.
    var load: (UInt64) -> UInt64?

    private struct Leaf {
        var word: UInt64
        var level: Int
        var output: UInt64
        /// Stage 1: what the table descriptors above took away: [62:59] of them, or'ed.
        var tables: UInt64 = 0
    }

    /// A descriptor's address field, from bit `low` up.
    private func address(_ word: UInt64, _ stage: PlainStage, from low: Int) -> UInt64 {
        let top = stage.ds && stage.granule < 16 ? 50 : 48
        var result: UInt64 = 0
        for bit in low..<top where word >> UInt64(bit) & 1 == 1 { result += 1 << UInt64(bit) }
        if top == 50 { result += (word >> 8 & 3) << 50 }
        if stage.granule == 16, stage.isLarge { result += (word >> 12 & 0xF) << 48 }
        return result
    }

    private func hasBlocks(_ stage: PlainStage, _ level: Int) -> Bool {
        switch (stage.granule, level) {
        case (12, 1), (12, 2), (14, 2), (16, 2): true
        case (12, 0), (14, 1): stage.ds
        case (16, 1): stage.isLarge
        default: false
        }
    }

    private func walk(
        _ stage: PlainStage,
        _ input: UInt64,
        fetch: (UInt64) throws -> UInt64,
        fault: (UInt64) -> PlainFault
    ) throws -> Leaf {
        let bitsPerLevel = stage.granule - 3
        var tables: UInt64 = 0
        var base = stage.base
        for level in stage.startLevel...3 {
            let low = stage.granule + bitsPerLevel * (3 - level)
            let high = level == stage.startLevel ? stage.inputBits : low + bitsPerLevel
            if level == stage.startLevel {
                var alignment: UInt64 = 8 << UInt64(high - low)
                if stage.outputBits == 52, alignment < 64 { alignment = 64 }
                base -= base % alignment
            }
            var index: UInt64 = 0
            for bit in low..<high where input >> UInt64(bit) & 1 == 1 { index += 1 << UInt64(bit - low) }
            let raw = try fetch(base + 8 * index)
            let word = stage.isBigEndian ? raw.byteSwapped : raw
            let isTable = level < 3 && word & 3 == 3
            let isLeaf = level == 3 ? word & 3 == 3 : word & 3 == 1 && hasBlocks(stage, level)
            guard isTable || isLeaf else { throw fault(0x10) }
            let output = address(word, stage, from: isTable ? stage.granule : low)
            guard output >> UInt64(stage.outputBits) == 0 else { throw fault(0x11) }
            if isTable {
                base = output
                if !stage.had { tables |= word & 0x7800_0000_0000_0000 }
                continue
            }
            let offset = input & ((1 << UInt64(low)) - 1)
            if word >> 10 & 1 == 0, !stage.affd { throw fault(0x12) }
            return Leaf(word: word, level: level, output: output + offset, tables: tables)
        }
        throw fault(0x10)
    }

    /// Stage 2 of one IPA; `eventClass` says what for.
    private func second(_ ipa: UInt64, _ stage: PlainStage, _ eventClass: UInt64, _ access: PlainAccess)
        throws
        -> UInt64
    {
        func fault(_ event: UInt64) -> PlainFault {
            PlainFault(
                event: event,
                isStage2: true,
                eventClass: eventClass,
                address: ipa,
                isTableRead: event == 0x13 && eventClass == 1
            )
        }
        guard ipa >> UInt64(stage.inputBits) == 0 else { throw fault(0x10) }
        let leaf = try walk(
            stage,
            ipa,
            fetch: { address in
                guard let word = load(address) else {
                    throw PlainFault(event: 0x0B, isStage2: true, eventClass: eventClass, address: address)
                }
                return word
            },
            fault: fault
        )
        let isData = eventClass != 2 || access.isWrite || !access.isInstruction
        let xn = hasXNX ? leaf.word >> 53 & 3 : leaf.word >> 53 & 2
        let isPermitted: Bool
        if isData {
            let isWrite = eventClass == 2 && access.isWrite
            isPermitted = leaf.word >> (isWrite ? 7 : 6) & 1 == 1
        } else {
            let isReadable = !isStage2AArch32 || leaf.word >> 6 & 1 == 1
            isPermitted = isReadable && (xn == 0 || xn == (access.isPrivileged ? 3 : 1))
        }
        guard isPermitted else { throw fault(0x13) }
        // Device types without FWB: 0b00xx, and the Reserved 0b0100, 0b1000 and 0b1100.
        let memAttr = leaf.word >> 2 & 0xF
        if eventClass != 2, s2PTW, memAttr < 4 || memAttr & 3 == 0 { throw fault(0x13) }
        return leaf.output
    }

    private func first(_ va: UInt64, _ context: PlainContext, _ access: PlainAccess) throws -> UInt64 {
        func fault(_ event: UInt64) -> PlainFault { PlainFault(event: event) }
        var isUpper = !context.isSingle && va >> 55 & 1 == 1
        if context.isAArch32 {
            guard let upper = context.isUpperOf32Bits(va) else { throw fault(0x10) }
            isUpper = upper
        }
        if isUpper ? context.e0pd1 : context.e0pd0, !access.isPrivileged { throw fault(0x10) }
        guard let stage = isUpper ? context.upper : context.lower else { throw fault(0x10) }
        let top = (isUpper ? context.tbi1 : context.tbi0) ? 55 : 63
        for bit in stage.inputBits...63 where bit <= top && !context.isAArch32 {
            guard va >> UInt64(bit) & 1 == (isUpper ? 1 : 0) else { throw fault(0x10) }
        }
        let leaf = try walk(
            stage,
            va & ((1 << UInt64(stage.inputBits)) - 1),
            fetch: { address in
                var physical = address
                if let stage2 { physical = try second(address, stage2, 1, access) }
                guard let word = load(physical) else {
                    throw PlainFault(event: 0x0B, eventClass: 1, address: physical)
                }
                return word
            },
            fault: fault
        )
        guard isPermitted(leaf, context, access) else { throw fault(0x13) }
        return leaf.output
    }

    private func isPermitted(_ leaf: Leaf, _ context: PlainContext, _ access: PlainAccess) -> Bool {
        let isReadOnly = leaf.word >> 7 & 1 == 1 || leaf.tables >> 62 & 1 == 1
        let uxn = leaf.word >> 54 & 1 == 1 || leaf.tables >> 60 & 1 == 1
        if context.isSingle {
            if access.isWrite { return !isReadOnly }
            return access.isInstruction ? !uxn && !(context.wxn && !isReadOnly) : true
        }
        let isUser = leaf.word >> 6 & 1 == 1 && leaf.tables >> 61 & 1 == 0
        let pxn = leaf.word >> 53 & 1 == 1 || leaf.tables >> 59 & 1 == 1
        if access.isInstruction, !access.isWrite {
            if access.isPrivileged {
                if uxn, context.isAArch32 { return false }
                let isUserWritable = isUser && !isReadOnly
                return !pxn && !(isUserWritable && (context.uwxn || !context.isAArch32))
                    && !(context.wxn && !isReadOnly)
            }
            if !isUser, context.isAArch32 { return false }
            return !uxn && !(context.wxn && isUser && !isReadOnly)
        }
        if access.isPrivileged { return !(access.isWrite && isReadOnly) && !(context.pan && isUser) }
        return isUser && !(access.isWrite && isReadOnly)
    }

    /// Where an access goes.
    ///
    /// - Throws: ``PlainFault``.
    func translate(_ address: UInt64, _ access: PlainAccess) throws -> UInt64 {
        var result = address
        if let context { result = try first(address, context, access) }
        if let stage2 { result = try second(result, stage2, 2, access) }
        return result
    }

    /// The physical address of a structure that the SMMU fetches at `ipa`: a CD.
    func structure(_ ipa: UInt64, _ access: PlainAccess) throws -> UInt64 {
        guard let stage2 else { return ipa }
        return try second(ipa, stage2, 0, access)
    }
}
