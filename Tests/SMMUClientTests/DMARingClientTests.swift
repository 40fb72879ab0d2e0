// The ring's client, whose memory a daemon may fill with anything: it never traps, and believes no completion that is
// not its own.

import ControlProtocol
import Testing

@testable import SMMUClient

@Suite("DMA ring client", .timeLimit(.minutes(20)))
struct DMARingClientTests {
    private let client: DMAClient
    private let ring: DMARingClient

    /// The daemon answers RING_OPEN and looks at no ring: the test writes the ring's memory in its place.
    init() throws {
        let (clientEnd, serverEnd) = try connectedPair()
        onThread {
            var daemon = FakeDMADaemon(socket: serverEnd)
            daemon.run()
        }
        client = try DMAClient(adopting: clientEnd)
        client.timeoutMilliseconds = 60_000
        ring = try DMARingClient(client, slotCount: 2, dataByteCount: 256)
    }

    /// Completes a chain as a daemon does, with used index `index` after it.
    private func complete(_ head: UInt32, entry: UInt16, index: UInt16) {
        let place = Int(ring.layout.usedEntry(entry))
        ring.mapping.bytes.storeBytes(of: UInt64(head).littleEndian, toByteOffset: place, as: UInt64.self)
        ring.mapping.bytes.storeBytes(
            of: index.littleEndian,
            toByteOffset: Int(ring.layout.used) + 2,
            as: UInt16.self
        )
    }

    @Test("A chain that was not submitted is not done", arguments: [0, 1, 2, 4, 0x1_0000, .max] as [UInt32])
    func unknownChains(head: UInt32) {
        complete(head, entry: 0, index: 1)
        #expect(throws: ClientError.self) { try ring.reap { _, _ in Issue.record("an answer") } }
    }

    @Test("A chain is done once")
    func completedTwice() throws {
        #expect(ring.submit(DMARequest(.echo, id: 1)))
        // No answer was written: a header of zeroes, which claims no payload.
        complete(0, entry: 0, index: 1)
        var ids: [UInt64] = []
        let first = try ring.reap { response, payload in
            if payload.isEmpty { ids.append(response.id) }
        }
        #expect(first == 1 && ids == [0])
        #expect(ring.freeCount == 2)
        complete(0, entry: 1, index: 2)
        #expect(throws: ClientError.self) { try ring.reap { _, _ in Issue.record("an answer") } }
        #expect(ring.freeCount == 2)
    }

    @Test("Descriptors that the daemon overwrote lead nowhere")
    func overwrittenDescriptors() throws {
        #expect(ring.submit(DMARequest(.echo, id: 1)))
        for byte in 0..<Int(ring.layout.available) { ring.mapping.bytes[byte] = 0xFF }
        complete(0, entry: 0, index: 1)
        var ids: [UInt64] = []
        try ring.reap { response, _ in ids.append(response.id) }
        #expect(ids == [0])
    }

    @Test("An answer that claims more than there is room for is refused")
    func tooLongAnswers() throws {
        #expect(ring.submit(DMARequest(.echo, id: 1)))
        // The first slot follows the ring at the next line; its answer follows the header of 64 bytes.
        let answer = (Int(ring.layout.end) + 63) & ~63 + 64
        ring.mapping.bytes.storeBytes(of: UInt32.max, toByteOffset: answer, as: UInt32.self)
        complete(0, entry: 0, index: 1)
        #expect(throws: ClientError.self) { try ring.reap { _, _ in Issue.record("an answer") } }
    }

    @Test("An index that runs ahead ends with the first chain that is not ours")
    func runawayIndex() {
        #expect(ring.submit(DMARequest(.echo, id: 1)))
        complete(0, entry: 0, index: 40_000)
        var count = 0
        #expect(throws: ClientError.self) { try ring.reap { _, _ in count += 1 } }
        #expect(count <= 1)
    }

    @Test("A ring that the daemon finds broken is told of, and waiting for it ends")
    func broken() {
        ring.mapping.bytes.storeBytes(
            of: DMARingLayout.broken.littleEndian,
            toByteOffset: Int(ring.layout.used),
            as: UInt16.self
        )
        #expect(throws: Never.self) { try ring.wait(timeoutMilliseconds: 60_000) }
        #expect(throws: ClientError.self) { try ring.reap { _, _ in } }
    }
}
