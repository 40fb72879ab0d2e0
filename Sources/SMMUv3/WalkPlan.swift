// What a walk needs of a configuration, worked out once: masks and shifts rather than granules and levels.

import BitFields
import SMMUv3Spec

/// One stage's tables as a walk goes through them.
///
/// Made when a configuration is resolved, so that a step of a walk is a few instructions. What has no plan
/// (``isUsable``) is walked by ``SMMUv3/walkStage1(_:_:)`` and its like alone.
struct WalkPlan: Equatable, Sendable {
    /// Whether there is a plan: not for a half whose walks are disabled, nor for VMSAv8-32.
    var isUsable = false
    /// The first table's address.
    var table: UInt64 = 0
    /// How many bits an address may have: those above are all zero, or all one in the upper half.
    var inputBits: UInt64 = 0
    /// How far an address moves right to be an offset into the first table: log2 of what an entry there covers, less
    /// 3, because an entry is 8 bytes.
    var firstShift: UInt64 = 0
    /// The same of a table of pages.
    var pageShift: UInt64 = 0
    /// The bits of an offset into the first table, and into those after it.
    var firstIndexMask: UInt64 = 0
    var indexMask: UInt64 = 0
    /// How many address bits a table resolves.
    var stride: UInt64 = 0
    /// log2 of a page.
    var pageBits: UInt64 = 0
    /// The output address's bits that a descriptor has where they belong: those of a page.
    var addressMask: UInt64 = 0
    /// The output address's highest bits, and how far they have to move up, where they lie elsewhere.
    var highMask: UInt64 = 0
    var highShift: UInt64 = 0
    /// The bits of an address that are beyond the output size: min(IPS or S2PS, OAS).
    var beyondOutput: UInt64 = 0
    /// Whether pages are of 4 KiB and tables in the processor's byte order, of four levels at most and with output
    /// addresses of up to 48 bits, as most are.
    var isUsual = false
    /// The bits by which a word of such tables is seen to be a table or page as most are: its type, and what of its
    /// address is elsewhere or beyond the output size.
    var unusualMask: UInt64 = 0
    /// How many levels there are.
    var levels: UInt64 = 0
    /// log2 of what a table of the last level covers.
    var lastTableBits: UInt64 = 0
    /// Bit n: there are blocks of 2^n bytes.
    var blockSizes: UInt64 = 0
    var isBigEndian = false
    /// The bits of a table descriptor that count for everything below it.
    var hierarchicalMask: UInt64 = 0
    /// With DS, every leaf's shareability.
    var shareability: UInt8?
    /// The access flag, where a leaf without it faults or has to be updated first.
    var requiredFlags: UInt64 = 0
    /// What a leaf has of the bits by which it is seen to be an ordinary page that can be used, and these bits.
    var ordinaryLeaf: UInt64 = 0
    var unusualLeafMask: UInt64 = 0
    /// The required flags, and S2AP[0]: what a leaf of stage 2 has where tables of stage 1 may be.
    var tableFlags: UInt64 = 0
    /// What such a leaf has of the bits by which it is seen to be an ordinary page, and these bits.
    var ordinaryTable: UInt64 = 0
    var unusualTableMask: UInt64 = 0
    /// The bits of an address that are beyond the input size.
    var beyondInput: UInt64 = 0
    /// Whether DBM makes a page that is read-only one that is not dirty yet.
    var updatesDirtyState = false
    /// CD.E0PDn.
    var refusesUnprivileged = false
    /// Not where stage 2 is behind tables that are updated: an update needs the descriptor's IPA.
    var usesWalkCache = true
    /// Whose tables the walk cache takes them for.
    var tag = WalkCache.Tag.none
    var granule = Granule.kib4

    /// No plan.
    init() {}

    private init(_ format: TableFormat, inputBits: Int, firstLevel: Int, table: UInt64, outputBits: Int) {
        isUsable = true
        granule = format.granule
        pageBits = UInt64(format.granule.log2Bytes)
        stride = UInt64(format.granule.stride)
        self.table = table
        self.inputBits = UInt64(inputBits)
        let firstLowBit = UInt64(format.granule.log2Bytes(ofLevel: firstLevel))
        firstShift = firstLowBit &- 3
        pageShift = pageBits &- 3
        firstIndexMask = ((1 &<< (self.inputBits &- firstLowBit)) &- 1) &<< 3
        indexMask = ((1 &<< stride) &- 1) &<< 3
        beyondInput = UInt64.max &<< self.inputBits
        beyondOutput = UInt64.max &<< UInt64(outputBits)
        isBigEndian = format.isBigEndian
        addressMask = UInt64.mask(format.ds ? 0...49 : 0...47) & (UInt64.max &<< pageBits)
        if format.ds {
            highMask = UInt64.mask(8...9)
            highShift = 42
        } else if format.has52BitOutput {
            highMask = UInt64.mask(12...15)
            highShift = 36
        }
        lastTableBits = pageBits &+ stride
        isUsual = format.granule == .kib4 && !format.isBigEndian && !format.ds && firstLevel >= 0
        levels = UInt64(4 - firstLevel)
        unusualMask = 0b11 | addressMask & beyondOutput | highMask
        let block = Descriptor(rawValue: 0b01)
        for level in 0...2 where format.isLeaf(block, level: level) {
            blockSizes |= 1 &<< UInt64(format.granule.log2Bytes(ofLevel: level))
        }
    }

    /// The plan of one half of a CD's address space.
    init(_ region: TableRegion, _ context: ContextConfiguration) {
        guard !region.isWalkDisabled, !context.permissionRules.isAArch32 else {
            self.init()
            return
        }
        let granule = region.format.granule
        let level = 3 - (region.inputBits - 1 - granule.log2Bytes) / granule.stride
        self.init(
            region.format,
            inputBits: region.inputBits,
            firstLevel: level,
            table: TableFormat.alignedBase(
                region.tableBase,
                region.inputBits - granule.log2Bytes(ofLevel: level),
                context.outputBits
            ),
            outputBits: context.outputBits
        )
        hierarchicalMask = region.ignoresHierarchicalAttributes ? 0 : UInt64.mask(59...62)
        shareability = region.format.ds ? region.walkShareability : nil
        requireAccessFlag(updates: context.updatesAccessFlag, faults: !context.accessFlagFaultsDisabled)
        updatesDirtyState = context.updatesDirtyState
        refusesUnprivileged = region.refusesUnprivileged
    }

    /// The plan of stage 2.
    init(_ stage2: Stage2Configuration) {
        guard !stage2.isAArch32 else {
            self.init()
            return
        }
        self.init(
            stage2.format,
            inputBits: stage2.inputBits,
            firstLevel: stage2.startLevel,
            table: stage2.tableBase,
            outputBits: stage2.outputBits
        )
        shareability = stage2.format.ds ? stage2.walkShareability : nil
        requireAccessFlag(updates: stage2.updatesAccessFlag, faults: !stage2.accessFlagFaultsDisabled)
        tableFlags = requiredFlags | 1 &<< 6
        ordinaryTable = tableFlags | 0b11
        unusualTableMask = unusualMask | tableFlags
        updatesDirtyState = stage2.updatesDirtyState
    }

    private mutating func requireAccessFlag(updates: Bool, faults: Bool) {
        if updates || faults { requiredFlags = 1 &<< 10 }
        ordinaryLeaf = requiredFlags | 0b11
        unusualLeafMask = unusualMask | requiredFlags
    }

    // MARK: Steps

    /// The descriptor that a word of memory is.
    @inline(__always)  // Likewise.
    func descriptor(_ word: UInt64) -> UInt64 { isBigEndian ? word.byteSwapped : word }

    /// The address of the next table.
    @inline(__always)  // Likewise.
    func table(in descriptor: UInt64) -> UInt64 {
        descriptor & addressMask | (descriptor & highMask) &<< highShift
    }

    /// The address in a descriptor: a page's or block's of 2^`lowBit` bytes.
    @inline(__always)  // Likewise.
    func address(in descriptor: UInt64, _ lowBit: UInt64) -> UInt64 {
        descriptor & addressMask & (UInt64.max &<< lowBit) | (descriptor & highMask) &<< highShift
    }

    /// Whether an address is within the output size.
    @inline(__always)  // Likewise.
    func reaches(_ output: UInt64) -> Bool { output & beyondOutput == 0 }

    /// ``indexMask`` and ``addressMask`` of usual tables.
    static let indexMask4KiB: UInt64 = 0x1FF &<< 3
    static let addressMask4KiB: UInt64 = 0xFFFF_FFFF_F000

    /// Where in a table of 4 KiB the entry for an address is.
    @inline(__always)  // Once for each level of every walk.
    static func offset4KiB(of address: UInt64, _ shift: UInt64) -> UInt64 {
        (address &>> shift) & indexMask4KiB
    }

    /// Whether a word is a descriptor of a table, or in the last one of a page, and its address is in one piece and
    /// in reach.
    @inline(__always)  // Once for each level of every walk.
    static func isOrdinary(_ word: UInt64, _ unusualMask: UInt64) -> Bool {
        (word ^ 0b11) & unusualMask == 0
    }

    /// The same of a page that can be used.
    @inline(__always)  // Once for each walk.
    func isOrdinaryLeaf(_ word: UInt64) -> Bool { (word ^ ordinaryLeaf) & unusualLeafMask == 0 }

    /// The level of a table whose entries cover 2^`lowBit` bytes each.
    func level(ofEntriesCovering lowBit: UInt64) -> Int {
        var level = 3
        var bits = pageBits
        while bits < lowBit {
            bits &+= stride
            level &-= 1
        }
        return level
    }

    /// SH[1:0] of a leaf.
    func shareability(of leaf: UInt64) -> UInt8 {
        shareability ?? UInt8(truncatingIfNeeded: (leaf &>> 8) & 0b11)
    }

    /// Whether a descriptor that covers 2^`lowBit` bytes is a page or a block.
    @inline(__always)  // Once for each walk.
    func isLeaf(_ descriptor: UInt64, _ lowBit: UInt64) -> Bool {
        lowBit == pageBits
            ? descriptor & 0b11 == 0b11 : descriptor & 0b11 == 0b01 && (blockSizes &>> lowBit) & 1 != 0
    }
}

/// A stream's configuration for one SubstreamID or none, as quick walks go by it.
///
/// Plain values at one address for as long as the ``ResolvedStream`` lives that they are of: what a miss reads of
/// a configuration is neither copied nor counted.
// SAFETY of @unchecked Sendable: what the pointers point at is written once, before anybody has it.
struct StreamPlan: @unchecked Sendable {
    var translatesStage1 = false
    var translatesStage2 = false
    /// What stage 1's translations are tagged with; stage 2's where it is alone.
    var tag: RegimeTag
    /// What stage 2's are tagged with.
    var stage2Tag: RegimeTag
    /// The tables of TTB0 and TTB1.
    let lower: UnsafePointer<WalkPlan>
    let upper: UnsafePointer<WalkPlan>
    let stage2: UnsafePointer<WalkPlan>
    /// What `tag` is compared by in the TLB.
    var key: TLBKey
    /// What `stage2Tag` is compared by there.
    let stage2Key: TLBKey
    /// Whether what the TLB says is all that there is to it: stage 1 looks at the address, attributes go as the device
    /// drives them, and neither half refuses anybody.
    var isAnsweredByTLB = false
    /// What `tag` adds to an address that is to be in the region of its own; see ``InvalidationGeneration``.
    private(set) var regionOffset: UInt64 = 0
    /// Whether there is an upper half.
    var hasTwoRanges = false
    /// The bits of an address that are ignored, in each half (TBI).
    var lowerIgnored: UInt64 = 0
    var upperIgnored: UInt64 = 0
    /// What leaves permit: of stage 1, and of stage 2.
    var permissionTable: PermissionTable
    var stage2Rights = Stage2Rights()
    /// MAIR with the Reserved encodings replaced by what they behave as.
    var effectiveMAIR: UInt64 = 0
    var stage2ForcesWriteBack = false
    var stage2ProtectsTables = false
    /// PRIVCFG and INSTCFG.
    var privCfg: UInt8
    var instCfg: UInt8
    /// Whether the configuration depends on the STE, the CD and CR2.E2H alone, and neither has a first level before it
    /// that has to be read.
    var isOfTwoStructures = false
    var isE2H = false
    /// The eight words of the STE, and of the CD where stage 1 translates.
    //
    // Apart from the rest: one by one they are compared with memory, and as one value they would be copied for it.
    let ste: UnsafePointer<UInt64>
    let cd: UnsafePointer<UInt64>
    /// An IPA where stage 2 translates.
    var contextAddress: UInt64 = 0

    /// Makes a plan at an address of its own, which ``free(_:)`` gives back.
    static func make(
        _ stream: StreamConfiguration,
        _ context: ContextConfiguration?,
        _ source: ResolvedStream.Source?
    ) -> UnsafePointer<StreamPlan> {
        let tables = UnsafeMutablePointer<WalkPlan>.allocate(capacity: 3)
        tables.initialize(repeating: WalkPlan(), count: 3)
        let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 16)
        for index in 0..<8 {
            (words + index).initialize(to: source?.ste.words[index] ?? 0)
            (words + 8 + index).initialize(to: source?.context?.cd.words[index] ?? 0)
        }
        let plan = UnsafeMutablePointer<StreamPlan>.allocate(capacity: 1)
        plan.initialize(to: StreamPlan(stream, context, tables, UnsafePointer(words)))
        if let source {
            plan.pointee.isOfTwoStructures = source.context == nil || stream.contextTable.log2LeafCount == nil
            plan.pointee.isE2H = source.isE2H
            plan.pointee.contextAddress = stream.contextTable.base &+ UInt64(source.context?.index ?? 0) &* 64
        }
        return UnsafePointer(plan)
    }

    static func free(_ plan: UnsafePointer<StreamPlan>) {
        plan.pointee.lower.deallocate()
        plan.pointee.ste.deallocate()
        plan.deallocate()
    }

    private init(
        _ stream: StreamConfiguration,
        _ context: ContextConfiguration?,
        _ tables: UnsafeMutablePointer<WalkPlan>,
        _ words: UnsafePointer<UInt64>
    ) {
        ste = words
        cd = words + 8
        lower = UnsafePointer(tables)
        upper = UnsafePointer(tables + 1)
        stage2 = UnsafePointer(tables + 2)
        privCfg = stream.privCfg
        instCfg = stream.instCfg
        permissionTable = PermissionTable(ContextConfiguration.unused.permissionRules)
        stage2Tag = RegimeTag(regime: .nsEL1Stage2, vmid: stream.stage2?.vmid ?? 0, asid: 0, aset: false)
        tag = stage2Tag
        stage2Key = TLBKey(stage2Tag)
        key = stage2Key
        regionOffset = InvalidationGeneration.offset(asid: tag.asid, vmid: tag.vmid)
        if let second = stream.stage2 {
            translatesStage2 = true
            tables[2] = WalkPlan(second)
            tables[2].tag = WalkCache.Tag(stage2Tag, isNested: false)
            stage2Rights = Stage2Rights(second)
            stage2ForcesWriteBack = second.forcesWriteBack
            stage2ProtectsTables = second.protectsTableWalks
        }
        guard let context else { return }
        translatesStage1 = true
        tag = RegimeTag(
            regime: TranslationRegime(stream.world),
            vmid: stream.vmid,
            asid: context.asid,
            aset: context.aset
        )
        key = TLBKey(tag)
        regionOffset = InvalidationGeneration.offset(asid: tag.asid, vmid: tag.vmid)
        isAnsweredByTLB =
            stream.privCfg == 0 && stream.instCfg == 0 && !context.lower.refusesUnprivileged
            && !context.upper.refusesUnprivileged && !context.permissionRules.isAArch32
        tables[0] = WalkPlan(context.lower, context)
        tables[1] = WalkPlan(context.upper, context)
        for half in 0...1 {
            tables[half].tag = WalkCache.Tag(tag, isNested: translatesStage2)
            tables[half].usesWalkCache = !(translatesStage2 && context.updatesAccessFlag)
        }
        hasTwoRanges = context.hasTwoRanges
        lowerIgnored = context.lower.ignoresTopByte ? 0xFF &<< 56 : 0
        upperIgnored = context.upper.ignoresTopByte ? 0xFF &<< 56 : 0
        permissionTable = PermissionTable(context.permissionRules)
        for index in 0..<8 as Range<UInt64> {
            let byte = UInt8(truncatingIfNeeded: context.mair &>> (index &* 8))
            effectiveMAIR |= UInt64(MemoryAttributes.effectiveMAIR(byte)) &<< (index &* 8)
        }
    }

    /// By which invalidations translations of a canonical address go.
    @inline(__always)  // For each look-up that a port does not answer.
    func region(of address: UInt64) -> Int {
        InvalidationGeneration.region(of: address &+ regionOffset, asid: 0, vmid: 0)
    }

    /// Whether TTB1 translates an address; not for VMSAv8-32, which has no plan.
    @inline(__always)  // For each look-up that a port does not answer.
    func isUpper(_ address: UInt64) -> Bool { hasTwoRanges && address[bit: 55] }

    /// As ``ContextConfiguration/canonical(_:)``.
    @inline(__always)  // Likewise.
    func canonical(_ address: UInt64) -> UInt64 {
        // As a rule nothing is ignored.
        guard lowerIgnored | upperIgnored != 0 else { return address }
        return isUpper(address) ? address | upperIgnored : address & ~lowerIgnored
    }
}

/// What leaves permit, for every configuration and every leaf: one look-up instead of a dozen decisions.
///
/// Made of ``PermissionRules/permissions(of:_:isClean:)``, at first use.
// SAFETY of @unchecked Sendable: what the pointer points at is written once, before anybody has it.
struct PermissionTable: @unchecked Sendable {
    private let row: UnsafePointer<UInt8>
    private static let entriesPerRow = 512

    /// The table of all rules, of 8 KiB; it stays for ever.
    private static let all: PermissionTable = {
        let storage = UnsafeMutablePointer<UInt8>.allocate(capacity: 16 * entriesPerRow)
        for rules in 0..<16 {
            let rules16 = PermissionRules(
                hasTwoRanges: rules & 1 != 0,
                wxn: rules & 2 != 0,
                pan: rules & 4 != 0,
                epan: rules & 8 != 0
            )
            for index in 0..<entriesPerRow {
                let bits = UInt64(index)
                var table = HierarchicalAttributes()
                table.accumulate(Descriptor(rawValue: bits[bits: 4...7] &<< 59))
                let leaf = Descriptor(rawValue: bits[bits: 0...1] &<< 6 | bits[bits: 2...3] &<< 53)
                storage[rules * entriesPerRow + index] =
                    rules16.permissions(of: leaf, table, isClean: bits[bit: 8]).rawValue
            }
        }
        return PermissionTable(row: UnsafePointer(storage))
    }()

    private init(row: UnsafePointer<UInt8>) { self.row = row }

    /// The part for one configuration; for VMSAv8-32, which has other rules, of no meaning.
    init(_ rules: PermissionRules) {
        let index =
            (rules.hasTwoRanges ? 1 : 0) | (rules.wxn ? 2 : 0) | (rules.pan ? 4 : 0) | (rules.epan ? 8 : 0)
        row = Self.all.row + index * Self.entriesPerRow
    }

    /// What a leaf permits; parameters as of ``PermissionRules/permissions(of:_:isClean:)``, as words.
    @inline(__always)  // Once for each walk.
    func permissions(of leaf: UInt64, _ hierarchical: UInt64, isClean: Bool) -> Permissions {
        let index =
            (leaf &>> 6) & 0b11 | (leaf &>> 51) & 0b1100 | (hierarchical &>> 55) & 0xF0
            | (isClean ? 0x100 : 0)
        return Permissions(rawValue: row[Int(truncatingIfNeeded: index)])
    }
}
