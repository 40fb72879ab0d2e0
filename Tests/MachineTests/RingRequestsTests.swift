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
            var outcomes: [(length: UInt32, answer: [UInt8], memory: [UInt8])] = []
            for isQuick in [true, false] {
                try machine.bus.fill(UInt8(truncatingIfNeeded: round), byteCount: 0x1000, at: physical)
                let (length, answer) = try chains.serve(request, byteCount: byteCount, isQuick: isQuick)
                outcomes.append((length, answer, try machine.bus.read(0x1000, at: physical)))
            }
            #expect(outcomes[0].length == outcomes[1].length, "round \(round): \(request)")
            #expect(outcomes[0].answer == outcomes[1].answer, "round \(round): \(request)")
            #expect(outcomes[0].memory == outcomes[1].memory, "round \(round): \(request)")
            let status = outcomes[0].answer.withUnsafeBytes { DMAResponse(header: $0).status }
            counts[status, default: 0] += 1
        }
        // It says something about both outcomes, and about refusals.
        #expect(counts[.ok, default: 0] > 300 && counts[.fault, default: 0] > 100)
        #expect(counts[.parameter, default: 0] > 100 && counts[.range, default: 0] > 50)
    }
}
