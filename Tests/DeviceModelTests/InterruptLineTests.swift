// Lines: pulses, levels of several sources, listeners.

import DeviceModel
import Synchronization
import Testing

/// Keeps what it hears.
private final class Recorder: InterruptSink {
    private let heard = Mutex<[InterruptSignal]>([])
    var signals: [InterruptSignal] { heard.withLock { $0 } }

    func signal(_ signal: InterruptSignal, on line: InterruptLine) { heard.withLock { $0.append(signal) } }
}

@Suite("Interrupt lines")
struct InterruptLineTests {
    private func makeLine() -> InterruptLine {
        InterruptLine(
            identity: InterruptIdentity(controller: "/gic", specifier: [0, 74, 1]),
            label: "eventq"
        )
    }

    @Test("every pulse is heard by every listener, and counted")
    func pulses() {
        let line = makeLine()
        let (first, second) = (Recorder(), Recorder())
        line.connect(first)
        line.pulse()
        line.connect(second)
        line.pulse()
        #expect(first.signals == [.pulse, .pulse])
        #expect(second.signals == [.pulse])
        #expect(line.counts == (2, 0))
        line.disconnect(first)
        line.pulse()
        #expect(first.signals.count == 2)
        #expect(second.signals.count == 2)
    }

    @Test("a line is active while any of its sources is, and says so when that changes alone")
    func levels() {
        let line = makeLine()
        let recorder = Recorder()
        line.connect(recorder)
        let (first, second) = (InterruptLevelInput(of: line), InterruptLevelInput(of: line))
        first.set(true)
        second.set(true)
        first.set(true)
        first.set(false)
        #expect(line.isAsserted)
        second.set(false)
        #expect(!line.isAsserted)
        #expect(recorder.signals == [.asserted, .deasserted])
        #expect(line.counts == (0, 1))
    }

    @Test("who comes to a line that is active hears that at once; a source that goes lets go of it")
    func lateListeners() {
        let line = makeLine()
        var input: InterruptLevelInput? = InterruptLevelInput(of: line)
        input?.set(true)
        let recorder = Recorder()
        line.connect(recorder)
        #expect(recorder.signals == [.asserted])
        input = nil
        #expect(recorder.signals == [.asserted, .deasserted])
        #expect(input == nil)
    }

    @Test("all ones of each width")
    func widths() {
        #expect(AccessWidth.byte.allOnes == 0xFF)
        #expect(AccessWidth.halfword.allOnes == 0xFFFF)
        #expect(AccessWidth.word.allOnes == 0xFFFF_FFFF)
        #expect(AccessWidth.doubleword.allOnes == .max)
    }
}
