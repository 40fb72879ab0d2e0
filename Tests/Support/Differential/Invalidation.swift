// Cases in which software changes what caches may hold, and invalidates enough of it, or too little.

import AddressSpace
import SMMUv3Spec
import SeededRandomness

extension CaseGenerator {
    static func invalidation(_ result: inout Case, _ builder: CaseBuilder, _ config: StreamConfig) -> Bool {
        let flaws = Flaws(descriptor: builder.random.chance(40) ? 8 : 0, permission: 0)
        let requester = Int(builder.random.below(3))
        guard var stream = builder.makeStream(requester, config, flaws) else { return false }
        result.granules = granulesOf(stream)
        let regions = regions(&builder.random)
        let addresses = (0..<4).map { _ in
            (address: builder.makeAddress(stream, regions, flaws), isWrite: builder.random.chance(50))
        }
        var table = StreamTable(builder, isTwoLevel: result.shape.isTwoLevel)
        table.place(&stream, builder)
        table.boot(builder)
        let old = addresses.map { builder.access(requester, $0.address, isWrite: $0.isWrite) ?? 0 }
        let change = change(stream, addresses.map(\.address), result.shape, builder)
        let isEnough = builder.random.chance(65)
        result.kind = "\(isEnough ? "invalidated" : "not invalidated"): \(change.name)"
        if isEnough {
            builder.issue(change.enough + [.sync()])
            for (index, address) in addresses.enumerated() {
                builder.access(requester, address.address, isWrite: address.isWrite, before: old[index])
            }
            return true
        }
        if builder.random.chance(70) {
            builder.issue([tooLittle(stream, addresses[0].address, result.shape, builder), .sync()])
        }
        // Caches may answer here. What memory says is asked after everything was invalidated.
        let first = builder.dmaCount + addresses.count
        for (index, address) in addresses.enumerated() {
            builder.access(
                requester,
                address.address,
                isWrite: address.isWrite,
                change.isOfManyParts ? .none : .either(before: old[index], after: first + index)
            )
        }
        builder.issue(.cfgiAll(), .tlbiNSNHAll(), .sync())
        for address in addresses { builder.access(requester, address.address, isWrite: address.isWrite) }
        return true
    }

    private static func granulesOf(_ stream: Stream) -> String {
        [stream.lower, stream.upper, stream.second].compactMap(\.self)
            .map { "\(1 << ($0.shape.granule - 10))K" }.joined(separator: "+")
    }

    private struct Change {
        var name: String
        /// Commands that reach whatever caches hold of what changed.
        var enough: [Command]
        /// Whether a translation has several parts that changed, each of which caches may have or not.
        var isOfManyParts = false
    }

    private static func change(
        _ stream: Stream,
        _ addresses: [UInt64],
        _ shape: MachineShape,
        _ builder: CaseBuilder
    ) -> Change {
        if builder.random.chance(25) { return changeStructure(stream, addresses, shape, builder) }
        let address = builder.random.pick(addresses)
        let isUpper = address >> 55 & 1 == 1
        let halves = isUpper ? stream.upper : stream.lower
        guard let second = stream.second, halves == nil || builder.random.chance(50) else {
            guard let half = halves else { return changeStructure(stream, addresses, shape, builder) }
            let offset = address & ((1 << UInt64(half.shape.inputBits)) - 1)
            return changeDescriptor(half, offset, stream, canonical(address, half, isUpper), shape, builder)
        }
        guard let half = halves else {
            let offset = address & ((1 << UInt64(second.shape.inputBits)) - 1)
            return changeDescriptor(second, offset, stream, address, shape, builder)
        }
        // What stage 2 makes of where stage 1's page is.
        let offset = address & ((1 << UInt64(half.shape.inputBits)) - 1)
        guard let last = half.path(offset).last, last.word & 1 == 1 else {
            return changeStructure(stream, addresses, shape, builder)
        }
        let mask: UInt64 = (1 << UInt64(half.shape.shift(last.level))) - 1
        let ipa = last.word & 0xFFFF_FFFF_F000 & ~mask | offset & mask
        guard ipa >> UInt64(second.shape.inputBits) == 0 else {
            return changeStructure(stream, addresses, shape, builder)
        }
        return changeDescriptor(second, ipa, stream, ipa, shape, builder)
    }

    /// The address by which software invalidates: without what makes it one that is not translated.
    private static func canonical(_ address: UInt64, _ half: StageTables, _ isUpper: Bool) -> UInt64 {
        let mask: UInt64 = (1 << UInt64(half.shape.inputBits)) - 1
        let ignored: UInt64 = 0xFF << 56
        return address & (mask | ignored) | (isUpper ? ~mask & ~ignored : 0)
    }

    /// Unmaps a page or block, or gives it another place or other permissions.
    private static func changeDescriptor(
        _ tables: StageTables,
        _ offset: UInt64,
        _ stream: Stream,
        _ address: UInt64,
        _ shape: MachineShape,
        _ builder: CaseBuilder
    ) -> Change {
        let path = tables.path(offset)
        let victim = path[path.count - 1 - (builder.random.chance(20) ? min(1, path.count - 1) : 0)]
        let isLeaf = victim.level == 3 || victim.word & 2 == 0
        var word: UInt64 = 0
        let isPage = victim.level == 3 && victim.word & 3 == 3
        switch builder.random.below(4) {
        case 0 where isPage:
            let size = tables.shape.pageBytes
            let other = StageTables.randomData(&builder.random) & 0x0FFF_FFFF & ~(size - 1)
            // Only bits that data has are changed: what is above them leads through stage 2.
            word = victim.word & ~0xFF_0000 | other & 0xFF_0000
        case 1 where isPage: word = tables.isStage2 ? victim.word & ~(3 << 6) : victim.word & ~(1 << 10)
        default: word = 0
        }
        tables.store(victim.entry, word)
        let level = tables.isStage2 ? "stage 2" : "stage 1"
        let name = "\(level) \(isLeaf ? "leaf" : "table")"
        return Change(
            name: name,
            enough: enough(
                tables,
                address & ~0xFFF,
                victim.level,
                isLeaf && victim.word & 1 == 1,
                stream,
                shape,
                &builder.random
            ),
            // The CD and stage 1's tables are behind stage 2 too.
            isOfManyParts: stream.ste.config == .nested && (tables.isStage2 || !isLeaf)
        )
    }

    private static func enough(
        _ tables: StageTables,
        _ address: UInt64,
        _ level: Int,
        _ isLeaf: Bool,
        _ stream: Stream,
        _ shape: MachineShape,
        _ random: inout SplitMix
    ) -> [Command] {
        let vmid = shape.stages == .stage1 ? 0 : stream.vmid
        var (address, range): (UInt64, TLBIRange?) = (address, nil)
        if isLeaf, random.chance(50) { (address, range) = self.range(tables.shape, address, level, &random) }
        let leaf = random.chance(50)
        if tables.isStage2 {
            // QEMU keeps where the root of stage 1 is with the CD.
            let others: [Command] =
                stream.ste.config == .nested ? [.tlbiNHAll(vmid: vmid), .cfgiCDAll(stream.streamID)] : []
            guard isLeaf else { return [.tlbiS12VMAll(vmid: vmid)] + others }
            switch random.below(4) {
            case 0: return [.tlbiS12VMAll(vmid: vmid)] + others
            case 1: return [.tlbiNSNHAll()] + others
            default: return [.tlbiS2IPA(vmid: vmid, ipa: address, leaf: leaf, range: range)] + others
            }
        }
        guard isLeaf else {
            return [random.chance(50) ? .tlbiNHAll(vmid: vmid) : .tlbiNSNHAll()]
        }
        switch random.below(6) {
        case 0: return [.tlbiNHAll(vmid: vmid)]
        case 1: return [.tlbiNSNHAll()]
        case 2: return [.tlbiNHVAA(vmid: vmid, address: address, leaf: leaf, range: range)]
        // What is global stays where an ASID is named alone.
        case 3:
            return [
                .tlbiNHASID(vmid: vmid, asid: stream.cd.asid),
                .tlbiNHVAA(vmid: vmid, address: address, leaf: leaf, range: range),
            ]
        default:
            return [.tlbiNHVA(vmid: vmid, asid: stream.cd.asid, address: address, leaf: leaf, range: range)]
        }
    }

    /// A range that covers a leaf, and perhaps some before and after it.
    ///
    /// - Returns: Its first address, and its length.
    private static func range(
        _ shape: StageShape,
        _ address: UInt64,
        _ level: Int,
        _ random: inout SplitMix
    ) -> (address: UInt64, range: TLBIRange) {
        let shift = UInt64(shape.shift(level))
        let base = address & ~((1 << shift) - 1)
        // Not into the other half.
        let before = min(random.below(4), (base & 0x1FF_FFFF) >> shift)
        let size: Granule = shape.granule == 12 ? .kib4 : shape.granule == 14 ? .kib16 : .kib64
        let num = UInt8(before + random.below(32 - before))
        let scale = UInt8(shift) - UInt8(shape.granule)
        // Level 1 is no hint with 16 KiB; a range of one page says its level.
        let canHint = level > 1 || shape.granule == 12
        let needsHint = num == 0 && scale == 0
        let ttl = canHint && (needsHint || random.chance(60)) ? UInt8(level) : 0
        return (base - (before << shift), TLBIRange(num: num, scale: scale, ttl: ttl, granule: size))
    }

    private static func changeStructure(
        _ stream: Stream,
        _ addresses: [UInt64],
        _ shape: MachineShape,
        _ builder: CaseBuilder
    ) -> Change {
        let vmid = shape.stages == .stage1 ? 0 : stream.vmid
        if stream.contextAddress != 0, builder.random.chance(50) {
            var cd = stream.cd
            switch builder.random.below(4) {
            case 0: cd.v = false
            case 1: cd.r.toggle()
            case 2: cd.affd.toggle()
            default: (cd.epd0, cd.epd1) = (true, true)
            }
            builder.poke(stream.contextAddress, cd.words)
            let command: Command =
                builder.random.chance(50)
                ? .cfgiCD(stream.streamID, .init(0), leaf: builder.random.chance(50))
                : .cfgiCDAll(stream.streamID)
            return Change(name: "CD", enough: [command, .tlbiNSNHAll()])
        }
        var ste = stream.ste
        // Past the SMMU a DMA must not find one of QEMU's devices.
        let canBypass = addresses.allSatisfy { $0 >= Layout.ramEnd && $0 < 1 << 38 }
        switch builder.random.below(canBypass ? 3 : 2) {
        case 0: ste.v = false
        case 1: ste.config = .abort
        default: ste.config = .bypass
        }
        builder.poke(stream.steAddress, ste.words)
        let command: Command =
            builder.random.chance(70)
            ? .cfgiSTE(stream.streamID, leaf: builder.random.chance(50)) : .cfgiAll()
        return Change(
            name: "STE",
            enough: [command, shape.stages == .stage1 ? .tlbiNSNHAll() : .tlbiS12VMAll(vmid: vmid)]
        )
    }

    /// A command that is near what it takes.
    private static func tooLittle(
        _ stream: Stream,
        _ address: UInt64,
        _ shape: MachineShape,
        _ builder: CaseBuilder
    ) -> Command {
        let vmid = shape.stages == .stage1 ? 0 : stream.vmid
        let hasStage1 = shape.stages != .stage2
        switch builder.random.below(6) {
        case 0 where hasStage1: return .tlbiNHASID(vmid: vmid, asid: stream.cd.asid ^ 1)
        case 1 where hasStage1: return .tlbiNHAll(vmid: vmid ^ 1)
        case 2 where hasStage1:
            return .tlbiNHVA(
                vmid: vmid,
                asid: stream.cd.asid,
                address: address & ~0xFFF ^ 1 << 30,
                leaf: true
            )
        case 3 where hasStage1: return .tlbiNHVAA(vmid: vmid ^ 2, address: address & ~0xFFF, leaf: true)
        case 4: return .cfgiSTE(.init(stream.streamID.rawValue ^ 1), leaf: true)
        default: return .cfgiSTE(stream.streamID, leaf: true)
        }
    }
}
