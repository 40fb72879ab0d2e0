// Runs of pages in the TLB: they are what look-ups of each page come to.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

@Suite("TLB runs")
struct TLBRunTests {
    private let tag = RegimeTag(regime: .nsEL1, vmid: 3, asid: 7, aset: false)

    private func page(_ input: UInt64, to output: UInt64, log2Bytes: UInt8 = 12) -> CachedTranslation {
        var entry = CachedTranslation.none
        (entry.inputBase, entry.outputBase, entry.intermediateBase) = (input, output, output)
        (entry.log2Bytes, entry.firstStageLog2Bytes) = (log2Bytes, log2Bytes)
        (entry.level, entry.tag) = (3, tag)
        (entry.stage1Permissions, entry.stage2Permissions) = (.all, .all)
        return entry
    }

    private func makeCache(_ entryCount: Int = 1024) -> TranslationCache {
        TranslationCache(entryCount: entryCount, generation: InvalidationGeneration())
    }

    private func fill(_ cache: TranslationCache, _ entry: CachedTranslation) {
        cache.fill(entry, walkedAt: cache.generation.stamp())
    }

    @Test("a run is what look-ups of its pages come to, and ends where they differ", arguments: 0..<16)
    func random(_ round: Int) {
        var random = SplitMix(seed: 8200 + UInt64(round))
        func below(_ bound: Int) -> Int { Int(random.next() % UInt64(bound)) }
        let cache = makeCache()
        let key = TLBKey(tag)
        let log2Bytes: UInt8 = round % 4 == 3 ? 16 : 12
        // Seldom in half of the rounds: then runs are long.
        let rarity = round % 2 == 0 ? 4 : 60
        var output: UInt64 = 0x8000_0000
        for number in 0..<600 as Range<UInt64> where below(rarity) > 0 {
            var entry = page((0x100 + number) << UInt64(log2Bytes), to: output, log2Bytes: log2Bytes)
            output += below(rarity) == 0 ? 1 << 20 : 1 << UInt64(log2Bytes)
            if below(rarity) == 0 { entry.stage1Permissions = .read }
            if below(rarity) == 0 { entry.isGlobal = true }
            if below(rarity) == 0 { entry.tag.asid ^= 1 }
            if below(rarity) == 0 { entry.tag.vmid ^= 1 }
            if round % 8 == 1, below(rarity) == 0 { (entry.log2Bytes, entry.firstStageLog2Bytes) = (21, 21) }
            fill(cache, entry)
        }
        var longest: UInt64 = 0
        for _ in 0..<150 {
            let address = 0x100 << UInt64(log2Bytes) + random.next() % (600 << UInt64(log2Bytes))
            let wanted = 1 + random.next() % (1 << 20)
            let run = cache.table.run(address, wanted, key)
            #expect((run == nil) == (cache.table.hit(address, key) == nil))
            guard let run else { continue }
            longest = max(longest, run.pieceCount)
            #expect(run.byteCount <= wanted && run.firstByteCount <= run.byteCount)
            var (seen, pieces) = (0 as UInt64, 0 as UInt64)
            while seen < run.byteCount {
                guard let hit = cache.table.hit(address + seen, key) else {
                    Issue.record("no page at \(address + seen)")
                    break
                }
                let mask: UInt64 = 1 << UInt64(hit.log2Bytes) - 1
                #expect(hit.outputBase | (address + seen) & mask == run.output + seen)
                #expect(hit.permissions == run.permissions)
                seen += mask - (address + seen) & mask + 1
                pieces += 1
                if pieces == 1 { #expect(min(seen, wanted) == run.firstByteCount) }
            }
            #expect(min(seen, wanted) == run.byteCount && pieces == run.pieceCount)
        }
        #expect(longest > (rarity == 4 ? 1 : 15), "seed \(8200 + round)")
    }

    @Test("pages in a row are one run, wherever it begins and ends", arguments: 1..<12 as Range<UInt64>)
    func whole(_ count: UInt64) {
        let cache = makeCache()
        for number in 0..<64 as Range<UInt64> {
            fill(cache, page(number << 12, to: 0x8000_0000 + number << 12))
        }
        for first in 0..<8 as Range<UInt64> {
            let run = cache.table.run(first << 12 + 5, count << 12, TLBKey(tag))
            #expect(run?.byteCount == count << 12)
            #expect(run?.pieceCount == count + 1, "\(first)")
            #expect(run?.output == 0x8000_0005 + first << 12)
        }
    }

    @Test("an end of the addresses, of input or of output, ends a run")
    func ends() {
        let key = TLBKey(tag)
        // The next page has the same words as what would follow in them, if a sum went over its field.
        var cache = makeCache()
        var above = page(0x5000, to: 0)
        (above.stage1Permissions, above.stage2Permissions) = (Permissions(rawValue: 0b11), .all)
        var below = page(0x4000, to: 0x000F_FFFF_FFFF_F000)
        below.stage1Permissions = Permissions(rawValue: 0b10)
        fill(cache, below)
        fill(cache, above)
        #expect(cache.table.run(0x4000, 0x2000, key)?.pieceCount == 1)

        cache = makeCache()
        fill(cache, page(0x000F_FFFF_FFFF_F000, to: 0x8000_0000))
        fill(cache, page(0xFFF0_0000_0000_0000, to: 0x8000_1000))
        #expect(cache.table.run(0x000F_FFFF_FFFF_F000, 0x2000, key)?.pieceCount == 1)
        #expect(cache.table.run(0xFFF0_0000_0000_0000, 0x2000, key)?.pieceCount == 1)
    }

    @Test("what is being replaced ends a run before its set", arguments: [2 as UInt64, 4, 6])
    func replacedMeanwhile(_ page: UInt64) {
        let cache = makeCache()
        let key = TLBKey(tag)
        for number in 0..<16 as Range<UInt64> {
            fill(cache, self.page(number << 12, to: 0x8000_0000 + number << 12))
        }
        #expect(cache.table.run(0, 16 << 12, key)?.pieceCount == 16)
        cache.table.sequence(cache.table.setIndex(page, key.mix)).pointee += 1
        let run = cache.table.run(0, 16 << 12, key)
        // Sets hold four pages; nothing is said of those of the first.
        #expect(run?.pieceCount == (page < 4 ? nil : 4))
    }
}

@Suite("TLB runs and fills, by transactions")
struct TLBTransactionTests {
    @Test("past the top of the upper half, where its top byte is ignored, is not page 0")
    func pastTheTop() throws {
        let guest = try TestGuest()
        let (lower, upper) = (GuestTables(guest), GuestTables(guest))
        try lower.map(0, to: try guest.page(holding: 1))
        try upper.map(0xFFFF_FFFF_FFFF_E000, to: try guest.page(holding: 2))
        try upper.map(0xFFFF_FFFF_FFFF_F000, to: try guest.page(holding: 3))
        try guest.attach(1, CDWords(epd1: false, tbi1: true, ttb0: lower.root, ttb1: upper.root))
        #expect(guest.dmaRead(1, 0) == .ok(1))
        #expect(guest.dmaRead(1, 0xFFFF_FFFF_FFFF_E000) == .ok(2))
        #expect(guest.dmaRead(1, 0x55FF_FFFF_FFFF_F000) == .ok(3))
        var bytes = [UInt8](repeating: 0xA5, count: 0x3000)
        bytes.withUnsafeMutableBytes { buffer in
            let fault = #expect(throws: DMAFault.self) {
                try guest.port(1).read(at: IOVirtualAddress(0x00FF_FFFF_FFFF_E000), into: buffer, .plain)
            }
            #expect(fault?.bytesTransferred == 0x2000)
        }
        #expect(bytes[0] == 2 && bytes[0x1000] == 3 && bytes[0x2000] == 0xA5)
    }

    @Test("a quick walk's words are those of the entry that it has found", arguments: [false, true])
    func words(_ isUpper: Bool) throws {
        let guest = try TestGuest()
        let tables = GuestTables(guest)
        let base: UInt64 = isUpper ? 0xFFFF_FF80_0000_0000 : 0
        let page = try guest.page(holding: 1)
        // Attributes by AttrIndx [4:2], AP [7:6], SH [9:8], nG [11], PXN and UXN.
        let flags: [UInt64] = [
            Leaf.readWrite, Leaf.global, Leaf.readWrite | Leaf.readOnly, Leaf.af | Leaf.nG,
            Leaf.readWrite | 1 << 2, Leaf.global | 2 << 2 | 3 << 8, Leaf.readWrite | 2 << 8 | Leaf.pxn,
            Leaf.readWrite | 7 << 2 | 1 << 8 | Leaf.uxn,
        ]
        for (index, flags) in flags.enumerated() {
            try tables.map(base + UInt64(index) << 12, to: page, flags)
            try tables.map(base + UInt64(index + 1) << 21, to: TestGuest.ram, level: 2, flags)
            try tables.map(base + UInt64(index + 1) << 30, to: TestGuest.ram, level: 1, flags)
        }
        let root = tables.root
        let cd = CDWords(
            epd0: isUpper,
            epd1: !isUpper,
            aset: true,
            asid: 0xBEEF,
            ttb0: root,
            ttb1: root,
            mair: 0x4404_00FF_BB44_7700
        )
        try guest.attach(1, cd)
        let attributes = TransactionAttributes(isPrivileged: true)
        for index in 0..<UInt64(flags.count) {
            for address in [index << 12, (index + 1) << 21 | 0x12_3000, (index + 1) << 30 | 0x555_5000] {
                let transaction = Transaction(
                    streamID: StreamID(1),
                    attributes: attributes,
                    kind: .read,
                    address: IOVirtualAddress(base + address)
                )
                let controls = guest.smmu.currentControls()
                var accesses = LookupAccesses()
                let resolved = try guest.smmu.resolveStream(transaction, controls, .cached, &accesses)
                var walk = guest.smmu.makeQuickWalk(resolved.plan, .cached, controls.generation)
                try #require(
                    guest.smmu.walkQuickly(base + address, EffectiveAccess(transaction).required, &walk),
                    "\(index), \(address)"
                )
                #expect(walk.words(of: base + address) == TLBEntry.Words(walk.entry(of: base + address)))
                guest.smmu.translationCache.fill(&walk, of: base + address, walkedAt: controls.generation)
                let tag = resolved.plan.pointee.tag
                #expect(
                    guest.smmu.translationCache.peek(base + address, tag: tag)
                        == walk.entry(of: base + address)
                )
            }
        }
    }

    @Test(
        "behind stage 2, too; and stage 2's own are those of its long walk",
        arguments: [(2, false), (3, false), (2, true), (3, true)]
    )
    func nestedWords(_ block: Int, _ forcesWriteBack: Bool) throws {
        let guest = try TestGuest.full { $0.options.walkCacheEntries = 0 }
        let nested = try NestedSetup(guest, block: block) {
            $0.fwb = forcesWriteBack
        } cd: {
            $0.mair = 0x4404_00FF_BB44_7700
            $0.asid = 0xBEEF
        }
        let flags: [UInt64] = [
            Leaf.readWrite, Leaf.global, Leaf.readWrite | Leaf.readOnly, Leaf.readWrite | 1 << 2,
            Leaf.global | 2 << 2 | 3 << 8, Leaf.readWrite | 7 << 2 | 1 << 8 | Leaf.uxn,
        ]
        for (index, flags) in flags.enumerated() {
            let page = guest.allocate(4096, alignment: 4096)
            try nested.map(UInt64(index) << 12, toPhysical: page, flags)
            // Attributes, XN and S2AP by page, where stage 2 has pages.
            let second =
                0b11 | 1 << 10 | (index & 1 == 0 ? 0b11 : 0b01) << 6 | [0xF, 0x5, 0x0][index % 3] << 2
            if block == 3 { try guest.poke(try nested.stage2.entry(nested.ipa(page)), page | UInt64(second)) }
            let blockBase = UInt64(index + 1) << 21
            try nested.stage1.map(blockBase, to: NestedSetup.ipaOfRAM, level: 2, flags)
        }
        let attributes = TransactionAttributes(isPrivileged: true)
        for address in (0..<UInt64(flags.count)).flatMap({ [$0 << 12, ($0 + 1) << 21 | 0x12_3000] }) {
            let transaction = Transaction(
                streamID: StreamID(6),
                attributes: attributes,
                kind: .read,
                address: IOVirtualAddress(address)
            )
            let controls = guest.smmu.currentControls()
            var observer = NoObserver()
            let resolved = try guest.smmu.resolveStream(transaction, controls, .cached, &observer)
            var walk = guest.smmu.makeQuickWalk(resolved.plan, .cached, controls.generation)
            try #require(guest.smmu.walkQuickly(address, [.privilegedRead], &walk), "\(address)")
            #expect(walk.words(of: address) == TLBEntry.Words(walk.entry(of: address)))
            #expect(walk.entry(of: address).isPartial == (address >= 1 << 21 && block == 3))
            guest.smmu.translationCache.fill(&walk, of: address, walkedAt: controls.generation)
            let cache = guest.smmu.translationCache
            #expect(cache.peek(address, tag: resolved.plan.pointee.tag) == walk.entry(of: address))
            let ipa = walk.entry(of: address).intermediate(for: address)
            let request = Stage2Request(
                transaction: transaction,
                access: EffectiveAccess(transaction),
                purpose: .input,
                ipa: ipa,
                lookup: LookupScope(policy: .uncached, generation: controls.generation)
            )
            let stage2 = try #require(resolved.stream.stage2)
            let (expected, _) = try guest.smmu.translateStage2(request, stage2, &observer)
            #expect(cache.peek(ipa, tag: resolved.plan.pointee.stage2Tag) == expected)
        }
    }

    @Test(
        "what a port keeps of a page is a line of the host's, and so is a set of the TLB",
        arguments: [1, 4, 64, 32768]
    )
    func lines(_ tlbEntries: Int) throws {
        let guest = try TestGuest.full { $0.options.tlbEntries = tlbEntries }
        #expect(MemoryLayout<PortTranslation>.stride == 64)
        let ports = (1..<5 as Range<UInt32>).map { guest.port($0) }
        for port in ports {
            #expect(UInt(bitPattern: port.lookaside) % 64 == 0)
            #expect(UInt(bitPattern: port.known) % 64 == 0)
            #expect(UInt(bitPattern: port.tlb.line(0)) % 64 == 0)
            #expect(port.tlb.line(1) - port.tlb.line(0) == 8)
        }
    }

    @Test("a long transaction over rows of pages and pages apart moves each byte once", arguments: 0..<8)
    func rowsAndPagesApart(_ round: Int) throws {
        var random = SplitMix(seed: 8400 + UInt64(round))
        let guest = try TestGuest()
        let tables = try guest.attachTables(6)
        let pageCount = 48
        let memory = guest.allocate(UInt64(4 * pageCount) << 12, alignment: 0x1000)
        // Rows of one to six pages, each somewhere else.
        var places = Array((0..<4 * pageCount).shuffled(using: &random).prefix(pageCount))
        var page = 0
        while page < pageCount {
            let length = 1 + Int(random.next() % 6)
            for step in 1..<length where page + step < pageCount {
                let next = places[page + step - 1] + 1
                guard next < 4 * pageCount, !places.contains(next) else { break }
                places[page + step] = next
            }
            page += length
        }
        let base: UInt64 = 0x40_0000
        for (page, place) in places.enumerated() {
            try tables.map(base + UInt64(page) << 12, to: memory + UInt64(place) << 12)
            for word in [0, 0xFF8] as [UInt64] {
                try guest.poke(memory + UInt64(place) << 12 + word, UInt64(page) << 16 | word)
            }
        }
        let port = guest.port(6)
        var buffer = [UInt64](repeating: 0, count: pageCount << 9)
        let lead = Int(random.next() % 0x1000) & ~7
        func statistic(_ name: String) -> UInt64? {
            guest.smmu.statistics.first { $0.name == name }?.value
        }
        for isFilled in [false, true] {
            let before = try ["transactions", "tlb-hits"].map { try #require(statistic($0)) }
            buffer = buffer.map { _ in 0 }
            try buffer.withUnsafeMutableBytes {
                try port.read(
                    at: IOVirtualAddress(base + UInt64(lead)),
                    into: UnsafeMutableRawBufferPointer(rebasing: $0[lead...]),
                    .plain
                )
            }
            let after = try ["transactions", "tlb-hits"].map { try #require(statistic($0)) }
            #expect(after[0] - before[0] == UInt64(pageCount))
            if isFilled { #expect(after[1] - before[1] == UInt64(pageCount)) }
            for page in 0..<pageCount {
                if page > 0 || lead == 0 { #expect(buffer[page << 9] == UInt64(page) << 16) }
                #expect(buffer[page << 9 + 511] == UInt64(page) << 16 | 0xFF8, "page \(page)")
            }
        }
        // A page in the middle that may not be written: what is before it has arrived.
        let refused = 1 + Int(random.next() % UInt64(pageCount - 1))
        let address = base + UInt64(refused) << 12
        try tables.map(address, to: memory + UInt64(places[refused]) << 12, Leaf.readWrite | Leaf.readOnly)
        try guest.sync(Raw.tlbiNHVA(address, asid: 1))
        for index in buffer.indices { buffer[index] = UInt64(index) ^ 0xA5A5 }
        let fault = #expect(throws: DMAFault.self) {
            try buffer.withUnsafeBytes { try port.write($0, at: IOVirtualAddress(base), .plain) }
        }
        #expect(fault?.bytesTransferred == UInt64(refused) << 12)
        #expect(fault?.cause == .event(0x13))
        for page in 0..<pageCount {
            let word = try guest.peek(memory + UInt64(places[page]) << 12 + 0xFF8)
            let isWritten = page < refused
            #expect(word == (isWritten ? UInt64(page << 9 + 511) ^ 0xA5A5 : UInt64(page) << 16 | 0xFF8))
        }
    }
}
