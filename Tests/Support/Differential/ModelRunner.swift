// Plays a case on the model, through its registers and memory alone.

import AddressSpace
import DeviceModel
import GuestMemory
package import SMMUv3
import SMMUv3Spec
import SystemBus

/// The model as a machine like QEMU's.
package final class ModelRunner {
    let ram: GuestRAM
    package let smmu: SMMUv3
    private let bus = SystemBus()
    private let ports: [StreamPort]
    private var isClean = false
    private var producer: UInt64 = 0
    private var events: UInt64 = 0
    private var acknowledgedErrors: UInt32 = 0
    /// Called before each DMA, with memory as that DMA finds it.
    var beforeDMA: ((Int, DMA) -> Void)?

    package init(_ identification: Identification) throws {
        ram = GuestRAM(try .anonymous(byteCount: Layout.ramBytes, name: "ram"))
        try bus.addRAM(ram.region, at: PhysicalAddress(Layout.ram), name: "ram")
        var options = SMMUv3Options()
        options.commandExecution = .inline
        // QEMU keeps no structure that is invalid, and the architecture permits either.
        options.cachesInvalidStructures = false
        let smmu = SMMUv3(name: "model", identification: identification, options: options, bus: bus)
        self.smmu = smmu
        guard let window = AddressRange(start: Layout.registers, byteCount: RegisterOffset.windowByteCount)
        else { preconditionFailure("the window is in the address space") }
        try bus.addWindow(smmu, at: window, name: "smmu")
        ports = Layout.streams.map { smmu.makePort(for: StreamID($0), canStall: false) }
    }

    /// Ends the model's thread.
    package func stop() {
        smmu.stop()
        if let window = AddressRange(start: Layout.registers, byteCount: RegisterOffset.windowByteCount) {
            bus.removeWindow(at: window)
        }
        bus.reclaim()
    }

    private func write32(_ offset: UInt64, _ value: UInt64) throws {
        try bus.store(value, .word, at: PhysicalAddress(Layout.registers + offset))
    }

    private func read32(_ offset: UInt64) throws -> UInt32 {
        UInt32(truncatingIfNeeded: try bus.load(.word, at: PhysicalAddress(Layout.registers + offset)))
    }

    /// Forgets what memory held: the next case starts with all of it new.
    func forget() { isClean = false }

    package func run(_ run: Case) throws -> CaseOutcome {
        if !isClean { ram.reset() }
        isClean = true
        ram.clearQueues()
        var outcome = CaseOutcome()
        try write32(RegisterOffset.cr0, 0)
        try write32(RegisterOffset.gerrorn, UInt64(acknowledgedErrors))
        (producer, events) = (0, 0)
        var index = 0
        for step in run.steps {
            switch step {
            case .store(let address, let words):
                for (index, word) in words.enumerated() { ram.store64(word, address + UInt64(index) * 8) }
            case .register32(let offset, let value): try write32(offset, UInt64(value))
            case .register64(let offset, let value):
                try bus.store(value, .doubleword, at: PhysicalAddress(Layout.registers + offset))
            case .commands(let commands):
                for command in commands {
                    let slot = Layout.commandQueue + (producer & 0x7F) * 16
                    ram.store64(command.words[0], slot)
                    ram.store64(command.words[1], slot + 8)
                    producer = (producer + 1) & 0xFF
                }
                try write32(RegisterOffset.cmdqProd, producer)
                outcome.commandConsumers.append(try read32(RegisterOffset.cmdqCons))
            case .dma(let dma):
                beforeDMA?(index, dma)
                outcome.dmas.append(try access(index, dma))
                index += 1
            }
        }
        let errors = try read32(RegisterOffset.gerror)
        outcome.gerror = errors ^ acknowledgedErrors
        acknowledgedErrors = errors
        return outcome
    }

    private func access(_ index: Int, _ dma: DMA) throws -> DMAOutcome {
        var outcome = DMAOutcome()
        let address = IOVirtualAddress(dma.address)
        do throws(DMAFault) {
            if dma.isWrite {
                try ports[dma.requester].store(UInt64(Layout.writtenWord(index)), .word, at: address)
            } else {
                let word = try ports[dma.requester].load(.word, at: address)
                outcome.word = UInt32(truncatingIfNeeded: word)
            }
        } catch {
            // Its record says why.
        }
        if dma.isWrite { outcome.landing = ram.find(Layout.writtenWord(index), offset: dma.address & 0xFFF) }
        let end = UInt64(try read32(0x1_00A8)) & 0xFF
        while events != end {
            outcome.records.append(Self.record(ram, events))
            events = (events + 1) & 0xFF
        }
        return outcome
    }

    static func record(_ ram: GuestRAM, _ index: UInt64) -> EventRecord {
        let address = Layout.eventQueue + (index & 0x7F) * 32
        var record = EventRecord()
        for word in 0..<4 { record.words[word] = ram.load64(address + UInt64(word) * 8) ?? 0 }
        return record
    }
}
