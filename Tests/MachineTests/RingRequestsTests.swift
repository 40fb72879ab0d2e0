// The requests of a ring: the quick way of most of them answers as the way of all does.

import AddressSpace
import CLinux
import ControlProtocol
import DeviceModel
import GuestMemory
import Machine
import SeededRandomness
import SystemBus
import Testing

@Suite("Requests of a ring")
struct RingRequestsTests {
    private static let iova: UInt64 = 0x40_0000
    private static let physical: UInt64 = 0x8800_0000
    private static let byteCount: UInt64 = 0x1000
    private static let stream: UInt32 = 0x10
    /// How many bytes of data a request and an answer have room for.
    private static let room = 192
    private static let (requestPlace, answerPlace) = (4096, 8192)

    /// A ring whose two chains say the same: the first in two descriptors, the second with its answer in two pieces.
    private struct Chains: ~Copyable {
        let memory: MemoryRegion
        let layout: DMARingLayout
        var queue: RingQueue
        var requests: RingRequests
        private var index: UInt16 = 0

        init(_ machine: Machine, _ memory: MemoryRegion, _ layout: DMARingLayout) {
            self.layout = layout
            self.memory = memory
            queue = RingQueue(memory, layout)
            requests = RingRequests(machine, DMALimits()) { false }
        }

        private func put(_ index: UInt16, _ place: Int, _ byteCount: Int, _ flags: UInt16, next: UInt16 = 0) {
            let descriptor = DMARingDescriptor(
                offset: UInt64(place),
                byteCount: UInt32(byteCount),
                flags: flags,
                next: next
            )
            smmud_store_u64(memory.base + Int(layout.descriptor(index)), descriptor.offset)
            smmud_store_u64(memory.base + Int(layout.descriptor(index)) + 8, descriptor.high)
        }

        /// Has a request carried out that has so many bytes with its payload.
        ///
        /// - Returns: The length that the used ring would say, and all bytes of the answer's descriptors.
        mutating func serve(_ request: DMARequest, byteCount: Int, isQuick: Bool) throws -> (UInt32, [UInt8])
        {
            let (asked, answer) = (RingRequestsTests.requestPlace, RingRequestsTests.answerPlace)
            let room = RingRequestsTests.room
            put(0, asked, byteCount, DMARingLayout.hasNext, next: isQuick ? 1 : 2)
            put(1, answer, 64 + room, DMARingLayout.isWritable)
            put(2, answer, 64, DMARingLayout.isWritable | DMARingLayout.hasNext, next: 3)
            put(3, answer + 64, room, DMARingLayout.isWritable)
            let bytes = UnsafeMutableRawBufferPointer(start: memory.base, count: 64 << 10)
            for place in 0..<room { bytes[asked + 64 + place] = UInt8(truncatingIfNeeded: place &* 5 &+ 1) }
            request.write(to: UnsafeMutableRawBufferPointer(rebasing: bytes[asked...]))
            for place in 0..<64 + room { bytes[answer + place] = 0xAA }
            smmud_store_u16(memory.base + Int(layout.availableEntry(index)), 0)
            index &+= 1
            smmud_store_u16(memory.base + Int(layout.available) + 2, index)
            #expect(try queue.take() == 1)
            let length = try requests.serve(queue[0])
            queue.complete(0, byteCount: length)
            return (length, Array(bytes[answer..<answer + 64 + room]))
        }
    }

    /// A READ or WRITE, most often one that makes sense, and how many bytes its descriptor has.
    private static func request(_ random: inout SplitMix) -> (DMARequest, byteCount: Int) {
        func rarely() -> Bool { random.next() % 12 == 0 }
        func one<Value>(of values: [Value]) -> Value {
            values[Int.random(in: values.indices, using: &random)]
        }
        let isRead = Bool.random(using: &random)
        var count = UInt64.random(in: 1...UInt64(room), using: &random)
        if rarely() { count = one(of: [0, UInt64(room) + 1, 1 << 20, 1 << 63, .max]) }
        var request = DMARequest(
            isRead ? .read : .write,
            id: random.next(),
            flags: .direct,
            stream: stream,
            iova: iova + UInt64.random(in: 0..<byteCount - 256, using: &random),
            count: count,
            payloadByteCount: isRead ? 0 : Int(min(count, UInt64(room)))
        )
        var size = Int(request.byteCount)
        // Some at the end of what is mapped, some at the end of all addresses.
        if rarely() { request.iova = iova + byteCount - UInt64.random(in: 0...64, using: &random) }
        if rarely() { request.iova = 0 &- UInt64.random(in: 1...256, using: &random) }
        if rarely() { request.flags.formSymmetricDifference(DMAFlags(rawValue: 1 << (random.next() % 16))) }
        if rarely() { request.offset = one(of: [1, 1 << 63, .max]) }
        if rarely() { request.reserved = 1 << (random.next() % 64) }
        if rarely() { request.endpoint = UInt32(random.next() % 3) }
        if rarely() { request.stream = 0x10 + UInt32(random.next() % 3) }
        if rarely() { request.substream = 3 }
        // By a handle; OPEN and CLOSE would answer differently the second time.
        if rarely() { (request.flags, request.endpoint) = ([], 1) }
        if rarely() {
            request.opcode = DMAOpcode(rawValue: one(of: [0, 1, 2, 7, 8, 11, 17]))
        }
        if rarely() { request.byteCount &+= UInt32(truncatingIfNeeded: random.next() % 3) &- 1 }
        if rarely() { size = max(64, size + Int(random.next() % 3) - 1) }
        if rarely() {
            size = 64 + Int(random.next() % 128)
            request.byteCount = UInt32(size)
        }
        return (request, size)
    }

    /// The same request at another address, and sometimes with a bit of its header the other way round.
    private static func almost(_ request: DMARequest, _ random: inout SplitMix) -> DMARequest {
        var bytes = [UInt8](repeating: 0, count: 64)
        bytes.withUnsafeMutableBytes { request.write(to: $0) }
        if Bool.random(using: &random) { bytes[Int(random.next() % 64)] ^= 1 << (random.next() % 8) }
        var other = bytes.withUnsafeBytes { DMARequest(header: $0) }
        // OPEN and CLOSE would change what the request means.
        if other.opcode != request.opcode, other.opcode != .read, other.opcode != .write {
            other.opcode = request.opcode
        }
        other.id = random.next()
        if Bool.random(using: &random) {
            other.iova = iova + UInt64.random(in: 0..<byteCount, using: &random)
        }
        return other
    }

    @Test(
        "the quick way of a READ or WRITE does and says what the way of all requests does",
        arguments: [1, 2, 3]
    )
    func bothWays(seed: UInt64) throws {
        let machine = try Machine(board: try TestBoard.load(TestBoard.small))
        machine.startDriver()
        defer { machine.stop() }
        let physical = PhysicalAddress(Self.physical)
        _ = try TestClient(machine).call(
            Methods.IOMMUMap.self,
            .init(
                device: "dma@40000000",
                iova: Hex(Self.iova),
                address: Hex(Self.physical),
                length: 0x1000
            )
        )
        let memory = try MemoryRegion.anonymous(byteCount: 64 << 10, name: "ring")
        var chains = Chains(machine, memory, try DMARingLayout(size: 8, at: 0))
        let open = DMARequest(.open, id: 1, flags: .direct, stream: Self.stream)
        let opened = try chains.serve(open, byteCount: 64, isQuick: true).1
        #expect(opened.withUnsafeBytes { DMAResponse(header: $0).handle } == 1)
        var random = SplitMix(seed: seed)
        var counts: [DMAStatus: Int] = [:]
        for round in 0..<3000 {
            let (request, byteCount) = Self.request(&random)
            let before = Self.almost(request, &random)
            var outcomes: [(length: UInt32, answer: [UInt8], memory: [UInt8])] = []
            for (isQuick, comesAfterAnother) in [(true, false), (true, true), (false, false)] {
                // What a request says that came just before may be taken for granted, and what it does not say may not.
                if comesAfterAnother { _ = try chains.serve(before, byteCount: byteCount, isQuick: true) }
                try machine.bus.fill(UInt8(truncatingIfNeeded: round), byteCount: 0x1000, at: physical)
                let (length, answer) = try chains.serve(request, byteCount: byteCount, isQuick: isQuick)
                outcomes.append((length, answer, try machine.bus.read(0x1000, at: physical)))
            }
            for other in outcomes.dropFirst() {
                #expect(outcomes[0].length == other.length, "round \(round): \(before), \(request)")
                #expect(outcomes[0].answer == other.answer, "round \(round): \(before), \(request)")
                #expect(outcomes[0].memory == other.memory, "round \(round): \(before), \(request)")
            }
            let status = outcomes[0].answer.withUnsafeBytes { DMAResponse(header: $0).status }
            counts[status, default: 0] += 1
        }
        // It says something about both outcomes, and about refusals.
        #expect(counts[.ok, default: 0] > 300 && counts[.fault, default: 0] > 100)
        #expect(counts[.parameter, default: 0] > 100 && counts[.range, default: 0] > 50)
    }

    /// Memory for a ring of so many descriptors.
    private static func memory(_ size: UInt64) throws -> (MemoryRegion, DMARingLayout) {
        (try MemoryRegion.anonymous(byteCount: 64 << 10, name: "ring"), try DMARingLayout(size: size, at: 0))
    }

    private static func put(
        _ words: (UInt64, UInt64),
        at index: UInt16,
        _ memory: MemoryRegion,
        _ layout: DMARingLayout
    ) {
        smmud_store_u64(memory.base + Int(layout.descriptor(index)), words.0)
        smmud_store_u64(memory.base + Int(layout.descriptor(index)) + 8, words.1)
    }

    private static func offer(
        _ head: UInt16,
        index: UInt16,
        _ memory: MemoryRegion,
        _ layout: DMARingLayout
    ) {
        smmud_store_u16(memory.base + Int(layout.availableEntry(index &- 1)), head)
        smmud_store_u16(memory.base + Int(layout.available) + 2, index)
    }

    /// A pair at 4096 and 8192 of 64 bytes each, with other words for some of it: length in bits 31:0 of the second
    /// word, flags in 47:32, next in 63:48.
    struct ChangedPair: CustomTestStringConvertible {
        var asked: (UInt64, UInt64) = (4096, 0x0001_0001_0000_0040)
        var answer: (UInt64, UInt64) = (8192, 0x0000_0002_0000_0040)
        /// Offsets and lengths of its segments; nil where it makes no sense.
        let segments: [[Int]]?
        let testDescription: String

        static let all = [
            Self(
                asked: (4160, 0x0001_0001_0000_0040),
                segments: [[4160, 64], [8192, 64]],
                testDescription: "asked at"
            ),
            Self(
                asked: (4096, 0x0001_0001_0000_0080),
                segments: [[4096, 128], [8192, 64]],
                testDescription: "asked of"
            ),
            Self(
                answer: (8256, 0x0000_0002_0000_0040),
                segments: [[4096, 64], [8256, 64]],
                testDescription: "answer at"
            ),
            Self(
                answer: (8192, 0x0000_0002_0000_0080),
                segments: [[4096, 64], [8192, 128]],
                testDescription: "answer of"
            ),
            Self(asked: (65473, 0x0001_0001_0000_0040), segments: nil, testDescription: "asked outside"),
            Self(answer: (8192, 0x0000_0002_FFFF_FFFF), segments: nil, testDescription: "answer outside"),
            Self(asked: (4096, 0x0009_0001_0000_0040), segments: nil, testDescription: "next outside"),
            Self(asked: (4096, 0x0001_0000_0000_0040), segments: [[4096, 64]], testDescription: "no next"),
            Self(
                asked: (4096, 0x0001_0003_0000_0040),
                segments: [[4096, 64], [8192, 64]],
                testDescription: "written"
            ),
            Self(
                answer: (8192, 0x0000_0000_0000_0040),
                segments: [[4096, 64], [8192, 64]],
                testDescription: "read"
            ),
            Self(answer: (8192, 0x0001_0003_0000_0040), segments: nil, testDescription: "goes round"),
        ]
    }

    @Test("descriptors that change are looked at again", arguments: ChangedPair.all)
    func changedDescriptors(changed: ChangedPair) throws {
        let (memory, layout) = try Self.memory(8)
        var queue = RingQueue(memory, layout)
        let first = ChangedPair(segments: nil, testDescription: "")
        func segments(_ queue: borrowing RingQueue) -> [[Int]] {
            (0..<queue[0].segmentCount).map { place in
                let segment = queue[0].segments[place]
                return [segment.baseAddress.map { $0 - memory.base } ?? -1, segment.count]
            }
        }
        Self.put(first.asked, at: 0, memory, layout)
        Self.put(first.answer, at: 1, memory, layout)
        // Looked at, then known.
        for index: UInt16 in 1...3 {
            Self.offer(0, index: index, memory, layout)
            #expect(try queue.take() == 1)
            let found = segments(queue)
            #expect(found == [[4096, 64], [8192, 64]])
        }
        Self.put(changed.asked, at: 0, memory, layout)
        Self.put(changed.answer, at: 1, memory, layout)
        Self.offer(0, index: 4, memory, layout)
        guard let expected = changed.segments else {
            #expect(throws: RingBreakage.self) { try queue.take() }
            return
        }
        #expect(try queue.take() == 1)
        let found = segments(queue)
        #expect(found == expected)
    }

    @Test("chains whose heads lie far apart are not taken for each other")
    func manyDescriptors() throws {
        let (memory, layout) = try Self.memory(1024)
        var queue = RingQueue(memory, layout)
        let heads: [UInt16] = [0, 512, 256, 768]
        // Heads that are the same modulo any power of two below.
        for (number, head) in heads.enumerated() {
            Self.put(
                (32768 + 128 * UInt64(number), UInt64(head + 1) << 48 | 0x1_0000_0040),
                at: head,
                memory,
                layout
            )
            Self.put((49152 + 128 * UInt64(number), 0x2_0000_0040), at: head + 1, memory, layout)
        }
        var index: UInt16 = 0
        for _ in 0..<3 {
            for (number, head) in heads.enumerated() {
                index += 1
                Self.offer(head, index: index, memory, layout)
                #expect(try queue.take() == 1)
                let chain = queue[0]
                #expect(chain.head == head)
                #expect(chain.segments[0].baseAddress == memory.base + 32768 + 128 * number)
                #expect(chain.segments[1].baseAddress == memory.base + 49152 + 128 * number)
            }
        }
    }

}
