// A peer takes the file away from under a mapping, and the process lives.

import CLinux
import Glibc
import GuestMemory
import OSThread
import Synchronization
import Testing

private final class Counter: Sendable {
    let value = Atomic<Int>(0)
}

@Suite("Truncation by a peer")
struct TruncationTests {
    /// A region of a peer's file, and the peer's own descriptor of it.
    private func makeShared(pages: Int, fill: UInt8) throws -> (region: MemoryRegion, peer: CInt) {
        let file = try makeMemfd(byteCount: pages * 4096)
        let peer = try file.duplicate().release()
        let region = try MemoryRegion.mapping(
            file,
            offset: 0,
            byteCount: UInt64(pages * 4096),
            isWritable: true
        )
        memset(region.base, CInt(fill), pages * 4096)
        return (region, peer)
    }

    @Test("reads of what is gone are zeroes, the region is lost, what is left and the neighbour are whole")
    func truncationLosesTheRegionAlone() throws {
        let (region, peer) = try makeShared(pages: 8, fill: 0x5a)
        let (neighbour, neighbourPeer) = try makeShared(pages: 8, fill: 0xa5)
        defer { for file in [peer, neighbourPeer] { close(file) } }
        try #require(ftruncate(peer, 4 * 4096) == 0)
        // Nobody has touched what is gone: nobody knows.
        #expect(!region.isLost)

        var bytes = [UInt8](repeating: 0xff, count: 8 * 4096)
        memcpy(&bytes, region.base, bytes.count)
        #expect(bytes[..<(4 * 4096)].allSatisfy { $0 == 0x5a })
        #expect(bytes[(4 * 4096)...].allSatisfy { $0 == 0 })
        #expect(region.isLost)
        #expect(!neighbour.isLost)
        memcpy(&bytes, neighbour.base, bytes.count)
        #expect(bytes.allSatisfy { $0 == 0xa5 })
        #expect(throws: GuestMemoryError.lost(name: region.name)) {
            try region.pointer(at: 0, count: 1, for: .read)
        }
    }

    @Test("stores, atomic ones too, go on after the file is gone, and truncating further is survived as well")
    func storesSurvive() throws {
        let (region, peer) = try makeShared(pages: 8, fill: 1)
        defer { close(peer) }
        try #require(ftruncate(peer, 6 * 4096) == 0)
        memset(region.base + 7 * 4096, 2, 4096)
        #expect(region.isLost)
        try #require(ftruncate(peer, 0) == 0)
        smmud_store_u64(region.base, 3)
        #expect(smmud_compare_exchange_u64(region.base + 8, 0, 4) == 0)
        #expect(smmud_load_u64(region.base + 16) == 0)
        memset(region.base, 5, 8 * 4096)
        #expect(smmud_load_u64(region.base + 8 * 4096 - 8) == 0x0505_0505_0505_0505)
    }

    @Test("a region for reading survives as one for reading")
    func readOnlyRegionSurvives() throws {
        let file = try makeMemfd(byteCount: 8192)
        let peer = try file.duplicate()
        let region = try MemoryRegion.mapping(file, offset: 4096, byteCount: 4096, isWritable: false)
        try #require(ftruncate(peer.rawValue, 0) == 0)
        #expect(smmud_load_u64(region.base) == 0)
        #expect(region.isLost)
    }

    @Test("a region that begins inside a page is lost when its pages go")
    func unalignedRegionIsGuarded() throws {
        let file = try makeMemfd(byteCount: 4 * 4096)
        let peer = try file.duplicate()
        let region = try MemoryRegion.mapping(file, offset: 4000, byteCount: 200, isWritable: true)
        try #require(ftruncate(peer.rawValue, 4096) == 0)
        // The first 96 bytes are in the page that is left.
        #expect(region.base.load(as: UInt8.self) == 0)
        #expect(!region.isLost)
        #expect(region.base.load(fromByteOffset: 96, as: UInt8.self) == 0)
        #expect(region.isLost)
    }

    @Test("a new mapping in the place of a lost one is not lost")
    func registrationsStartClean() throws {
        for _ in 0..<100 {
            let (region, peer) = try makeShared(pages: 1, fill: 9)
            defer { close(peer) }
            #expect(!region.isLost)
            try #require(ftruncate(peer, 0) == 0)
            #expect(smmud_load_u8(region.base) == 0)
            #expect(region.isLost)
        }
    }

    @Test("files vanish while several threads copy from and to them")
    func truncationDuringCopies() throws {
        for _ in 0..<20 {
            let (region, peer) = try makeShared(pages: 256, fill: 0x11)
            defer { close(peer) }
            let started = Counter()
            let reader = copier(of: region, started, writes: false)
            let writer = copier(of: region, started, writes: true)
            while started.value.load(ordering: .sequentiallyConsistent) < 2 { sched_yield() }
            #expect(ftruncate(peer, 100 * 4096) == 0)
            #expect(ftruncate(peer, 0) == 0)
            reader.join()
            writer.join()
            #expect(region.isLost)
        }
    }

    /// Copies the whole region over and over until it is lost, as it must find it sooner or later.
    private func copier(of region: MemoryRegion, _ started: Counter, writes: Bool) -> OSThread {
        OSThread {
            let buffer = UnsafeMutableRawPointer.allocate(byteCount: 256 * 4096, alignment: 4096)
            defer { buffer.deallocate() }
            memset(buffer, 0x22, 256 * 4096)
            memcpy(buffer, region.base, 256 * 4096)
            started.value.add(1, ordering: .sequentiallyConsistent)
            while !region.isLost {
                memcpy(writes ? region.base : buffer, writes ? buffer : region.base, 256 * 4096)
            }
        }
    }
}

@Suite("The SIGBUS guard")
struct GuardTests {
    @Test("a SIGBUS outside every region still ends the process")
    func foreignFaultsAreNotSwallowed() async {
        await #expect(processExitsWith: .signal(SIGBUS)) {
            let region = try MemoryRegion.anonymous(byteCount: 4096, name: "ram")
            let file = smmud_memfd_create_unsealed("foreign", 4096)
            let foreign = mmap(nil, 4096, PROT_READ, MAP_SHARED, file, 0)
            _ = ftruncate(file, 0)
            _ = foreign.map { smmud_load_u8($0) }
            withExtendedLifetime(region) {}
        }
    }

    @Test("a SIGBUS that somebody sends still ends the process")
    func sentSignalsAreNotSwallowed() async {
        await #expect(processExitsWith: .signal(SIGBUS)) {
            let region = try MemoryRegion.anonymous(byteCount: 4096, name: "ram")
            kill(getpid(), SIGBUS)
            // Any thread may get it, a moment later.
            while true { withExtendedLifetime(region) { _ = pause() } }
        }
    }

    @Test("an action that was there before gets the faults that are not ours")
    func previousActionIsCalled() async {
        await #expect(processExitsWith: .exitCode(42)) {
            signal(SIGBUS) { _ in _exit(42) }
            let region = try MemoryRegion.anonymous(byteCount: 4096, name: "ram")
            kill(getpid(), SIGBUS)
            // Any thread may get it, a moment later.
            while true { withExtendedLifetime(region) { _ = pause() } }
        }
    }

    @Test("a full table refuses the next mapping, and takes it when one has gone")
    func fullTableRefuses() async {
        await #expect(processExitsWith: .success) {
            let page = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
            var flags: [UnsafePointer<UInt32>] = []
            while let flag = smmud_guard_register(page, 4096, 4096, true) { flags.append(flag) }
            #expect(flags.count == Int(SMMUD_GUARD_CAPACITY))
            #expect(throws: GuestMemoryError.tooManyMappings(name: "ram", limit: 4096)) {
                try MemoryRegion.anonymous(byteCount: 4096, name: "ram")
            }
            smmud_guard_unregister(flags.removeLast())
            let region = try MemoryRegion.anonymous(byteCount: 4096, name: "ram")
            #expect(!region.isLost)
        }
    }
}
