// DEVICE_SET_IRQS over a socket: the reference suite's test_device_set_irqs and test_irq_trigger, and INTx.

import CLinux
import Glibc
import HostIO
import Synchronization
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// The 29 cases of the reference suite, and those beside them.
@Suite("DEVICE_SET_IRQS over a socket")
struct InterruptTests {
    let server: TestServer
    let client: TestClient

    init() throws {
        server = try TestServer()
        client = try server.greeted()
    }

    private static let bindFlags = IRQ.eventfd | IRQ.trigger

    private func bind(_ index: UInt32, _ start: UInt32, _ events: [CInt]) throws {
        let message = command(8, interrupts(Self.bindFlags, index, start, UInt32(events.count)))
        try #require(try client.ask(message, descriptors: events) == success(8))
    }

    static let refused: [(name: String, payload: [UInt8])] = [
        ("no irq set", []), ("short", Array(interrupts(33, 2, 0, 0).dropLast())),
        ("argsz too small", words(8, 33, 2, 0, 0)), ("bad index", interrupts(33, 5, 0, 0)),
        ("no data, no action", interrupts(0, 2, 0, 1)), ("no action", interrupts(IRQ.none, 2, 0, 1)),
        ("no data", interrupts(IRQ.trigger, 2, 0, 1)),
        ("MASK and UNMASK", interrupts(IRQ.none | IRQ.mask | IRQ.unmask, 2, 0, 1)),
        ("NONE and BOOL", interrupts(IRQ.none | IRQ.bool | IRQ.mask, 2, 0, 1, [1])),
        ("unknown flag", interrupts(IRQ.none | IRQ.trigger | 0x40, 2, 0, 1)),
        ("start at the end", interrupts(IRQ.none | IRQ.trigger, 2, 2048, 1)),
        ("count too large", interrupts(IRQ.none | IRQ.trigger, 2, 0, 2049)),
        ("start and count too large", interrupts(IRQ.none | IRQ.trigger, 2, 2047, 2)),
        ("start and count wrap around", interrupts(IRQ.none | IRQ.trigger, 2, 1, UInt32.max)),
        ("MASK of ERR", interrupts(IRQ.none | IRQ.mask, 3, 0, 1)),
        ("MASK of REQ", interrupts(IRQ.none | IRQ.mask, 4, 0, 1)),
        ("start of ERR", interrupts(Self.bindFlags, 3, 1, 1)),
        ("count of ERR", interrupts(Self.bindFlags, 3, 0, 2)),
        ("count of REQ", interrupts(Self.bindFlags, 4, 0, 2)),
        ("count 0 with a start", interrupts(IRQ.none | IRQ.trigger, 2, 1, 0)),
        ("count 0 with an action but TRIGGER", interrupts(IRQ.none | IRQ.mask, 2, 0, 0)),
        ("count 0 with data", interrupts(IRQ.bool | IRQ.trigger, 2, 0, 0)),
        ("count 0 with EVENTFD", interrupts(Self.bindFlags, 2, 0, 0)),
        ("too few bools", interrupts(IRQ.bool | IRQ.trigger, 2, 0, 2, [1])),
        ("too many bools", interrupts(IRQ.bool | IRQ.trigger, 2, 0, 1, [1, 1])),
        ("a vector of a kind without vectors", interrupts(IRQ.none | IRQ.trigger, 1, 0, 1)),
    ]

    @Test("test_irqs_bad_*: what makes no sense is refused", arguments: refused.indices)
    func refuses(_ index: Int) throws {
        let (name, payload) = Self.refused[index]
        #expect(try client.ask(command(8, payload)) == refusal(8, 22), "\(name)")
        #expect(try client.isAlive())
    }

    @Test("test_irqs_bad_fds: eventfds with BOOL, with NONE, and in a wrong number")
    func wrongDescriptors() throws {
        let event = try eventfd()
        defer { close(event) }
        for (payload, count) in [
            (interrupts(IRQ.bool | IRQ.trigger, 2, 0, 1, [1]), 1),
            (interrupts(IRQ.none | IRQ.trigger, 2, 0, 1), 1),
            (interrupts(IRQ.none | IRQ.trigger, 2, 0, 0), 1), (interrupts(Self.bindFlags, 2, 0, 1), 2),
            (interrupts(Self.bindFlags, 2, 0, 3), 2),
        ] {
            let answer = try client.ask(
                command(8, payload),
                descriptors: Array(repeating: event, count: count)
            )
            #expect(answer == refusal(8, 22))
            #expect(copies(of: event) == 1)
        }
    }

    // The reference library's checks make "disable" fail for a kind without vectors; nothing is gained by that.
    @Test("test_irqs_disable differs: disabling what has no vectors succeeds")
    func disableAbsent() throws {
        #expect(try client.ask(command(8, interrupts(IRQ.none | IRQ.trigger, IRQ.msi, 0, 0))) == success(8))
    }

    @Test("test_irqs_enable, _reenable, _disable: eventfds are bound, replaced, and given up")
    func enable() throws {
        let events = try (0..<3).map { _ in try eventfd() }
        defer { for event in events { close(event) } }
        try bind(IRQ.msix, 7, [events[0], events[1]])
        #expect(events.map(copies) == [2, 2, 1])
        try bind(IRQ.msix, 7, [events[2]])
        #expect(eventually { events.map(copies) == [1, 2, 2] })
        server.device.interrupts?.signal(.msix, vector: 7)
        server.device.interrupts?.signal(.msix, vector: 8)
        #expect(events.map(drain) == [0, 1, 1])
        #expect(try client.ask(command(8, interrupts(IRQ.none | IRQ.trigger, IRQ.msix, 0, 0))) == success(8))
        #expect(events.map(copies) == [1, 1, 1])
        server.device.interrupts?.signal(.msix, vector: 7)
        #expect(events.map(drain) == [0, 0, 0])
        #expect(server.device.log == ["attached", "interrupts 2 9", "interrupts 2 9", "interrupts 2 0"])
    }

    @Test("QEMU's way to switch MSI-X on: EVENTFD without a descriptor, and then the vectors")
    func qemuOrder() throws {
        #expect(try client.ask(command(8, interrupts(Self.bindFlags, IRQ.msix, 0, 1))) == success(8))
        let event = try eventfd()
        defer { close(event) }
        try bind(IRQ.msix, 0, [event])
        #expect(server.device.log == ["attached", "interrupts 2 0", "interrupts 2 1"])
    }

    // The reference library's loop over such a range ends too early, and lets go of none.
    @Test("A range of eventfds is given up from a start above its count")
    func unbindRange() throws {
        let events = try (0..<4).map { _ in try eventfd() }
        defer { for event in events { close(event) } }
        try bind(IRQ.msix, 100, events)
        #expect(try client.ask(command(8, interrupts(Self.bindFlags, IRQ.msix, 101, 2))) == success(8))
        #expect(events.map(copies) == [2, 1, 1, 2])
        for vector in 100..<104 { server.device.interrupts?.signal(.msix, vector: vector) }
        #expect(events.map(drain) == [1, 0, 0, 1])
    }

    @Test("Sixteen eventfds in one message, as cloud-hypervisor sends them, twice")
    func sixteen() throws {
        let events = try (0..<16).map { _ in try eventfd() }
        defer { for event in events { close(event) } }
        try bind(IRQ.msix, 0, events)
        try bind(IRQ.msix, 16, events)
        for vector in 0..<32 { server.device.interrupts?.signal(.msix, vector: vector) }
        #expect(events.map(drain) == Array(repeating: 2, count: 16))
    }

    @Test("test_irqs_trigger_none: 4 and 8 vectors are fired, those with an eventfd are signalled")
    func triggerNone() throws {
        let events = try (0..<16).map { _ in try eventfd() }
        defer { for event in events { close(event) } }
        try bind(IRQ.msix, 0, events)
        for (start, count) in [(UInt32(4), UInt32(4)), (8, 8), (20, 4)] {
            #expect(
                try client.ask(command(8, interrupts(IRQ.none | IRQ.trigger, 2, start, count))) == success(8)
            )
        }
        #expect(events.map(drain) == Array(repeating: 0, count: 4) + Array(repeating: 1, count: 12))
    }

    @Test("test_irqs_trigger_bool: those whose byte is not 0")
    func triggerBool() throws {
        let events = try (0..<4).map { _ in try eventfd() }
        defer { for event in events { close(event) } }
        try bind(IRQ.msix, 0, events)
        let payload = interrupts(IRQ.bool | IRQ.trigger, 2, 1, 3, [1, 0, 0x80])
        #expect(try client.ask(command(8, payload)) == success(8))
        #expect(events.map(drain) == [0, 1, 0, 1])
    }

    @Test(
        "test_irq_trigger: a vector that is not there or has no eventfd does nothing; one that has is counted"
    )
    func trigger() throws {
        let event = try eventfd()
        defer { close(event) }
        try bind(IRQ.msix, 8, [event])
        let interrupts = try #require(server.device.interrupts)
        for vector in [-1, 7, 2048, Int.max] { interrupts.signal(.msix, vector: vector) }
        interrupts.signal(VFIOUserInterruptIndex(rawValue: 77), vector: 0)
        interrupts.signal(.msi, vector: 0)
        #expect(drain(event) == 0)
        for _ in 0..<5 { interrupts.signal(.msix, vector: 8) }
        #expect(drain(event) == 5)
    }

    @Test("ERR and REQ have an eventfd each")
    func errorAndRequest() throws {
        let events = [try eventfd(), try eventfd()]
        defer { for event in events { close(event) } }
        try bind(IRQ.error, 0, [events[0]])
        try bind(IRQ.request, 0, [events[1]])
        server.device.interrupts?.signal(.error, vector: 0)
        server.device.interrupts?.signal(.request, vector: 0)
        server.device.interrupts?.signal(.request, vector: 0)
        #expect(events.map(drain) == [1, 2])
    }

    @Test("test_irqs_mask: a masked vector of MSI-X is signalled once when it is unmasked")
    func maskedVector() throws {
        let event = try eventfd()
        defer { close(event) }
        try bind(IRQ.msix, 3, [event])
        #expect(try client.ask(command(8, interrupts(IRQ.none | IRQ.mask, 2, 3, 1))) == success(8))
        for _ in 0..<3 { server.device.interrupts?.signal(.msix, vector: 3) }
        #expect(drain(event) == 0)
        #expect(try client.ask(command(8, interrupts(IRQ.bool | IRQ.unmask, 2, 3, 1, [0]))) == success(8))
        #expect(drain(event) == 0)
        #expect(try client.ask(command(8, interrupts(IRQ.bool | IRQ.unmask, 2, 3, 1, [1]))) == success(8))
        #expect(drain(event) == 1)
        server.device.interrupts?.signal(.msix, vector: 3)
        #expect(drain(event) == 1)
    }

    // MARK: INTx

    private let unmask = command(8, interrupts(IRQ.none | IRQ.unmask, IRQ.intx, 0, 1))
    private let mask = command(8, interrupts(IRQ.none | IRQ.mask, IRQ.intx, 0, 1))

    @Test("INTx is signalled once while it is high, and again after each UNMASK while it still is")
    func level() throws {
        let event = try eventfd()
        defer { close(event) }
        try bind(IRQ.intx, 0, [event])
        let interrupts = try #require(server.device.interrupts)
        interrupts.setINTx(true)
        #expect(drain(event) == 1)
        interrupts.setINTx(true)
        interrupts.setINTx(false)
        interrupts.setINTx(true)
        #expect(drain(event) == 0)
        #expect(try client.ask(unmask) == success(8))
        #expect(drain(event) == 1)
        interrupts.setINTx(false)
        #expect(try client.ask(unmask) == success(8))
        #expect(drain(event) == 0)
        interrupts.setINTx(true)
        #expect(drain(event) == 1)
    }

    @Test("INTx that is masked is not signalled; one that is high already is when it is bound")
    func maskedLevel() throws {
        let event = try eventfd()
        defer { close(event) }
        let interrupts = try #require(server.device.interrupts)
        interrupts.setINTx(true)
        try bind(IRQ.intx, 0, [event])
        #expect(drain(event) == 1)
        interrupts.setINTx(false)
        #expect(try client.ask(unmask) == success(8))
        #expect(try client.ask(mask) == success(8))
        interrupts.setINTx(true)
        #expect(drain(event) == 0)
        // A test of the way to the client looks at neither.
        #expect(try client.ask(command(8, Self.fire)) == success(8))
        #expect(drain(event) == 1)
        #expect(try client.ask(unmask) == success(8))
        #expect(drain(event) == 1)
    }

    private static let fire = interrupts(IRQ.none | IRQ.trigger, IRQ.intx, 0, 1)

    @Test("Disabling INTx and binding it again starts unmasked")
    func rebind() throws {
        let events = [try eventfd(), try eventfd()]
        defer { for event in events { close(event) } }
        try bind(IRQ.intx, 0, [events[0]])
        server.device.interrupts?.setINTx(true)
        #expect(try client.ask(command(8, interrupts(IRQ.none | IRQ.trigger, IRQ.intx, 0, 0))) == success(8))
        try bind(IRQ.intx, 0, [events[1]])
        #expect(events.map(drain) == [1, 1])
    }

    @Test("EVENTFD with UNMASK, as KVM's resampling has it: who writes it unmasks, time and again")
    func unmaskByEventfd() throws {
        let (event, resample) = (try eventfd(), try eventfd())
        defer {
            close(event)
            close(resample)
        }
        try bind(IRQ.intx, 0, [event])
        #expect(try client.ask(mask) == success(8))
        let message = command(8, interrupts(IRQ.eventfd | IRQ.unmask, IRQ.intx, 0, 1))
        #expect(try client.ask(message, descriptors: [resample]) == success(8))
        #expect(try client.ask(unmask) == success(8))
        server.device.interrupts?.setINTx(true)
        #expect(try awaitSignal(event) == 1)
        for _ in 0..<5 {
            smmud_signal_eventfd(resample)
            #expect(try awaitSignal(event) == 1)
        }
        server.device.interrupts?.setINTx(false)
        smmud_signal_eventfd(resample)
        // Given up, it does nothing any more.
        #expect(
            try client.ask(command(8, interrupts(IRQ.eventfd | IRQ.unmask, IRQ.intx, 0, 1))) == success(8)
        )
        // The thread that watched it may have been at its last signal still.
        #expect(eventually { copies(of: resample) == 1 })
        #expect(copies(of: event) == 2)
    }

    @Test("EVENTFD with MASK masks; disabling the kind gives its eventfds up")
    func maskByEventfd() throws {
        let (event, masking) = (try eventfd(), try eventfd())
        defer {
            close(event)
            close(masking)
        }
        try bind(IRQ.msix, 1, [event])
        let message = command(8, interrupts(IRQ.eventfd | IRQ.mask, IRQ.msix, 1, 1))
        #expect(try client.ask(message, descriptors: [masking]) == success(8))
        smmud_signal_eventfd(masking)
        // Once it is masked a signal does nothing.
        #expect(
            eventually {
                server.device.interrupts?.signal(.msix, vector: 1)
                return drain(event) == 0
            }
        )
        #expect(try client.ask(command(8, interrupts(IRQ.none | IRQ.trigger, IRQ.msix, 0, 0))) == success(8))
        #expect(copies(of: masking) == 1)
        #expect(copies(of: event) == 1)
    }

    // MARK: Eventfds that are none, or block

    @Test("What is no eventfd is refused and not written to")
    func noEventfd() throws {
        var ends: [CInt] = [-1, -1]
        try #require(pipe(&ends) == 0 && fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0)
        let file = try memoryFile()
        let event = try eventfd()
        defer { for descriptor in ends + [file, event] { close(descriptor) } }
        for wrong in [ends[1], file, client.socket] {
            let message = command(8, interrupts(Self.bindFlags, IRQ.msix, 0, 2))
            #expect(try client.ask(message, descriptors: [event, wrong]) == refusal(8, 22))
            let switching = command(8, interrupts(IRQ.eventfd | IRQ.unmask, IRQ.intx, 0, 1))
            #expect(try client.ask(switching, descriptors: [wrong]) == refusal(8, 22))
        }
        server.device.interrupts?.signal(.msix, vector: 0)
        server.device.interrupts?.signal(.msix, vector: 1)
        #expect(drain(event) == 0)
        var byte: UInt8 = 0
        #expect(read(ends[0], &byte, 1) == -1 && errno == EAGAIN)
        #expect(copies(of: file) == 1 && copies(of: event) == 1)
    }

    @Test("A blocking eventfd whose counter is full holds nobody up")
    func fullCounter() throws {
        // Blocking, as a client may have it.
        let event = try eventfd()
        defer { close(event) }
        try #require(fcntl(event, F_SETFL, 0) == 0)
        var full = UInt64.max - 1
        try #require(write(event, &full, 8) == 8)
        try bind(IRQ.msix, 0, [event])
        for _ in 0..<3 { server.device.interrupts?.signal(.msix, vector: 0) }
        #expect(try client.ask(command(8, interrupts(IRQ.none | IRQ.trigger, IRQ.msix, 0, 1))) == success(8))
        #expect(drain(event) >= UInt64.max - 1)
        server.device.interrupts?.signal(.msix, vector: 0)
        #expect(drain(event) == 1)
    }

    @Test("A client that fills and empties a blocking eventfd all the time holds nobody up")
    func flickeringCounter() throws {
        let event = try eventfd()
        defer { close(event) }
        try #require(fcntl(event, F_SETFL, 0) == 0)
        try bind(IRQ.msix, 0, [event])
        let isDone = Atomic(false)
        try withBackground({
            while !isDone.load(ordering: .relaxed) {
                // Full, but for whom a signal overtook; then empty.
                var entry = pollfd(fd: event, events: Int16(POLLIN), revents: 0)
                if poll(&entry, 1, 0) == 1 { _ = drain(event) }
                _ = fcntl(event, F_SETFL, O_NONBLOCK)
                var full = UInt64.max - 1
                _ = write(event, &full, 8)
                _ = fcntl(event, F_SETFL, 0)
            }
        }) {
            for _ in 0..<5000 { server.device.interrupts?.signal(.msix, vector: 0) }
            isDone.store(true, ordering: .relaxed)
        }
        #expect(try client.isAlive())
    }
}
