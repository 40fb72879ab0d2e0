// Plays a case on QEMU.

package import SMMUv3
import SMMUv3Spec

/// QEMU as a machine like the model's.
///
/// The requesters are QEMU's `edu` devices. Such a device has a buffer, and moves bytes between it and memory when a
/// timer ends, which is as soon as this says. What it read is seen when it writes its buffer to memory, past the SMMU.
package final class QEMURunner {
    private static let ecam: UInt64 = 0x40_1000_0000
    private static let bars: UInt64 = 0x1000_0000
    /// Where the device thinks that its buffer is.
    private static let buffer: UInt64 = 0x4_0000
    private static let bufferBytes: UInt64 = 4096
    /// Where in the buffer the words are that reads fetch.
    private static let readPart: UInt64 = 0x800
    private static let pattern = Layout.scratch
    private static let drain = Layout.scratch + 0x1000

    private let process: QEMUProcess
    private var isClean = false
    private var producer: UInt64 = 0
    private var events: UInt64 = 0
    private var acknowledgedErrors: UInt64 = 0

    var ram: GuestRAM { process.ram }
    /// What the SMMU says of itself.
    package private(set) var identification = Identification.qemu()

    package init(command: [String], shape: MachineShape, folder: String) throws {
        process = try QEMUProcess(command, shape, folder: folder)
        let registers: [UInt64] = [
            RegisterOffset.idr0, RegisterOffset.idr1, RegisterOffset.idr3, RegisterOffset.idr5,
            RegisterOffset.iidr, RegisterOffset.aidr,
        ]
        for offset in registers { process.read32(Layout.registers + offset) }
        let words = try process.flush().map { UInt32(truncatingIfNeeded: $0) }
        process.removeFiles()
        guard words.count == registers.count else { throw QEMUError(description: "QEMU has no SMMU") }
        identification.idr0 = IDR0(rawValue: words[0])
        identification.idr1 = IDR1(rawValue: words[1])
        identification.idr3 = IDR3(rawValue: words[2])
        identification.idr5 = IDR5(rawValue: words[3])
        identification.iidr = IIDR(rawValue: words[4])
        identification.aidr = AIDR(rawValue: words[5])
        try enumerate()
    }

    private func function(_ stream: UInt32) -> UInt64 { Self.ecam + UInt64(stream) << 12 }
    private func bar(_ requester: Int) -> UInt64 { Self.bars + UInt64(requester) << 20 }

    /// Gives the root port its buses and each device its BAR.
    private func enumerate() throws {
        let port = function(0x10)
        process.write32(port + 0x18, 0x0005_0500)
        process.write32(port + 0x20, 0x1020_1020)
        process.write32(port + 0x04, 0x6)
        for (requester, stream) in Layout.streams.enumerated() {
            process.write32(function(stream) + 0x10, bar(requester))
            process.write32(function(stream) + 0x04, 0x6)
            process.read32(bar(requester))
        }
        let found = try process.flush()
        guard found.allSatisfy({ $0 == 0x0100_00ED }) else {
            throw QEMUError(description: "QEMU's edu devices do not answer")
        }
    }

    private func transfer(_ requester: Int, from: UInt64, to: UInt64, _ count: UInt64, _ command: UInt64) {
        process.write64(bar(requester) + 0x80, from)
        process.write64(bar(requester) + 0x88, to)
        process.write64(bar(requester) + 0x90, count)
        process.write64(bar(requester) + 0x98, command)
        // The device's 100 ms.
        process.ask("clock_step 100000000")
    }

    private func disable() {
        process.write32(Layout.registers + RegisterOffset.cr0, 0)
        process.write32(Layout.registers + RegisterOffset.gbpa, 1 << 31)
    }

    /// Fills the buffers of devices: what they will write, and zeros where they will read.
    private func load(_ requesters: Set<Int>) {
        disable()
        for index in 0..<Layout.dmaCount {
            ram.store32(Layout.writtenWord(index), Self.pattern + UInt64(index) * 8)
        }
        for requester in requesters {
            transfer(requester, from: Self.pattern, to: Self.buffer, Self.bufferBytes, 0b001)
        }
    }

    /// Forgets what memory held: the next case starts with all of it new.
    func forget() { isClean = false }

    package func run(_ run: Case) throws -> CaseOutcome {
        if !isClean { ram.reset() }
        isClean = true
        let dmas = run.dmas
        let requesters = Set(dmas.map(\.requester))
        load(requesters)
        process.write32(Layout.registers + RegisterOffset.gerrorn, acknowledgedErrors)
        (producer, events) = (0, 0)
        var reads: [Reading] = []
        var values = try process.flush()
        // The devices have their pattern.
        ram.clearQueues()
        var index = 0
        for step in run.steps {
            if case .store(let address, let words) = step {
                // Memory is ours: what was asked before has to be done before it changes.
                if process.outstanding > 0 { values += try process.flush() }
                for (index, word) in words.enumerated() { ram.store64(word, address + UInt64(index) * 8) }
            } else {
                values += try play(step, &index, &reads)
            }
        }
        process.read32(Layout.registers + RegisterOffset.gerror)
        reads.append(.gerror)
        disable()
        for requester in requesters {
            let target = Self.drain + UInt64(requester) * Self.bufferBytes
            transfer(requester, from: Self.buffer, to: target, Self.bufferBytes, 0b011)
        }
        values += try process.flush()
        return try outcome(dmas, reads, values)
    }

    private enum Reading {
        case events(Int)
        case consumer
        case gerror
    }

    private func play(_ step: Step, _ index: inout Int, _ reads: inout [Reading]) throws -> [UInt64] {
        var values: [UInt64] = []
        switch step {
        case .store: break
        case .register32(let offset, let value): process.write32(Layout.registers + offset, UInt64(value))
        case .register64(let offset, let value): process.write64(Layout.registers + offset, value)
        case .commands(let commands):
            if process.outstanding > 0 { values = try process.flush() }
            for command in commands {
                let slot = Layout.commandQueue + (producer & 0x7F) * 16
                ram.store64(command.words[0], slot)
                ram.store64(command.words[1], slot + 8)
                producer = (producer + 1) & 0xFF
            }
            process.write32(Layout.registers + RegisterOffset.cmdqProd, producer)
            process.read32(Layout.registers + RegisterOffset.cmdqCons)
            reads.append(.consumer)
        case .dma(let dma):
            let offset = UInt64(index) * 8
            if dma.isWrite {
                transfer(dma.requester, from: Self.buffer + offset, to: dma.address, 4, 0b011)
            } else {
                transfer(dma.requester, from: dma.address, to: Self.buffer + Self.readPart + offset, 4, 0b001)
            }
            process.read32(Layout.registers + 0x1_00A8)
            reads.append(.events(index))
            index += 1
        }
        return values
    }

    private func outcome(_ dmas: [DMA], _ reads: [Reading], _ values: [UInt64]) throws -> CaseOutcome {
        guard reads.count == values.count else { throw QEMUError(description: "QEMU left answers out") }
        var outcome = CaseOutcome()
        for (reading, value) in zip(reads, values) {
            switch reading {
            case .gerror:
                outcome.gerror = UInt32(truncatingIfNeeded: value ^ acknowledgedErrors)
                acknowledgedErrors = value
            case .consumer: outcome.commandConsumers.append(UInt32(truncatingIfNeeded: value))
            case .events(let index):
                let dma = dmas[index]
                var result = DMAOutcome()
                if dma.isWrite {
                    result.landing = ram.find(Layout.writtenWord(index), offset: dma.address & 0xFFF)
                } else {
                    let drain = Self.drain + UInt64(dma.requester) * Self.bufferBytes
                    result.word = ram.load32(drain + Self.readPart + UInt64(index) * 8) ?? 0
                }
                while events != value & 0xFF {
                    result.records.append(ModelRunner.record(ram, events))
                    events = (events + 1) & 0xFF
                }
                outcome.dmas.append(result)
            }
        }
        return outcome
    }
}
