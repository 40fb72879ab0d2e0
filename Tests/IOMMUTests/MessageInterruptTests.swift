// The driver's interrupts by message: what the model writes to a doorbell wakes the right handler.

import AddressSpace
import DeviceModel
import SMMUv3
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import IOMMU

/// A page of an interrupt controller: a line for each number that is written to its doorbell.
private final class Doorbell: RegisterTarget {
    static let address = PhysicalAddress(0x0808_0000)
    let lines: [UInt32: InterruptLine]
    private let written = Mutex<[UInt32]>([])

    init(_ numbers: [UInt32]) {
        lines = Dictionary(
            uniqueKeysWithValues: numbers.map { number in
                let identity = InterruptIdentity(controller: "/its", specifier: [number])
                return (number, InterruptLine(identity: identity, label: "\(number)"))
            }
        )
    }

    var numbers: [UInt32] { written.withLock { $0 } }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 { 0 }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        let number = UInt32(truncatingIfNeeded: value)
        written.withLock { $0.append(number) }
        lines[number]?.pulse()
    }

    func message(_ number: UInt32) throws -> MessageInterrupt {
        MessageInterrupt(
            doorbell: PhysicalAddress(Self.address.rawValue + 0x40),
            data: number,
            line: try #require(lines[number])
        )
    }
}

@Suite("The SMMU's interrupts by message")
struct MessageInterruptTests {
    private func start(_ identification: Identification) throws -> (ModelBench, Doorbell, SMMUv3Driver) {
        let bench = try ModelBench(identification)
        let doorbell = Doorbell([5, 6, 7])
        let page = try #require(AddressRange(start: Doorbell.address.rawValue, byteCount: 0x1000))
        try bench.bus.addWindow(doorbell, at: page, name: "its")
        var options = SMMUv3DriverOptions(name: "9050000.iommu", isCoherent: true)
        options.interruptHandling = .inline
        let driver = try SMMUv3Driver(
            access: bench.bus,
            registerBase: ModelBench.window,
            registerByteCount: 0x2_0000,
            frames: bench.frames,
            interrupts: .messages(
                eventq: try doorbell.message(5),
                gerror: try doorbell.message(6),
                priq: try doorbell.message(7)
            ),
            options: options
        )
        return (bench, doorbell, driver)
    }

    @Test("an event's message wakes the events' handler alone")
    func event() throws {
        let (bench, doorbell, driver) = try start(.full())
        let endpoint = try driver.addEndpoint("device", streams: [StreamID(0x10)])
        let domain = try driver.makeDomain(.unmanaged)
        try driver.attach(endpoint, to: domain)
        #expect(doorbell.numbers.isEmpty)
        #expect(bench.smmu.makePort(for: StreamID(0x10)).read(0x1000) == .translationFault)
        #expect(doorbell.numbers == [5])
        let events = driver.interrupts.pendingEvents.load(ordering: .acquiring)
        let errors = driver.interrupts.pendingErrors.load(ordering: .acquiring)
        #expect(events && !errors)
        #expect(driver.pollInterrupts())
        #expect(driver.events().count == 1)
    }

    @Test("an error's message has the command queue recovered")
    func error() throws {
        let (bench, doorbell, driver) = try start(.full())
        // An opcode that there is none of: the kernel's handler skips it, and the CMD_SYNC after it completes.
        let illegal = Command(words: [0xFF, 0x1234])
        // The SMMU stops with its bench.
        try withExtendedLifetime(bench) { try driver.device.complete([illegal]) }
        #expect(doorbell.numbers == [6])
        #expect(driver.messages.contains("skipping command in error state:"))
    }

    @Test("where the SMMU sends no messages the log says that nothing is heard")
    func withoutMessages() throws {
        var identification = Identification.stage1()
        identification.idr0.msi = false
        let (_, doorbell, driver) = try start(identification)
        #expect(driver.messages.contains("no evtq irq - events will not be reported!"))
        #expect(driver.messages.contains("no gerr irq - errors will not be reported!"))
        #expect(doorbell.numbers.isEmpty)
    }

    @Test("lines where messages would do are told of in the kernel's words")
    func wired() throws {
        let driver = try ModelBench(.full()).start()
        #expect(driver.messages.contains("msi_domain absent - falling back to wired irqs"))
    }
}
