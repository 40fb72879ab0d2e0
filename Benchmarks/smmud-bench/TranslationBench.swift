// What the translation rows work on: a machine with one SMMU, a stream, and mapped pages.

import AddressSpace
import BareMachine
import CLinux
import DeviceModel
import Glibc
import GuestMemory
import SMMUv3
import SMMUv3Spec
import SystemBus

/// A machine with one attached stream and mapped data, and a host buffer to copy to and from.
final class TranslationBench {
    /// Where pages of 4 KiB are mapped.
    static let pages: UInt64 = 0x4000_0000
    /// Where the first data is mapped as one block of 2 MiB.
    static let block: UInt64 = 0x2000_0000
    private static let tableByteCount: UInt64 = 32 << 20
    static let bufferByteCount = 1 << 20
    private static let stream: UInt64 = 1

    let machine: BareMachine
    private let tracker = TransactionTracker()
    let port: StreamPort
    /// A port of a device that no SMMU stands before: what is left without translation.
    let direct: DirectPort
    let pageCount: Int
    private let dataPageCount: Int
    private let isScattered: Bool
    /// Where in the host the mapped data is.
    let data: UnsafeMutableRawPointer
    let buffer: UnsafeMutableRawPointer
    /// All pages, each once, in an order that no prefetcher guesses.
    private let order: ShuffledOrder
    private var place = 0
    private var directPlace = 0

    /// - Parameters:
    ///   - pageCount: How many pages are mapped; a power of two, or one more or less.
    ///   - dataPageCount: How many pages of data there are, which the mapped ones are in turn; a power of two. Few of
    ///     them stay in the host's caches, so that what is measured is the translation.
    ///   - isScattered: Whether pages in a row are apart in the data.
    ///   - isNested: Whether stage 2 stands behind stage 1: pages of 4 KiB and four levels likewise.
    ///   - hasTwoLevels: Whether the stream table has two levels.
    ///   - change: Changes the SMMU; without, it is as the daemon has it.
    init(
        pageCount: Int = 2048,
        dataPageCount: Int? = nil,
        isScattered: Bool = false,
        isNested: Bool = false,
        hasTwoLevels: Bool = false,
        _ change: (inout SMMUv3Options) -> Void = { _ in }
    ) throws {
        // As in the daemon: commands are executed on a thread of their own.
        var options = SMMUv3Options()
        change(&options)
        self.pageCount = pageCount
        self.dataPageCount = dataPageCount ?? pageCount
        let dataByteCount = UInt64(max(self.dataPageCount, 512)) << 12
        let memory = try MemoryRegion.anonymous(byteCount: Self.tableByteCount + dataByteCount, name: "bench")
        machine = try BareMachine(
            memory: memory,
            identification: isNested ? .full() : .stage1(),
            options: options
        )
        let physical = BareMachine.Layout.ram + Self.tableByteCount
        try machine.attach(Self.stream, isNested: isNested)
        order = ShuffledOrder(pageCount)
        self.isScattered = isScattered
        var next = 0
        for page in 0..<UInt64(pageCount) {
            let place = isScattered ? UInt64(order.next(&next)) : page
            let output = physical + (place % UInt64(self.dataPageCount)) << 12
            try machine.map(Self.pages + page << 12, to: output, byteCount: 4096)
        }
        try machine.mapBlock(Self.block, to: physical)
        try machine.enable(hasTwoLevels: hasTwoLevels)
        port = machine.smmu.makePort(for: StreamID(UInt32(Self.stream)))
        direct = DirectPort(bus: machine.bus, tracker: tracker)
        data = try memory.pointer(at: Self.tableByteCount, count: dataByteCount, for: .write)
        memset(data, 0x5A, Int(dataByteCount))
        buffer = .allocate(byteCount: Self.bufferByteCount, alignment: 4096)
        memset(buffer, 0xA5, Self.bufferByteCount)
    }

    deinit { buffer.deallocate() }

    func slice(_ count: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: buffer, count: count)
    }

    func read(_ count: Int, at address: UInt64) throws {
        try port.read(at: IOVirtualAddress(address), into: slice(count), .plain)
    }

    func write(_ count: Int, at address: UInt64) throws {
        try port.write(UnsafeRawBufferPointer(slice(count)), at: IOVirtualAddress(address), .plain)
    }

    /// The floor of a translation.
    func readDirectly(_ count: Int, at offset: Int) throws {
        let address = BareMachine.Layout.ram + Self.tableByteCount + UInt64(offset)
        try direct.read(at: IOVirtualAddress(address), into: slice(count), .plain)
    }

    /// Reads 8 bytes of so many pages in the shuffled order, from where it stopped the last time.
    func readShuffled(_ count: Int) throws {
        for _ in 0..<count {
            try read(8, at: Self.pages &+ UInt64(truncatingIfNeeded: order.next(&place)) &<< 12)
        }
    }

    /// The floor of that: the same data in the same order.
    func readShuffledDirectly(_ count: Int) throws {
        for _ in 0..<count {
            try readDirectly(8, at: (order.next(&directPlace) & (dataPageCount - 1)) << 12)
        }
    }

    /// Copies pieces of all the mapped memory in turn, from where it stopped the last time.
    func readInTurn(_ count: Int, pieceByteCount: Int) throws {
        for _ in 0..<count {
            try read(pieceByteCount, at: Self.pages + UInt64(place))
            place = (place + pieceByteCount) & (pageCount << 12 - 1)
        }
    }

    /// The floor of that.
    func copyInTurn(_ count: Int, pieceByteCount: Int) {
        guard !isScattered else { return copyPagesInTurn(count, pieceByteCount: pieceByteCount) }
        for _ in 0..<count {
            copyOut(pieceByteCount, at: directPlace)
            directPlace = (directPlace + pieceByteCount) & (pageCount << 12 - 1)
        }
    }

    /// The same where pages in a row are apart in the data.
    private func copyPagesInTurn(_ count: Int, pieceByteCount: Int) {
        for _ in 0..<count {
            for page in 0..<(pieceByteCount >> 12) {
                memcpy(buffer + page << 12, data + order.next(&directPlace) << 12, 4096)
                smmud_compiler_barrier()
            }
        }
    }

    /// The floor of a read.
    func copyOut(_ count: Int, at offset: Int) {
        memcpy(buffer, data + offset, count)
        smmud_compiler_barrier()
    }

    /// The floor of a write.
    func copyIn(_ count: Int, at offset: Int) {
        memcpy(data + offset, buffer, count)
        smmud_compiler_barrier()
    }
}

/// 0 to `count` - 1 in an order that looks random and is the same in each run.
///
/// Long orders are worked out, not looked up: a table would want the second cache for itself, which the TLB is to have.
private struct ShuffledOrder {
    private let count: Int
    /// Of short orders.
    private let table: [Int32]
    /// One less than the power of two that holds `count`, and half of its bits.
    private let mask: Int
    private let half: Int

    init(_ count: Int) {
        self.count = count
        mask = count <= 1 ? 0 : (1 << (Int.bitWidth - (count - 1).leadingZeroBitCount)) - 1
        half = mask.nonzeroBitCount / 2
        table = count > 4096 ? [] : Self.shuffle(count)
    }

    private static func shuffle(_ count: Int) -> [Int32] {
        var order = (0..<Int32(count)).map { $0 }
        var state: UInt64 = 0x5EED
        for index in stride(from: count - 1, to: 0, by: -1) {
            // Knuth's multiplier; the high bits are the random ones.
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            order.swapAt(index, Int((state >> 33) % UInt64(index + 1)))
        }
        return order
    }

    /// The number at a place, which moves on.
    @inline(__always)  // Beside each read that is measured.
    func next(_ place: inout Int) -> Int {
        guard table.isEmpty else {
            let number = table[place]
            place += 1
            if place == count { place = 0 }
            return Int(number)
        }
        while true {
            // Each step maps the numbers up to `mask` one to one.
            var number = place &* 0x9E37_79B1 & mask
            number ^= number &>> half
            number = number &* 0x85EB_CA6B & mask
            number ^= number &>> half
            place = (place &+ 1) & mask
            if number < count { return number }
        }
    }
}
