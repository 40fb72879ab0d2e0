// Commands that are executed in a row: each has its effect, its count and its place, as if it were alone.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3Spec
import SeededRandomness
import Synchronization
import SystemBus
import Testing

@testable import SMMUv3

@Suite("Commands in a row")
struct CommandRunTests {
    /// Notes CONS at each pulse of the line.
    private final class ConsumerSink: InterruptSink {
        private let bus: SystemBus
        private let seen = Mutex<[UInt64]>([])
        init(_ bus: SystemBus) { self.bus = bus }

        func signal(_ signal: InterruptSignal, on line: InterruptLine) {
            let cons = try? bus.load(.word, at: PhysicalAddress(TestGuest.window + 0x9C))
            seen.withLock { $0.append((cons ?? 0) & 0xF_FFFF) }
        }
        var all: [UInt64] { seen.withLock { $0 } }
    }

    private func statistic(_ name: String, _ guest: TestGuest) -> UInt64 {
        guest.smmu.statistics.first { $0.name == name }?.value ?? 0
    }

    @Test(
        "each CMD_SYNC is signalled with CONS just past it, however many commands one write brings",
        arguments: [false, true]
    )
    func consAtEachSync(_ hasMessage: Bool) throws {
        let guest = try TestGuest(MessageTests.setup)
        let word = guest.allocate(64)
        let sink = ConsumerSink(guest.bus)
        let line = try #require(guest.smmu.lines.commandSync)
        line.connect(sink)
        var expected: [UInt64] = []
        // Nine laps of a queue of 64 entries.
        for round in 0..<60 {
            for index in 0..<(1 + round % 11) {
                for _ in 0..<(index % 4) { try guest.queue(Raw.tlbiNHVA(0x1000, asid: 1)) }
                try guest.queue(hasMessage ? MessageTests.sync(word, guest.commandProd) : Raw.sync(cs: 1))
                expected.append(guest.commandProd)
            }
            try guest.ring()
            #expect(try guest.commandCons == guest.commandProd)
        }
        #expect(sink.all == expected)
        let last = hasMessage ? (guest.commandProd - 1) & 0x7F : 0
        #expect(try guest.peek(word) == last)
    }

    @Test("an illegal command in the middle: what is before it is done and counted, nothing behind it")
    func illegalInTheMiddle() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 7)
        for address in [0x1000, 0x2000, 0x3000, 0x4000] as [UInt64] {
            try tables.map(address, to: page)
            #expect(guest.dmaRead(1, address) == .ok(7))
            try tables.unmap(address)
        }
        let before = ["commands", "CMD_TLBI_NH_VA", "command-errors"].map { statistic($0, guest) }
        let at = guest.commandProd
        // A range with NUM, SCALE and TTL all zero is reserved.
        let reserved = Raw.tlbiRange(0x3000, asid: 1, num: 0, scale: 0, ttl: 0, tg: 1)
        for command in [Raw.tlbiNHVA(0x1000, asid: 1), Raw.tlbiNHVA(0x2000, asid: 1), reserved] {
            try guest.queue(command)
        }
        try guest.queue(Raw.tlbiNHVA(0x4000, asid: 1))
        try guest.ring()
        #expect(try guest.commandCons == at + 2)
        #expect(try guest.commandError == 1)
        #expect(guest.dmaRead(1, 0x1000) == .fTranslation)
        #expect(guest.dmaRead(1, 0x2000) == .fTranslation)
        #expect(guest.dmaRead(1, 0x3000) == .ok(7))
        #expect(guest.dmaRead(1, 0x4000) == .ok(7))
        let after = ["commands", "CMD_TLBI_NH_VA", "command-errors"].map { statistic($0, guest) }
        #expect(zip(after, before).map { $0 &- $1 } == [3, 3, 1])
        // Repaired, it goes on from there.
        try guest.poke(guest.commandQueue + (at + 2) * 16, [Raw.sync().low, 0])
        try guest.write32(0x64, try guest.read32(0x60))
        #expect(try guest.commandCons == guest.commandProd)
        #expect(guest.dmaRead(1, 0x4000) == .fTranslation)
    }

    @Test("a queue whose second half is nowhere: CERROR_ABT at the first command that cannot be read")
    func queueLeavesRAM() throws {
        let guest = try TestGuest()
        let page = try MemoryRegion.anonymous(byteCount: 4096, name: "half")
        try guest.bus.addRAM(page, at: PhysicalAddress(0x4000_0000), name: "half")
        try guest.write32(0x20, 0b0101)
        // 512 entries in 8 KiB, of which 256 are there.
        try guest.write64(0x90, 0x4000_0000 | 9)
        try guest.write32(0x9C, 250)
        try guest.write32(0x98, 250)
        try guest.write32(0x20, 0b1101)
        for index in 250..<256 as Range<UInt64> {
            try guest.poke(0x4000_0000 + index * 16, [Raw.tlbiNHAll.low, 0])
        }
        let before = statistic("CMD_TLBI_NH_ALL", guest)
        try guest.write32(0x98, 260)
        #expect(try guest.commandCons == 256)
        #expect(try guest.commandError == 2)
        #expect(statistic("CMD_TLBI_NH_ALL", guest) == before + 6)
    }

    @Test("commands of every kind between each other take effect in their order")
    func order() throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(1)
        let page = try guest.page(holding: 3)
        try tables.map(0x1000, to: page)
        #expect(guest.dmaRead(1, 0x1000) == .ok(3))
        try tables.unmap(0x1000)
        let at = guest.commandProd
        // The TLBI is behind a command that is not executed in a row, and in front of one that stops the queue.
        for command in [
            Raw.tlbiNHASID(9), Raw.cfgiSTE(1), Raw.tlbiNHVA(0x1000, asid: 1), Raw.sync(),
            RawCommand(low: 0xFF),
            Raw.sync(cs: 1),
        ] {
            try guest.queue(command)
        }
        try guest.ring()
        #expect(try guest.commandCons == at + 4)
        #expect(guest.dmaRead(1, 0x1000) == .fTranslation)
        #expect(guest.syncLine.count == 0)
    }

    @Test("CMDQEN off and on between commands: all of them once")
    func disabled() throws {
        let guest = try TestGuest()
        let before = statistic("CMD_TLBI_NH_ALL", guest)
        for _ in 0..<50 {
            try guest.write32(0x20, 0b0101)
            #expect(try guest.read32(0x24) == 0b0101)
            for _ in 0..<20 { try guest.queue(Raw.tlbiNHAll) }
            try guest.ring()
            #expect(try guest.commandCons != guest.commandProd)
            try guest.write32(0x20, 0b1101)
            #expect(try guest.commandCons == guest.commandProd)
        }
        #expect(statistic("CMD_TLBI_NH_ALL", guest) == before + 1000)
    }
}

@Suite("Commands within a register write")
struct QuickCommandTests {
    private static func statistic(_ name: String, _ guest: TestGuest) -> UInt64 {
        guest.smmu.statistics.first { $0.name == name }?.value ?? 0
    }

    /// A guest whose command queue, of 16 entries, is in memory of its own at 1 GiB.
    private static func guest() throws -> TestGuest {
        let guest = try TestGuest()
        try guest.write32(0x20, 0b0101)
        try guest.write64(0x90, 0x4000_0000 | 4)
        try guest.write32(0x9C, 0)
        try guest.write32(0x98, 0)
        return guest
    }

    private static func queue(_ commands: RawCommand...) throws -> MemoryRegion {
        let memory = try MemoryRegion.anonymous(byteCount: 4096, name: "queue")
        let words = try memory.pointer(at: 0, count: 4096, for: .write).assumingMemoryBound(to: UInt64.self)
        for (index, command) in commands.enumerated() {
            (words[2 * index], words[2 * index + 1]) = (command.low, command.high)
        }
        return memory
    }

    @Test("memory of the queue that goes: CERROR_ABT; and what comes in its place is what is executed")
    func otherMemory() throws {
        let guest = try Self.guest()
        let address = PhysicalAddress(0x4000_0000)
        let range = try #require(AddressRange(start: address.rawValue, byteCount: 4096))
        let (plain, illegal) = (Raw.tlbiNHVA(0x1000, asid: 1), RawCommand(low: 0xFF))
        let first = try Self.queue(plain, plain, plain)
        try guest.bus.addRAM(first, at: address, name: "first")
        try guest.write32(0x20, 0b1101)
        try guest.write32(0x98, 1)
        #expect(try guest.commandCons == 1)
        guest.bus.removeRAM(at: range)
        try guest.write32(0x98, 2)
        #expect(try guest.commandCons == 1)
        #expect(try guest.commandError == 2)
        try guest.bus.addRAM(Self.queue(illegal, illegal), at: address, name: "second")
        try guest.write32(0x64, try guest.read32(0x60))
        #expect(try guest.commandCons == 1)
        #expect(try guest.commandError == 1)
    }

    @Test("SMMU_CMDQ_BASE elsewhere: commands are fetched from where it says")
    func otherBase() throws {
        let guest = try Self.guest()
        let (plain, illegal) = (Raw.tlbiNHVA(0x1000, asid: 1), RawCommand(low: 0xFF))
        try guest.bus.addRAM(Self.queue(plain, plain), at: PhysicalAddress(0x4000_0000), name: "first")
        try guest.bus.addRAM(Self.queue(illegal, illegal), at: PhysicalAddress(0x4000_1000), name: "second")
        try guest.write32(0x20, 0b1101)
        try guest.write32(0x98, 1)
        #expect(try guest.commandCons == 1)
        try guest.write32(0x20, 0b0101)
        try guest.write64(0x90, 0x4000_1000 | 4)
        try guest.write32(0x20, 0b1101)
        try guest.write32(0x98, 2)
        #expect(try guest.commandCons == 1)
        #expect(try guest.commandError == 1)
    }

    @Test("a queue that goes round its end, and indices that no queue can have")
    func wrapping() throws {
        let guest = try Self.guest()
        let memory = try Self.queue()
        try guest.bus.addRAM(memory, at: PhysicalAddress(0x4000_0000), name: "queue")
        let words = try memory.pointer(at: 0, count: 256, for: .write).assumingMemoryBound(to: UInt64.self)
        for index in 0..<16 { words[2 * index] = Raw.tlbiNHVA(0x1000, asid: 1).low }
        try guest.write32(0x20, 0b1101)
        let before = Self.statistic("CMD_TLBI_NH_VA", guest)
        var prod: UInt32 = 0
        for step in 1...16 as ClosedRange<UInt32> {
            // Up to a full queue; bits above the wrap flag are no part of an index.
            prod = (prod + step) & 0x1F
            try guest.write32(0x98, prod | 0xABC0_0000)
            #expect(try guest.commandCons == prod)
        }
        #expect(Self.statistic("CMD_TLBI_NH_VA", guest) == before + 136)
        try guest.write32(0x98, (prod &+ 17) & 0x1F)
        #expect(try guest.commandCons == prod)
        try guest.write32(0x98, (prod &+ 1) & 0x1F)
        #expect(try guest.commandCons == (prod + 1) & 0x1F)
    }

    @Test(
        "one thread executes within its writes, others make themselves the consumer: each command counts once"
    )
    func twoWaysAtOnce() throws {
        let guest = try TestGuest()
        let (bus, stop) = (guest.bus, Flag())
        // What is no write of SMMU_CMDQ_PROD looks at the queue as its consumer.
        let others = (0..<2).map { _ in
            TestThread {
                while !stop.isSet {
                    try? bus.store(0b1101, .word, at: PhysicalAddress(TestGuest.window + 0x20))
                }
            }
        }
        let names = ["CMD_TLBI_NH_VA", "CMD_CFGI_STE", "CMD_SYNC", "syncs", "commands"]
        let before = names.map { Self.statistic($0, guest) }
        let rounds: UInt64 = 20_000
        for round in 0..<rounds {
            try guest.queue(Raw.tlbiNHVA(0x1000, asid: 1))
            if round % 4 == 0 { try guest.queue(Raw.cfgiSTE(3)) }
            // More than are executed within a write: the next may come while another executes the rest.
            if round % 4 == 1 { for _ in 0..<12 { try guest.queue(Raw.tlbiNHVA(0x1000, asid: 1)) } }
            try guest.queue(Raw.sync())
            try guest.ring()
            if round % 8 == 0 { try guest.waitForCommands() }
        }
        try guest.waitForCommands()
        stop.set()
        for other in others { other.join() }
        let counts = zip(names, before).map { Self.statistic($0, guest) &- $1 }
        #expect(counts == [4 * rounds, rounds / 4, rounds, rounds, 5 * rounds + rounds / 4])
        #expect(try guest.activeErrors == 0)
    }
}

@Suite("The command thread's SMMU")
struct CommandThreadLifeTests {
    private struct Weak { weak var smmu: SMMUv3? }

    @Test("an SMMU that is let go while its thread executes commands goes, and the thread with it")
    func letGo() throws {
        let bus = SystemBus()
        let memory = try MemoryRegion.anonymous(byteCount: 1 << 16, name: "ram")
        try bus.addRAM(memory, at: PhysicalAddress(0x8000_0000), name: "ram")
        for index in 0..<256 as Range<UInt64> {
            try bus.storeRAM64(Raw.tlbiNHAll.low, at: PhysicalAddress(0x8000_0000 + index * 16))
        }
        for round in 0..<300 {
            var options = SMMUv3Options()
            options.commandExecution = .thread
            options.tlbEntries = 64
            var smmu: SMMUv3? = SMMUv3(name: "smmu", identification: .stage1(), options: options, bus: bus)
            let held = Weak(smmu: smmu)
            try smmu?.write(0x8000_0000 | 8, at: 0x90, width: .doubleword)
            try smmu?.write(0b1000, at: 0x20, width: .word)
            for prod in stride(from: 1, through: 1 + round % 200, by: 7) {
                try smmu?.write(UInt64(prod), at: 0x98, width: .word)
            }
            smmu = nil
            // The thread may hold it for as long as it executes.
            while held.smmu != nil { sched_yield() }
        }
    }
}

@Suite("What a TLBI covers")
struct TLBIScopeTests {
    /// What the architecture says of one entry, field by field.
    private static func covers(
        _ scope: TranslationCache.Scope,
        _ entry: CachedTranslation,
        _ wildcard: UInt16
    ) -> Bool {
        func matches(_ vmid: UInt16) -> Bool { (entry.tag.vmid ^ vmid) & ~wildcard == 0 }
        func holds(_ regimes: TranslationRegimes) -> Bool {
            switch entry.tag.regime {
            case .nsEL1: regimes.contains(.nsEL1)
            case .nsEL1Stage2: regimes.contains(.nsEL1Stage2)
            case .nsEL2: regimes.contains(.nsEL2)
            case .nsEL2E2H: regimes.contains(.nsEL2E2H)
            }
        }
        func holds(_ addresses: TranslationCache.AddressScope) -> Bool {
            if let granule = addresses.granule, granule != entry.granule { return false }
            if let level = addresses.level, level != entry.level { return false }
            let below: UInt64 = (1 << UInt64(entry.firstStageLog2Bytes)) - 1
            return entry.inputBase & ~below <= addresses.last && addresses.first <= entry.inputBase | below
        }
        return switch scope {
        case .everything: true
        case .regimes(let regimes): holds(regimes)
        case .vmid(let regimes, let vmid): holds(regimes) && matches(vmid)
        case .asid(let regime, let vmid, let asid):
            entry.tag.regime == regime && matches(vmid) && !entry.isGlobal && entry.tag.asid == asid
        case .address(let regime, let vmid, let asid, let addresses):
            entry.tag.regime == regime && matches(vmid) && (entry.isGlobal || entry.tag.asid == asid)
                && holds(addresses)
        case .addressAllASIDs(let regime, let vmid, let addresses):
            entry.tag.regime == regime && matches(vmid) && holds(addresses)
        }
    }

    private static func entry(_ random: inout SplitMix, mayBePartial: Bool) -> CachedTranslation {
        func below(_ bound: UInt64) -> UInt64 { random.next() % bound }
        let granule = Granule.allCases[Int(below(3))]
        let level = below(2) == 0 ? 3 : 2
        let log2Bytes = granule.log2Bytes(ofLevel: level)
        let part = mayBePartial && below(3) == 0 ? 12 : log2Bytes
        var entry = CachedTranslation.none
        entry.inputBase = below(1 << 16) << 12 & ~((1 << UInt64(part)) - 1)
        entry.outputBase = entry.inputBase
        entry.intermediateBase = entry.inputBase
        entry.log2Bytes = UInt8(part)
        entry.firstStageLog2Bytes = UInt8(log2Bytes)
        entry.level = UInt8(level)
        entry.granule = granule
        entry.isGlobal = below(4) == 0
        entry.tag = RegimeTag(
            regime: [.nsEL1, .nsEL1Stage2, .nsEL2, .nsEL2E2H][Int(below(4))],
            vmid: UInt16(below(4)),
            asid: UInt16(below(3)),
            aset: below(2) == 0
        )
        entry.stage1Permissions = .all
        entry.stage2Permissions = .all
        return entry
    }

    private static func scope(_ random: inout SplitMix) -> TranslationCache.Scope {
        func below(_ bound: UInt64) -> UInt64 { random.next() % bound }
        let regime = [TranslationRegime.nsEL1, .nsEL1Stage2, .nsEL2, .nsEL2E2H][Int(below(4))]
        let (vmid, asid) = (UInt16(below(4)), UInt16(below(3)))
        let first = below(1 << 16) << 12
        let addresses = TranslationCache.AddressScope(
            first: first,
            last: first + 4096 << below(8) - 1,
            granule: below(2) == 0 ? nil : Granule.allCases[Int(below(3))],
            level: below(2) == 0 ? nil : UInt8(2 + below(2))
        )
        switch below(12) {
        case 0: return .regimes([.nsEL1, .nsEL1Stage2])
        case 1: return .regimes([.nsEL2, .nsEL2E2H])
        case 2: return .vmid([.nsEL1, .nsEL1Stage2], vmid)
        case 3: return .vmid([.nsEL1], vmid)
        case 4: return .asid(regime, vmid: vmid, asid: asid)
        case 5, 6: return .addressAllASIDs(regime, vmid: vmid, addresses)
        default: return .address(regime, vmid: vmid, asid: asid, addresses)
        }
    }

    @Test("exactly what it names goes, by probing and by scanning", arguments: [false, true])
    func exact(_ mayBePartial: Bool) {
        var random = SplitMix(seed: mayBePartial ? 7101 : 7102)
        for round in 0..<400 {
            // Large enough that little is evicted.
            let cache = TranslationCache(entryCount: 4096, generation: InvalidationGeneration())
            for _ in 0..<120 {
                let stamp = cache.generation.stamp()
                cache.fill(Self.entry(&random, mayBePartial: mayBePartial), walkedAt: stamp)
            }
            let before = Self.entries(of: cache)
            let scope = Self.scope(&random)
            let wildcard: UInt16 = random.next() % 4 == 0 ? 0b11 : 0
            let removed = cache.invalidate(scope, ignoringVMIDBits: wildcard)
            let expected = before.filter { !Self.covers(scope, $0, wildcard) }
            #expect(Self.entries(of: cache) == expected, "round \(round): \(scope)")
            #expect(removed == before.count - expected.count, "round \(round)")
            #expect(cache.counters.residentEntries == expected.count)
            // What look-ups go by is right, too: each that is left is found.
            for entry in expected {
                #expect(cache.peek(entry.inputBase, tag: entry.tag) != nil, "round \(round)")
            }
            cache.invalidate(.everything)
            #expect(cache.counters.residentEntries == 0)
            #expect(cache.words[0] == 0 && cache.words[1] == 0, "no size is left, nothing global")
        }
    }

    private static func entries(of cache: TranslationCache) -> [CachedTranslation] {
        (0..<(cache.setCount * TranslationCache.ways)).compactMap { cache.entry($0).current }
    }
}
