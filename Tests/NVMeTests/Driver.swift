// A driver as Linux's: its order of register accesses, its queues, its waits.

import NVMe
import Synchronization
import Testing

/// One command, as a driver fills it in.
struct TestCommand {
    var words = [UInt32](repeating: 0, count: 16)

    init(_ opcode: UInt8, namespace: UInt32 = 0) {
        words[0] = UInt32(opcode)
        words[1] = namespace
    }

    func with(_ index: Int, _ value: UInt32) -> Self {
        var copy = self
        copy.words[index] = value
        return copy
    }
    func prp1(_ address: UInt64) -> Self {
        with(6, UInt32(truncatingIfNeeded: address)).with(7, UInt32(truncatingIfNeeded: address >> 32))
    }
    func prp2(_ address: UInt64) -> Self {
        with(8, UInt32(truncatingIfNeeded: address)).with(9, UInt32(truncatingIfNeeded: address >> 32))
    }
    func identifier(_ identifier: UInt16) -> Self {
        with(0, words[0] & 0xFFFF | UInt32(identifier) << 16)
    }

    var bytes: [UInt8] {
        words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
    }
}

/// What a completion queue's entry says.
struct TestCompletion: Equatable {
    var result: UInt64
    var submissionQueueHead: UInt16
    var submissionQueue: UInt16
    var identifier: UInt16
    /// SC and SCT, without M and DNR.
    var status: UInt16
    var isPermanent: Bool

    static func status(_ type: UInt16, _ code: UInt16) -> UInt16 { type << 8 | code }
}

/// A pair of queues as the driver sees it.
final class TestQueuePair {
    let machine: TestMachine
    let id: UInt16
    let entryCount: UInt32
    let submissionBase: UInt64
    let completionBase: UInt64
    var tail: UInt32 = 0
    var head: UInt32 = 0
    private var phase: UInt64 = 1
    private var nextIdentifier: UInt16 = 0
    /// Doorbells and EventIdx in memory, where they are used.
    var shadow: (doorbells: UInt64, eventIndexes: UInt64)?
    /// How often a register was written.
    private(set) var registerWriteCount = 0

    init(_ machine: TestMachine, id: UInt16, entryCount: UInt32, at base: UInt64) {
        self.machine = machine
        self.id = id
        self.entryCount = entryCount
        submissionBase = base
        completionBase = base + 0x1_0000
        machine.write([UInt8](repeating: 0, count: Int(entryCount) * 16), at: completionBase)
    }

    /// Puts a command into the queue without a word of it.
    @discardableResult func enqueue(_ command: TestCommand) -> UInt16 {
        let identifier = nextIdentifier
        nextIdentifier &+= 1
        machine.write(command.identifier(identifier).bytes, at: submissionBase + UInt64(tail) * 64)
        tail = (tail + 1) % entryCount
        return identifier
    }

    @discardableResult func submit(_ command: TestCommand) -> UInt16 {
        let identifier = enqueue(command)
        ring(tail, place: UInt64(id) * 2)
        return identifier
    }

    /// nvme_dbbuf_update_and_check_event, where there are shadows.
    func ring(_ value: UInt32, place: UInt64) {
        if let shadow {
            let old = machine.load32(shadow.doorbells + place * 4)
            machine.store32(value, shadow.doorbells + place * 4)
            atomicMemoryFence(ordering: .sequentiallyConsistent)
            let event = machine.load32(shadow.eventIndexes + place * 4)
            let beyond = UInt16(truncatingIfNeeded: value &- event &- 1)
            guard beyond < UInt16(truncatingIfNeeded: value &- old) else { return }
        }
        registerWriteCount += 1
        machine.write32(value, 0x1000 + place * 4)
    }

    var hasCompletion: Bool {
        machine.load64(completionBase + UInt64(head) * 16 + 8) >> 48 & 1 == phase
    }

    /// The next entry of the completion queue.
    func takeCompletion(ringing: Bool = true) -> TestCompletion {
        waitUntil("a completion in queue \(id)") { hasCompletion }
        let place = completionBase + UInt64(head) * 16
        let second = machine.load64(place + 8)
        let completion = TestCompletion(
            result: machine.load64(place),
            submissionQueueHead: UInt16(truncatingIfNeeded: second),
            submissionQueue: UInt16(truncatingIfNeeded: second >> 16),
            identifier: UInt16(truncatingIfNeeded: second >> 32),
            status: UInt16(truncatingIfNeeded: second >> 49) & 0x7FF,
            isPermanent: second >> 63 != 0
        )
        head += 1
        if head == entryCount {
            head = 0
            phase ^= 1
        }
        if ringing { ringCompletions() }
        return completion
    }

    func ringCompletions() { ring(head, place: UInt64(id) * 2 + 1) }

    /// Submits a command and waits for its end.
    @discardableResult func execute(_ command: TestCommand) -> TestCompletion {
        let identifier = submit(command)
        let completion = takeCompletion()
        #expect(completion.identifier == identifier)
        #expect(completion.submissionQueue == id)
        return completion
    }
}

/// Brings a controller up as Linux does, and down.
final class TestDriver {
    let machine: TestMachine
    private(set) var admin: TestQueuePair
    private var nextQueueBase = TestMachine.ramBase + 0x10_0000

    /// Memory for data, page-aligned, that queues do not stand in.
    static let buffer = TestMachine.ramBase + 0x80_0000

    /// Disables, sets the admin queues up and enables: nvme_pci_configure_admin_queue.
    init(_ machine: TestMachine, memoryPageSize: UInt32 = 0) {
        self.machine = machine
        machine.write32(machine.read32(0x14) & ~1, 0x14)
        waitUntil("CSTS.RDY is 0") { machine.read32(0x1C) & 1 == 0 }
        admin = TestQueuePair(machine, id: 0, entryCount: 32, at: TestMachine.ramBase)
        machine.write32(31 | 31 << 16, 0x24)
        machine.write64(admin.submissionBase, 0x28)
        machine.write64(admin.completionBase, 0x30)
        let configuration = 6 << 16 | 4 << 20 | memoryPageSize << 7
        machine.write32(configuration, 0x14)
        machine.write32(configuration | 1, 0x14)
        waitUntil("CSTS.RDY is 1") { machine.read32(0x1C) & 3 != 0 }
        #expect(machine.read32(0x1C) == 1)
    }

    /// Creates a pair of I/O queues.
    func createQueues(
        _ id: UInt16,
        entryCount: UInt32 = 64,
        vector: UInt32 = 0,
        interrupts: Bool = true
    ) -> TestQueuePair {
        let pair = TestQueuePair(machine, id: id, entryCount: entryCount, at: nextQueueBase)
        nextQueueBase += 0x2_0000
        let size = (entryCount - 1) << 16 | UInt32(id)
        let completions = TestCommand(0x05).prp1(pair.completionBase).with(10, size)
            .with(11, 1 | (interrupts ? 2 : 0) | vector << 16)
        #expect(admin.execute(completions).status == 0)
        let submissions = TestCommand(0x01).prp1(pair.submissionBase).with(10, size)
            .with(11, 1 | UInt32(id) << 16)
        #expect(admin.execute(submissions).status == 0)
        return pair
    }

    /// Read or Write of blocks.
    static func transfer(_ opcode: UInt8, block: UInt64, count: UInt32, _ prp1: UInt64, _ prp2: UInt64 = 0)
        -> TestCommand
    {
        TestCommand(opcode, namespace: 1).prp1(prp1).prp2(prp2)
            .with(10, UInt32(truncatingIfNeeded: block)).with(11, UInt32(truncatingIfNeeded: block >> 32))
            .with(12, count - 1)
    }

    /// Normal shutdown, and the wait for its end.
    func shutDown() {
        machine.write32(machine.read32(0x14) & ~0xC000 | 0x4000, 0x14)
        waitUntil("CSTS.SHST is 10b") { machine.read32(0x1C) >> 2 & 3 == 2 }
    }
}
