// A stream with random tables, what the specification says of it, and what the model says.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import SeededRandomness
import SystemBus
import Testing

@testable import SMMUv3

/// Whose tables they are.
struct RandomWorld: Sendable, CustomTestStringConvertible {
    var name: String
    var strw: UInt64 = 0
    var isE2H = false
    var isAArch32 = false

    static let el1 = RandomWorld(name: "NS-EL1")
    static let el2 = RandomWorld(name: "NS-EL2", strw: 2)
    static let e2h = RandomWorld(name: "NS-EL2-E2H", strw: 2, isE2H: true)
    static let aarch32 = RandomWorld(name: "VMSAv8-32", isAArch32: true)

    var hasUpperHalf: Bool { strw == 0 || isE2H }
    var testDescription: String { name }
}

/// One stream with random tables of one or two stages.
struct RandomStream {
    static let id: UInt64 = 5
    static let asid: UInt64 = 0x1234
    static let vmid: UInt64 = 0x321

    let guest: TestGuest
    let world: RandomWorld
    var lower: RandomStage?
    var upper: RandomStage?
    var second: RandomStage?
    var plain: PlainTranslation
    var contextAddress: UInt64 = 0
    /// What is looked up.
    var addresses: [UInt64] = []

    init(config: UInt64, world: RandomWorld = .el1, _ random: inout SplitMix) throws {
        self.world = world
        let isLarge = random.next() % 2 == 0
        guest = try TestGuest.full(bits: isLarge ? 52 : 48)
        let bus = guest.bus
        plain = PlainTranslation(load: { try? bus.loadRAM64(at: PhysicalAddress($0)) })
        if world.strw != 0 {
            // CR2.E2H, with RECINVSID and PTM as they were; CR2 is guarded by SMMUEN.
            try guest.write32(0x20, 0b1100)
            try guest.write32(0x2C, world.isE2H ? 0b111 : 0b110)
            try guest.write32(0x20, 0b1101)
        }
        var ste = STEWords(config: config, strw: world.strw, s2VMID: Self.vmid)
        // Stage 1's tables need room in the IPA space.
        let largest: UInt64 = config == 0b111 ? 32 : 48
        if config & 0b010 != 0 {
            let isSmall = world.isAArch32 && (config == 0b110 || random.next() % 2 == 0)
            ste.extra =
                try isSmall
                ? makeAArch32Stage2(config == 0b111, &random).words
                : makeStage2(isLarge, largest, &random).words
        }
        if config & 0b001 != 0 {
            let cd = try world.isAArch32 ? makeAArch32Context(&random) : makeContext(isLarge, &random)
            contextAddress = try place(cd, &random)
            ste.s1ContextPtr = contextAddress
        }
        try guest.setSTE(Self.id, ste)
        for _ in 0..<24 { addresses.append(try makeAddress(&random)) }
    }

    private static func shape(_ isLarge: Bool, _ ds: Bool, _ random: inout SplitMix) -> (
        Int, sizes: ClosedRange<UInt64>
    ) {
        let granule = [12, 14, 16][Int(random.next() % 3)]
        let smallest: UInt64 = isLarge && (ds || granule == 16) ? 12 : 16
        return (granule, smallest...(granule == 16 ? 47 : 48))
    }

    /// An address in RAM, one beyond, or any.
    static func output(_ random: inout SplitMix) -> UInt64 {
        switch random.next() % 8 {
        case 0: random.next() & 0xF_FFFF_FFFF_FFFF
        case 1: random.next() & 0xFFFF_FFFF
        default: TestGuest.ram + random.next() % TestGuest.ramBytes
        }
    }

    private mutating func makeStage2(_ isLarge: Bool, _ largest: UInt64, _ random: inout SplitMix) throws
        -> Stage2Words
    {
        let ds = isLarge && random.next() % 2 == 0
        let (granule, sizes) = Self.shape(isLarge, ds, &random)
        // A level and a size that go together: 1 to stride + 4 bits in the first table.
        var stage = PlainStage(granule: granule)
        var size: UInt64 = 0
        repeat {
            size = random.next() % UInt64(sizes.count) + sizes.lowerBound
            stage.startLevel = Int(random.next() % 5) - 1
            let lowest = granule == 12 ? (ds ? -1 : 0) : granule == 14 ? (ds ? 0 : 1) : 1
            guard stage.startLevel >= lowest, size <= largest else { continue }
            stage.inputBits = 64 - Int(size)
            let bits = stage.inputBits - RandomStage.shift(stage, stage.startLevel)
            if bits >= 1, bits <= granule - 3 + 4 { break }
        } while true
        stage.ds = ds && granule < 16
        stage.isLarge = isLarge
        stage.isBigEndian = random.next() % 3 == 0
        stage.affd = random.next() % 4 == 0
        let ps = [5, 5, 5, isLarge ? 6 : 5, 2][Int(random.next() % 5)] as UInt64
        stage.outputBits = ps == 6 ? 52 : ps == 5 ? 48 : 40
        let tables = try RandomStage(
            stage,
            PhysicalTables(guest),
            isStage2: true,
            &random,
            output: Self.output
        )
        second = tables
        plain.stage2 = tables.plain
        plain.s2PTW = random.next() % 2 == 0
        let sl0: [Int: UInt64] = granule == 12 ? [2: 0, 1: 1, 0: 2, 3: 3, -1: 0] : [3: 0, 2: 1, 1: 2, 0: 3]
        return Stage2Words(
            t0SZ: size,
            sl0: sl0[stage.startLevel] ?? 0,
            tg: granule == 12 ? 0 : granule == 16 ? 1 : 2,
            ps: ps,
            endi: stage.isBigEndian,
            affd: stage.affd,
            ptw: plain.s2PTW,
            sl0Bit2: stage.startLevel == -1,
            ds: ds,
            ttb: tables.plain.base
        )
    }

    private mutating func makeContext(_ isLarge: Bool, _ random: inout SplitMix) throws -> CDWords {
        var cd = CDWords(asid: Self.asid)
        let ds = isLarge && random.next() % 2 == 0
        cd.extra[2] = bit(ds, 186 - 128)
        cd.endi = random.next() % 3 == 0
        cd.affd = random.next() % 4 == 0
        cd.wxn = random.next() % 3 == 0
        cd.pan = random.next() % 4 == 0
        cd.tbi0 = random.next() % 2 == 0
        cd.tbi1 = random.next() % 2 == 0
        cd.ips = [5, 5, 5, isLarge ? 6 : 5, 2][Int(random.next() % 5)]
        let e0pd0 = random.next() % 8 == 0
        cd.extra[1] = bit(e0pd0, 66 - 64)
        var context = PlainContext(tbi0: cd.tbi0, tbi1: cd.tbi1, wxn: cd.wxn, pan: cd.pan, e0pd0: e0pd0)
        // NS-EL2 knows no unprivileged accesses, and so does not refuse them.
        if !world.hasUpperHalf { (context.isSingle, context.e0pd0) = (true, false) }
        let memory: any TableMemory
        if let second {
            memory = IntermediateTables(guest, second, flaws: 10)
        } else {
            memory = PhysicalTables(guest)
        }
        func makeHalf(_ random: inout SplitMix) throws -> (RandomStage, size: UInt64) {
            let (granule, sizes) = Self.shape(isLarge, ds, &random)
            let size = random.next() % UInt64(sizes.count) + sizes.lowerBound
            var stage = PlainStage(granule: granule, inputBits: 64 - Int(size))
            // The level at which the first table has as many bits as a table can, at most.
            stage.startLevel = 3
            while stage.inputBits > RandomStage.shift(stage, stage.startLevel - 1) { stage.startLevel -= 1 }
            stage.ds = ds && granule < 16
            stage.isLarge = isLarge
            stage.isBigEndian = cd.endi
            stage.affd = cd.affd
            stage.had = random.next() % 4 == 0
            stage.outputBits = cd.ips == 6 ? 52 : cd.ips == 5 ? 48 : 40
            // Behind stage 2 what stage 1 gives is an IPA that stage 2 may translate.
            let bits = second?.plain.inputBits
            let output: (inout SplitMix) -> UInt64 = { random in
                guard let bits, random.next() % 10 > 0 else { return Self.output(&random) }
                return random.next() & ((1 << UInt64(bits)) - 1) & 0xFFFF_FFFF_FFFF
            }
            return (try RandomStage(stage, memory, isStage2: false, &random, output: output), size)
        }
        let tg: (Int, Bool) -> UInt64 = { granule, isUpper in
            granule == 12 ? (isUpper ? 2 : 0) : granule == 14 ? (isUpper ? 1 : 2) : (isUpper ? 3 : 1)
        }
        let (first, firstSize) = try makeHalf(&random)
        lower = first
        (cd.t0SZ, cd.tg0, cd.had0, cd.ttb0) = (
            firstSize, tg(first.plain.granule, false), first.plain.had, first.plain.base
        )
        context.lower = first.plain
        if world.hasUpperHalf, random.next() % 2 == 0 {
            let (other, otherSize) = try makeHalf(&random)
            upper = other
            (cd.t1SZ, cd.tg1, cd.had1, cd.ttb1) = (
                otherSize, tg(other.plain.granule, true), other.plain.had, other.plain.base
            )
            cd.epd1 = false
            context.upper = other.plain
        }
        plain.context = context
        return cd
    }

    /// Puts the CD where the SMMU looks for it: behind stage 2, where there is one.
    private func place(_ cd: CDWords, _ random: inout SplitMix) throws -> UInt64 {
        let memory: any TableMemory
        if let second {
            memory = IntermediateTables(guest, second, flaws: 0)
        } else {
            memory = PhysicalTables(guest)
        }
        let address = try memory.makeTable(64, &random)
        for (index, word) in cd.words.enumerated() { try memory.poke(address + UInt64(index) * 8, word) }
        return address
    }

    /// A random address with the tables that it needs.
    private func makeAddress(_ random: inout SplitMix) throws -> UInt64 {
        if plain.context == nil, let second {
            let address = random.next() & ((1 << UInt64(second.plain.inputBits)) - 1) & ~7
            if random.next() % 30 == 0 { return address | 1 << UInt64(second.plain.inputBits) }
            try second.fill(address, &random)
            return address
        }
        let isUpper = upper != nil && random.next() % 2 == 0
        guard let half = isUpper ? upper : lower else { return 0 }
        let bits = UInt64(half.plain.inputBits)
        let offset = random.next() & ((1 << bits) - 1) & ~7
        try half.fill(offset, &random)
        try fillSecond(of: offset, half, &random)
        var address = inputAddress(offset, half)
        switch random.next() % 16 {
        case 0: address ^= 1 << (56 + random.next() % 8)
        case 1: address ^= 1 << (bits + random.next() % (64 - bits))
        default: break
        }
        return address
    }

    /// The address that has this offset in a half.
    func inputAddress(_ offset: UInt64, _ half: RandomStage) -> UInt64 {
        guard half === upper else { return offset }
        let address = offset | ~((1 << UInt64(half.plain.inputBits)) - 1)
        return world.isAArch32 ? address & 0xFFFF_FFFF : address
    }

    /// Stage 2's tables for what stage 1 gives for an address.
    func fillSecond(of offset: UInt64, _ half: RandomStage, _ random: inout SplitMix) throws {
        guard let second, let last = try half.path(offset).last, last.word & 1 == 1 else { return }
        let size: UInt64 = 1 << UInt64(half.shift(last.level))
        let output = last.word & 0xFFFF_FFFF_F000 & ~(size - 1) | offset & (size - 1)
        guard output >> UInt64(second.plain.inputBits) == 0 else { return }
        try second.fill(output, &random)
    }

    static let accesses = [false, true].flatMap { isPrivileged in
        [
            PlainAccess(isPrivileged: isPrivileged),
            PlainAccess(isWrite: true, isPrivileged: isPrivileged),
            PlainAccess(isPrivileged: isPrivileged, isInstruction: true),
        ]
    }

    func transaction(_ address: UInt64, _ access: PlainAccess) -> Transaction {
        Transaction(
            streamID: StreamID(UInt32(Self.id)),
            attributes: TransactionAttributes(
                isPrivileged: access.isPrivileged,
                isInstruction: access.isInstruction
            ),
            kind: access.isWrite ? .write : .read,
            address: IOVirtualAddress(address)
        )
    }

    /// What the specification says: an address, or an event's record.
    func expected(_ address: UInt64, _ access: PlainAccess, bits: Int) -> Answer {
        do throws(PlainFault) {
            if plain.context != nil {
                do { _ = try plain.structure(contextAddress, access) } catch let fault as PlainFault {
                    throw fault
                } catch { return .other }
            } else if address >> UInt64(bits) != 0 {
                throw PlainFault(event: 0x11)
            }
            do { return .output(try plain.translate(address, access)) } catch let fault as PlainFault {
                throw fault
            } catch { return .other }
        } catch {
            return .record(
                eventWords(
                    error.event,
                    stream: Self.id,
                    isRead: !access.isWrite,
                    isPrivileged: access.isPrivileged,
                    isInstruction: access.isInstruction && !access.isWrite,
                    eventClass: error.eventClass,
                    isStage2: error.isStage2,
                    isTableRead: error.isTableRead,
                    input: address,
                    fetch: error.address & (error.event == 0x0B ? ~7 : ~0xFFF)
                )
            )
        }
    }

    /// What the model says.
    func answer(_ address: UInt64, _ access: PlainAccess, _ policy: SMMUv3.CachePolicy) -> Answer {
        var observer = NoObserver()
        do {
            let translation = try guest.smmu.translate(
                transaction(address, access),
                guest.smmu.currentControls(),
                policy,
                &observer
            )
            return .output(translation.output.rawValue)
        } catch {
            guard let record = error.record else { return .other }
            return .record((0..<4).map { record.words[$0] })
        }
    }

    enum Answer: Equatable {
        case output(UInt64)
        case record([UInt64])
        case other
    }
}
