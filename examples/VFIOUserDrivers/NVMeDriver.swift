// A driver of NVM Express controllers (Base Specification 1.4): one I/O queue pair, one command at a time.

public import VFIOUserClient

/// The first namespace of an NVMe controller.
public final class NVMeDriver: BlockDevice {
    private enum Register {
        static let capabilities: UInt64 = 0x00
        static let configuration: UInt64 = 0x14
        static let status: UInt64 = 0x1c
        static let adminQueueAttributes: UInt64 = 0x24
        static let adminSubmission: UInt64 = 0x28
        static let adminCompletion: UInt64 = 0x30
        static let doorbells: UInt64 = 0x1000
    }
    /// Where things are in the driver's memory; queues have 16 entries.
    private enum Place {
        static let queues: UInt64 = 0
        static let list: UInt64 = 0x4000
        static let data: UInt64 = 0x5000
    }
    private static let entryCount = 16

    private struct Queue {
        var submission: UInt64
        var completion: UInt64
        var tail = 0
        var head = 0
        /// What the next completion's Phase Tag is.
        var phase = true
    }

    public private(set) var name = "NVMe"
    public private(set) var blockByteCount = 512
    public private(set) var blockCount: UInt64 = 0
    public private(set) var transferByteCountMax = 0x1_0000
    public var interruptCount: UInt64 { interrupts.count }

    private let device: PCIDevice
    private let memory: DriverMemory
    private let interrupts: DriverInterrupts
    private var queues: [Queue] = []
    private var doorbellStride: UInt64 = 4
    private var lastCommand: UInt16 = 0

    /// Brings a controller up.
    ///
    /// - Parameter address: Where in the device's addresses 84 KiB are free.
    public init(
        _ client: VFIOUserClient,
        _ sharing: DriverMemory.Sharing,
        at address: UInt64 = 0x2000_0000
    ) throws(DriverError) {
        device = PCIDevice(client)
        guard try device.classCode == 0x010802 else { throw .unsuitable("not of class 010802") }
        memory = try DriverMemory(client, byteCount: 0x1_5000, at: address, sharing)
        interrupts = try DriverInterrupts(device, vectorCount: 2)
        try enable()
        try identify()
        try makeQueues()
    }

    private func register<Word: FixedWidthInteger & UnsignedInteger>(_: Word.Type, _ offset: UInt64)
        throws(DriverError) -> Word
    {
        try device.read(Word.self, of: .bar(0), at: offset)
    }

    private func set<Word: FixedWidthInteger & UnsignedInteger>(_ word: Word, _ offset: UInt64)
        throws(DriverError)
    {
        try device.write(word, to: .bar(0), at: offset)
    }

    private func waitUntil(ready: Bool) throws(DriverError) {
        // Each look is a question to the server: this is tens of milliseconds at least.
        for _ in 0..<100_000 {
            let status = try register(UInt32.self, Register.status)
            guard ready else {
                // CSTS.CFS that an earlier driver left goes away with the reset that is awaited here.
                if status & 3 == 0 { return }
                continue
            }
            guard status & 2 == 0 else { throw .unsuitable("the controller failed (CSTS.CFS)") }
            if status & 1 != 0 { return }
        }
        throw .timedOut("CSTS.RDY")
    }

    private func enable() throws(DriverError) {
        let capabilities = try register(UInt64.self, Register.capabilities)
        guard capabilities & 0xffff >= Self.entryCount - 1 else { throw .unsuitable("queues of few entries") }
        doorbellStride = 4 << (capabilities >> 32 & 0xf)
        try set(UInt32(0), Register.configuration)
        try waitUntil(ready: false)
        for number in 0..<2 {
            let start = Place.queues + UInt64(number) * 0x2000
            queues.append(Queue(submission: start, completion: start + 0x1000))
        }
        let count = UInt32(Self.entryCount - 1)
        try set(count << 16 | count, Register.adminQueueAttributes)
        try set(memory.address + queues[0].submission, Register.adminSubmission)
        try set(memory.address + queues[0].completion, Register.adminCompletion)
        // Entries of 64 and 16 bytes, pages of 4 KiB, NVM command set.
        try set(UInt32(0x0046_0001), Register.configuration)
        try waitUntil(ready: true)
    }

    private func identify() throws(DriverError) {
        let page = memory.address + Place.data
        try command(0, "identify controller", [0x06, 0], first: page, words: [1])
        let controller = try memory.read(4096, at: Place.data)
        let model = String(decoding: controller[24..<64], as: UTF8.self)
        let serial = String(decoding: controller[4..<24], as: UTF8.self)
        name = "NVMe \(Self.trimmed(model)), serial number \(Self.trimmed(serial))"
        let exponent = controller[77]
        if exponent > 0, exponent < 4 { transferByteCountMax = 4096 << Int(exponent) }
        try command(0, "identify namespace", [0x06, 1], first: page, words: [0])
        blockCount = try memory.load(at: Place.data)
        let format = UInt64(try memory.load(UInt8.self, at: Place.data + 26) & 0xf)
        let shift = try memory.load(UInt8.self, at: Place.data + 128 + 4 * format + 2)
        guard (9...12).contains(shift), blockCount > 0 else {
            throw .unsuitable("blocks of 2^\(shift) bytes")
        }
        blockByteCount = 1 << Int(shift)
    }

    private static func trimmed(_ text: String) -> String {
        String(text.reversed().drop { $0 == " " || $0 == "\0" }.reversed())
    }

    private func makeQueues() throws(DriverError) {
        let size = UInt32(Self.entryCount - 1) << 16 | 1
        // Completion queue 1: contiguous, interrupts on, vector 1 (0 by the pin). Then submission queue 1 with it.
        let vector: UInt32 = interrupts.usesPin ? 0 : 1
        try command(
            0,
            "create completion queue",
            [0x05, 0],
            first: memory.address + queues[1].completion,
            words: [size, vector << 16 | 3]
        )
        try command(
            0,
            "create submission queue",
            [0x01, 0],
            first: memory.address + queues[1].submission,
            words: [size, 1 << 16 | 1]
        )
    }

    // MARK: Commands

    /// Sends a command and waits for its completion.
    ///
    /// - Parameters:
    ///   - head: Opcode, and namespace.
    ///   - first: PRP 1.
    ///   - second: PRP 2.
    ///   - words: Dwords 10 on.
    private func command(
        _ number: Int,
        _ name: String,
        _ head: [UInt32],
        first: UInt64 = 0,
        second: UInt64 = 0,
        words: [UInt32]
    ) throws(DriverError) {
        lastCommand &+= 1
        let entry = queues[number].submission + 64 * UInt64(queues[number].tail)
        try memory.write([UInt8](repeating: 0, count: 64), at: entry)
        try memory.store(head[0] | UInt32(lastCommand) << 16, at: entry)
        try memory.store(head[1], at: entry + 4)
        try memory.store(first, at: entry + 24)
        try memory.store(second, at: entry + 32)
        for (index, word) in words.enumerated() { try memory.store(word, at: entry + 40 + 4 * UInt64(index)) }
        queues[number].tail = (queues[number].tail + 1) % Self.entryCount
        try ring(2 * number, queues[number].tail)
        let status = try completion(number, name)
        guard status == 0 else { throw .refused(command: name, status: Int(status)) }
    }

    /// Waits for the next completion of a queue; its status field.
    private func completion(_ number: Int, _ name: String) throws(DriverError) -> UInt16 {
        for _ in 0..<attemptCountMax {
            let entry = queues[number].completion + 16 * UInt64(queues[number].head)
            let last = try memory.load(UInt32.self, at: entry + 12)
            if (last >> 16 & 1 != 0) == queues[number].phase {
                queues[number].head += 1
                if queues[number].head == Self.entryCount {
                    queues[number].head = 0
                    queues[number].phase.toggle()
                }
                try ring(2 * number + 1, queues[number].head)
                try interrupts.acknowledge()
                guard UInt16(truncatingIfNeeded: last) == lastCommand else {
                    throw .unsuitable("it completed a command that was not sent")
                }
                return UInt16(truncatingIfNeeded: last >> 17)
            }
            try interrupts.wait()
        }
        throw .timedOut(name)
    }

    private func ring(_ doorbell: Int, _ value: Int) throws(DriverError) {
        let offset = Register.doorbells + UInt64(doorbell) * doorbellStride
        try device.write(UInt32(value), to: .bar(0), at: offset, isPosted: true)
    }

    private func transfer(_ opcode: UInt32, _ name: String, _ byteCount: Int, _ block: UInt64)
        throws(DriverError)
    {
        guard byteCount > 0, byteCount <= transferByteCountMax, byteCount % blockByteCount == 0 else {
            throw .unsuitable("a transfer of \(byteCount) bytes")
        }
        let data = memory.address + Place.data
        var second: UInt64 = 0
        if byteCount > 8192 {
            // More than two pages: a list of all but the first.
            for page in 1..<(byteCount + 4095) / 4096 {
                try memory.store(data + UInt64(page) * 4096, at: Place.list + 8 * UInt64(page - 1))
            }
            second = memory.address + Place.list
        } else if byteCount > 4096 {
            second = data + 4096
        }
        let words = [
            UInt32(truncatingIfNeeded: block), UInt32(truncatingIfNeeded: block >> 32),
            UInt32(byteCount / blockByteCount - 1),
        ]
        try command(1, name, [opcode, 1], first: data, second: second, words: words)
    }

    public func read(_ byteCount: Int, at block: UInt64) throws(DriverError) -> [UInt8] {
        try transfer(0x02, "read", byteCount, block)
        return try memory.read(byteCount, at: Place.data)
    }

    public func write(_ bytes: [UInt8], at block: UInt64) throws(DriverError) {
        guard bytes.count <= transferByteCountMax else {
            throw .unsuitable("a transfer of \(bytes.count) bytes")
        }
        try memory.write(bytes, at: Place.data)
        try transfer(0x01, "write", bytes.count, block)
    }

    public func flush() throws(DriverError) { try command(1, "flush", [0x00, 1], words: []) }
}
