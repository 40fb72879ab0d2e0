// Whatever a guest writes, the SMMU answers: nothing traps, everything ends.

import AddressSpace
import DeviceModel
import Glibc
import SMMUv3Spec
import SeededRandomness
import SystemBus
import Testing

@testable import SMMUv3

@Suite("Hostile guests")
struct HostileTests {
    static let seeds: [UInt64] = [1, 2, 3, 4, 5, 6]

    /// A number that is more often interesting than a random one is.
    static func value(_ random: inout SplitMix) -> UInt64 {
        switch random.next() % 8 {
        case 0: 0
        case 1: .max
        case 2: 1 << (random.next() % 64)
        case 3: .max >> (random.next() % 64)
        case 4: random.next() & 0xFF
        case 5: TestGuest.ram + (random.next() % TestGuest.ramBytes) & ~0x3F
        default: random.next()
        }
    }

    static func attributes(_ random: inout SplitMix) -> TransactionAttributes {
        TransactionAttributes(
            substreamID: random.next() % 3 == 0
                ? SubstreamID(UInt32(truncatingIfNeeded: random.next() >> (random.next() % 64))) : nil,
            isPrivileged: random.next() & 1 != 0,
            isInstruction: random.next() & 1 != 0,
            isTranslated: random.next() % 4 == 0
        )
    }

    static func anyDMA(_ guest: TestGuest, _ random: inout SplitMix, streams: UInt64 = 1 << 32) {
        // What random structures let stall would wait for ever: nobody resumes it.
        let port = guest.smmu.makePort(
            for: StreamID(UInt32(truncatingIfNeeded: random.next() % streams)),
            canStall: false
        )
        let address = value(&random)
        let attributes = attributes(&random)
        _ = port.read64(at: address, attributes)
        _ = port.write64(random.next(), at: address, attributes)
        let answer = port.translate(
            ATSTranslationRequest(
                address: IOVirtualAddress(address),
                substreamID: attributes.substreamID,
                noWrite: random.next() & 1 != 0,
                isExecute: attributes.isInstruction,
                isPrivileged: attributes.isPrivileged
            )
        )
        if case .success(let translation) = answer, !translation.isDenied {
            _ = port.read64(at: translation.output, TransactionAttributes(isTranslated: true))
        }
        port.sendPageRequest(
            PageRequest(
                address: IOVirtualAddress(address),
                substreamID: attributes.substreamID,
                group: UInt16(truncatingIfNeeded: random.next()),
                isLast: random.next() & 1 != 0,
                wantsRead: random.next() & 1 != 0,
                wantsWrite: random.next() & 1 != 0
            )
        )
        let kind: TransactionKind = random.next() & 1 == 0 ? .read : .write
        let transaction = Transaction(
            streamID: port.streamID,
            attributes: attributes,
            kind: kind,
            address: IOVirtualAddress(address)
        )
        _ = guest.smmu.explain(transaction)
    }

    @Test("random register accesses, between DMA", arguments: seeds, [true, false])
    func registers(_ seed: UInt64, _ isInline: Bool) throws {
        var random = SplitMix(seed: seed)
        var setup = GuestSetup()
        setup.boots = false
        setup.options.commandExecution = isInline ? .inline : .thread
        let guest = try TestGuest(setup)
        // Noise where queues and tables will be read from.
        for index in 0..<0x4000 as Range<UInt64> {
            try guest.poke(TestGuest.ram + index * 8, Self.value(&random))
        }
        let known: [UInt64] = [
            0x20, 0x28, 0x2C, 0x44, 0x50, 0x60, 0x64, 0x80, 0x84, 0x88, 0x90, 0x94, 0x98, 0x9C, 0xA0, 0xA4,
            0x1_00A8, 0x1_00AC,
        ]
        for _ in 0..<3000 {
            let offset = random.next() % 4 == 0 ? random.next() & 0x1_FFFC : known[Int(random.next() % 18)]
            let isWide = offset % 8 == 0 && random.next() & 1 == 0
            if random.next() % 3 == 0 {
                _ = isWide ? try guest.read64(offset) : UInt64(try guest.read32(offset))
            } else if isWide {
                try guest.write64(offset, Self.value(&random))
            } else {
                try guest.write32(offset, UInt32(truncatingIfNeeded: Self.value(&random)))
            }
            if random.next() % 8 == 0 { Self.anyDMA(guest, &random) }
        }
        // Laws that hold whatever was written.
        #expect(try guest.read32(0x24) & ~0b1101 == 0)
        #expect(try guest.read32(0x60) & ~0b1_0000_0101 == 0)
        #expect(try guest.read32(0x0) == setup.identification.idr0.rawValue)
        #expect(try guest.read32(0x98) <= 0xF_FFFF)
        guest.smmu.stop()
    }

    /// What the SMMU of a run is: the profiles in turn.
    static func identification(_ seed: UInt64) -> Identification {
        switch seed % 3 {
        case 0: .full(outputAddressBits: 52)
        case 1: .stage1()
        default: .full()
        }
    }

    @Test("random commands: each is consumed, or stops the queue with an error", arguments: seeds)
    func commands(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let guest = try TestGuest(GuestSetup(identification: Self.identification(seed)))
        let tables = try guest.attachTables(5)
        try tables.map(0x1000, to: try guest.page(holding: 4))
        var errors = 0
        for _ in 0..<4000 {
            let opcode =
                random.next() % 3 == 0
                ? random.next() & 0xFF : CommandTests.legal.sorted()[Int(random.next() % 12)]
            let command = RawCommand(low: Self.value(&random) & ~0xFF | opcode, high: Self.value(&random))
            let before = try guest.commandCons
            try guest.issue(command)
            if try guest.activeErrors & 1 != 0 {
                errors += 1
                #expect(try guest.commandCons == before, "seed \(seed)")
                #expect(try guest.commandError == 1)
                guest.commandProd = before
                try guest.ring()
                try guest.write32(0x64, try guest.read32(0x60))
            }
            if random.next() % 16 == 0 { #expect(guest.dmaRead(5, 0x1000) == .ok(4), "seed \(seed)") }
        }
        #expect(errors > 100)
    }

    @Test("random STEs, CDs and descriptors", arguments: seeds)
    func structures(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        var setup = GuestSetup(identification: Self.identification(seed))
        setup.options.cachesContiguousGroups = true
        setup.streamTable = seed % 2 == 0 ? .linear(8) : .twoLevel(12, split: 6)
        let guest = try TestGuest(setup)
        let area = guest.allocate(1 << 16)
        /// Noise that is an address within the area now and then.
        func word() -> UInt64 {
            random.next() % 2 == 0
                ? area + (random.next() & 0xFFFF) & ~0x3F | random.next() & 3 : Self.value(&random)
        }
        for _ in 0..<400 {
            for _ in 0..<64 { try guest.poke(area + (random.next() & 0xFFF8), word()) }
            if case .twoLevel = setup.streamTable {
                try guest.poke(
                    guest.streamTable + (random.next() % 64) * 8,
                    word() & ~0x1F | random.next() % 14
                )
            } else {
                let stream = random.next() % 256
                try guest.poke(try guest.steAddress(stream), (0..<8).map { _ in word() })
                // Often valid, so that more than V is tested.
                let config = setup.identification.idr0.s2P ? random.next() % 4 : random.next() % 2
                let first = word() & ~0xF800_0000_0000_003F | 0b1001 | config << 1
                try guest.poke(try guest.steAddress(stream), first | (random.next() % 24) << 59)
                if random.next() % 2 == 0 {
                    let words = Stage2Words(
                        t0SZ: random.next() % 40,
                        sl0: random.next() % 4,
                        tg: random.next() % 4,
                        ps: random.next() % 8,
                        endi: random.next() % 4 == 0,
                        affd: random.next() & 1 == 0,
                        ptw: random.next() & 1 == 0,
                        hd: random.next() & 1 == 0,
                        ha: random.next() & 1 == 0,
                        sl0Bit2: random.next() % 4 == 0,
                        ds: random.next() & 1 == 0,
                        ttb: area + (random.next() & 0xFFC0)
                    ).words
                    let entry = try guest.steAddress(stream)
                    try guest.poke(entry + 16, words[2] | random.next() & 3)
                    try guest.poke(entry + 24, words[3])
                }
            }
            let context = area + (random.next() & 0xFFC0)
            var cd = CDWords(
                t0SZ: 16 + random.next() % 24,
                tg0: random.next() % 4,
                epd1: random.next() & 1 == 0,
                ips: random.next() % 8,
                hd: random.next() & 1 == 0,
                ha: random.next() & 1 == 0,
                a: random.next() & 1 == 0,
                asid: random.next() & 3,
                ttb0: area + (random.next() & 0xFFC0)
            )
            if random.next() % 4 == 0 { cd.extra[Int(random.next() % 8)] = word() }
            try guest.poke(context, cd.words)
            try guest.issue(Raw.cfgiAll)
            if random.next() % 2 == 0 { try guest.issue(Raw.tlbiNSNHAll) }
            for _ in 0..<10 { Self.anyDMA(guest, &random, streams: 300) }
            if random.next() % 8 == 0 { _ = try guest.takeEvents() }
        }
        #expect(try guest.activeErrors & 1 == 0)
    }

    @Test("structures that change under the look-up: it ends, with one answer", arguments: seeds)
    func changingStructures(_ seed: UInt64) throws {
        let guest = try TestGuest()
        let tables = try guest.attachTables(5)
        let page = try guest.page(holding: 4)
        try tables.map(0x1000, to: page)
        let ste = try guest.steAddress(5)
        let bus = guest.bus
        let stop = Flag()
        let words = [
            try guest.peek(ste), try guest.peek(try #require(guest.contexts[5])), try guest.peek(tables.root),
        ]
        let addresses = [ste, try #require(guest.contexts[5]), tables.root]
        let vandal = TestThread {
            var random = SplitMix(seed: seed)
            while !stop.isSet {
                let index = Int(random.next() % 3)
                let word = random.next() % 2 == 0 ? words[index] : Self.value(&random)
                try? bus.storeRAM64(word, at: PhysicalAddress(addresses[index]))
            }
        }
        for _ in 0..<2000 {
            try guest.issue(Raw.cfgiAll, Raw.tlbiNHAll)
            _ = guest.dmaRead(5, 0x1000)
            _ = guest.smmu.explain(ExplainTests.transaction(0x1000))
        }
        stop.set()
        vandal.join()
        for index in 0..<3 { try guest.poke(addresses[index], words[index]) }
        try guest.sync(Raw.cfgiAll, Raw.tlbiNHAll)
        #expect(guest.dmaRead(5, 0x1000) == .ok(4), "seed \(seed)")
    }
}
