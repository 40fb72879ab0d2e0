// Clients of a process that may open no more files: each is served or let go, whoever else opens files meanwhile.

import Glibc
import HostIO
import Synchronization
import Testing

/// A process's descriptors, of which there are so many.
private final class Table: Sendable {
    private let used = Mutex<Set<CInt>>([])
    private let count: CInt

    init(count: CInt) { self.count = count }

    func open() -> CInt {
        used.withLock { used in
            guard let free = (0..<count).first(where: { !used.contains($0) }) else { return -EMFILE }
            used.insert(free)
            return free
        }
    }

    func close(_ descriptor: CInt) { used.withLock { _ = $0.remove(descriptor) } }

    var usedCount: Int { used.withLock { $0.count } }
}

@Suite("Clients without a descriptor")
struct DescriptorReserveTests {
    private let table = Table(count: 6)

    private func makeReserve() -> DescriptorReserve {
        let table = table
        return DescriptorReserve(open: { table.open() }, close: { table.close($0) })
    }

    /// Accepts one client; what became of it, and whether it was let go.
    private func accept(_ reserve: inout DescriptorReserve, _ take: () -> CInt) -> (CInt, refusals: Int) {
        var refusals = 0
        let descriptor = reserve.accept(take) { descriptor in
            table.close(descriptor)
            refusals += 1
        }
        return (descriptor, refusals)
    }

    @Test("those that there is room for are served, all others are let go, and the reserve is there again")
    func full() {
        var reserve = makeReserve()
        reserve.enter()
        reserve.enter()
        #expect(table.usedCount == 2)
        for index in 0..<4 as Range<CInt> { #expect(accept(&reserve) { table.open() } == (index + 2, 0)) }
        for _ in 0..<5 { #expect(accept(&reserve) { table.open() } == (-EMFILE, 1)) }
        table.close(4)
        #expect(accept(&reserve) { table.open() } == (4, 0))
        reserve.leave()
        #expect(table.usedCount == 5)
        reserve.leave()
        #expect(table.usedCount == 4 && reserve.isEmpty)
    }

    @Test("a reserve that another thread's file has taken comes back before the next client is served")
    func stolen() {
        var reserve = makeReserve()
        reserve.enter()
        for _ in 0..<5 { #expect(accept(&reserve) { table.open() }.0 >= 0) }
        // Between the two looks somebody opens a file: the client waits.
        var stolen: CInt = -1
        var looks = 0
        let (descriptor, refusals) = accept(&reserve) {
            looks += 1
            if looks == 2 { stolen = table.open() }
            return table.open()
        }
        #expect((descriptor, refusals) == (-EMFILE, 0) && stolen >= 0)
        #expect(reserve.isEmpty)
        #expect(accept(&reserve) { table.open() } == (-EMFILE, 0), "it still waits")
        table.close(stolen)
        // Of this one descriptor the reserve is made again, and not a client's.
        #expect(accept(&reserve) { table.open() } == (-EMFILE, 1))
        #expect(!reserve.isEmpty)
        #expect(accept(&reserve) { table.open() } == (-EMFILE, 1))
        table.close(3)
        #expect(accept(&reserve) { table.open() } == (3, 0))
    }

    @Test("where nothing can be opened for another reason clients are served all the same")
    func without() {
        var reserve = DescriptorReserve(open: { -ENOENT }, close: { _ in })
        reserve.enter()
        #expect(accept(&reserve) { table.open() } == (0, 0))
        #expect(accept(&reserve) { -ECONNABORTED } == (-ECONNABORTED, 0))
        #expect(reserve.isEmpty)
    }
}
