// From a driver outside to a translated DMA, a fault, its event and its interrupt.

import ControlProtocol
import SMMUClient
import Testing

@Suite(.timeLimit(.minutes(20)))
struct TranslationTests {
    private let daemon: Daemon
    private let control: ControlClient
    private let dma: DMAClient
    private let requester = DMARequester.stream(smmu: 0, stream: TestBoard.stream)

    init() throws {
        daemon = try Daemon()
        control = try daemon.control()
        dma = try daemon.dma()
    }

    @Test func anSMMUThatIsNotEnabledLetsDMAThroughUntranslated() throws {
        let transfer = try dma.write([1, 2, 3, 4], requester, at: TestBoard.memory + 0x1000)
        #expect(transfer.status == .ok && transfer.bytesTransferred == 4)
        #expect(try control.readMemory(4, at: TestBoard.memory + 0x1000) == [1, 2, 3, 4])
        #expect(try dma.read(requester, at: TestBoard.memory + 0x1000, count: 4).bytes == [1, 2, 3, 4])
    }

    @Test func whereNobodyAnswersDMAEndsInABusError() throws {
        let end = TestBoard.memory + 0x1000_0000
        let (transfer, bytes) = try dma.read(requester, at: end - 4, count: 8)
        #expect(transfer.status == .busError)
        #expect(transfer.address == end - 4 + transfer.bytesTransferred)
        #expect(UInt64(bytes.count) == transfer.bytesTransferred)
    }

    @Test func dmaIsTranslatedForTheStreamThatIsSetUp() throws {
        _ = try SMMUByHand(control)
        let data = (0..<0x3000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        let transfer = try dma.write(data, requester, at: SMMUByHand.iova + 0x800)
        #expect(transfer.status == .ok && transfer.bytesTransferred == 0x3000)
        #expect(try control.readMemory(0x3000, at: SMMUByHand.target + 0x800) == data)
        let endpoint = try dma.open(TestBoard.device)
        #expect(endpoint.stream == 0x42)
        #expect(endpoint.smmu == 0)
        #expect(try dma.read(endpoint.requester, at: SMMUByHand.iova + 0x800, count: 0x3000).bytes == data)
    }

    @Test func aFaultComesBackWithItsEventItsRecordAndItsInterrupt() throws {
        _ = try SMMUByHand(control)
        let beyond = SMMUByHand.iova + SMMUByHand.byteCount
        let (transfer, bytes) = try dma.read(requester, at: beyond - 8, count: 16)
        #expect(transfer.status == .fault)
        #expect(transfer.event == 0x10)
        #expect(transfer.address == beyond)
        #expect(transfer.bytesTransferred == 8)
        #expect(bytes.count == 8)

        let events = try control.call(Methods.EventsList.self, .init()).events
        try #require(events.count == 1)
        #expect(events[0].name == "F_TRANSLATION")
        #expect(events[0].stream == Hex(UInt32(0x42)))
        #expect(events[0].device == TestBoard.device)
        #expect(events[0].address == Hex(beyond))
        #expect(events[0].recorded)
        // The record as it is in the queue: number [7:0] and StreamID [63:32]; RnW [99], CLASS [105:104] = IN.
        #expect(try control.load(64, at: SMMUByHand.eventQueue) == 0x0000_0042_0000_0010)
        #expect(try control.load(64, at: SMMUByHand.eventQueue + 8) == 0x0000_0208_0000_0000)
        #expect(try control.load(64, at: SMMUByHand.eventQueue + 16) == beyond)
        #expect(try control.load(32, at: TestBoard.registers + 0x1_00A8) == 1)

        let lines = try control.call(Methods.InterruptsList.self, Nothing()).interrupts
        #expect(lines.map(\.pulses) == [1, 0, 0])
        #expect(lines[0].label == "eventq" && lines[0].intid == 106)
    }

    @Test func subscribersHearOfEventsAndInterrupts() throws {
        _ = try SMMUByHand(control)
        let listener = try daemon.control()
        _ = try listener.call(Methods.EventsSubscribe.self, .init())
        _ = try listener.call(Methods.InterruptsSubscribe.self, .init())
        _ = try dma.write([0], requester, at: 0xDEAD_0000)
        var event: EventNotification?
        var interrupt: InterruptNotification?
        while event == nil || interrupt == nil {
            let line = try #require(
                try listener.nextNotification(timeoutMilliseconds: Int(ChildProcess.patienceMilliseconds))
            )
            if let heard = try line.parameters(as: EventNotification.self) { event = heard }
            if let heard = try line.parameters(as: InterruptNotification.self) { interrupt = heard }
        }
        #expect(event?.event.name == "F_TRANSLATION")
        #expect(event?.event.address == Hex(UInt64(0xDEAD_0000)))
        #expect(interrupt?.label == "eventq")
        #expect(interrupt?.signal == .pulse)
        #expect(interrupt?.count == 1)
        // The connection that hears still asks and is answered.
        #expect(try listener.call(Methods.DaemonVersion.self, Nothing()).name == "smmud")
    }

    @Test func aSubscriberThatOnlyEndedSendingGoesOnHearing() throws {
        _ = try SMMUByHand(control)
        let socket = try RawSocket(daemon.controlPath)
        socket.send(Array((#"{"jsonrpc":"2.0","id":1,"method":"events.subscribe"}"# + "\n").utf8))
        socket.endSending()
        #expect(String(decoding: try socket.receive(), as: UTF8.self).contains("\"next\":0"))
        _ = try dma.write([0], requester, at: 0xDEAD_0000)
        #expect(String(decoding: try socket.receive(), as: UTF8.self).contains("F_TRANSLATION"))
        // Nor does such a client hold the daemon up when it stops.
        #expect(try daemon.stop().exitCode == 0)
    }

    @Test func anotherStreamOfTheSMMUIsNotSetUp() throws {
        _ = try SMMUByHand(control)
        let second = try dma.open(TestBoard.device, stream: 0x43)
        #expect(second.stream == 0x43)
        // Its STE is all zero: V is 0, C_BAD_STE.
        #expect(try dma.read(second.requester, at: SMMUByHand.iova, count: 1).transfer.event == 0x04)
        // Beyond the stream table: C_BAD_STREAMID.
        let beyond = DMARequester.stream(smmu: 0, stream: 0x100)
        #expect(try dma.read(beyond, at: SMMUByHand.iova, count: 1).transfer.event == 0x02)
    }

    @Test func whatWasUnmappedAndSyncedIsOutOfReach() throws {
        let driver = try SMMUByHand(control)
        #expect(try dma.read(requester, at: SMMUByHand.iova, count: 1).transfer.isComplete)
        try driver.unmap(SMMUByHand.iova)
        let transfer = try dma.read(requester, at: SMMUByHand.iova, count: 1).transfer
        #expect(transfer.status == .fault && transfer.event == 0x10)
        #expect(try dma.read(requester, at: SMMUByHand.iova + 0x1000, count: 1).transfer.isComplete)
    }
}
