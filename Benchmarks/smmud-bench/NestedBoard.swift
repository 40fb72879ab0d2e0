// Stage 2 behind the driver's stage 1, as a hypervisor would put it there.

import AddressSpace
import DeviceModel
import DeviceTree
import IOMMU
import Machine
import SMMUv3Spec
import SystemBus

/// What could not be changed on a board.
struct BoardError: Error, CustomStringConvertible {
    let description: String
}

extension DrivenBoard {
    /// Where a generated board's RAM is, all of it.
    private static let ram: (start: UInt64, byteCount: UInt64) = (0x8000_0000, 0x2000_0000)

    /// Gives each endpoint a stage 2 of four levels behind its stage 1, under VMID 1: RAM where it is, page by page.
    ///
    /// The STEs are changed where they lie, and nothing is invalidated: no endpoint may have issued DMA before, and the
    /// board must not prefetch. Its SMMUs must have both stages.
    func nest() throws {
        let table = try stage2Table()
        for endpoint in ports.indices {
            let place = try entryAddress(of: endpoint)
            var ste = STE()
            for index in 0..<8 { ste.words[index] = try load(place + UInt64(index) * 8) }
            guard ste.v, ste.config == .stage1 else {
                throw BoardError(description: "the STE of endpoint \(endpoint) is not one of stage 1: \(ste)")
            }
            ste.config = .nested
            (ste.s2VMID, ste.s2T0SZ, ste.s2SL0, ste.s2PS) = (1, 16, 2, 5)
            (ste.s2AA64, ste.s2R, ste.s2TTB) = (true, true, table)
            for index in 0..<8 { try store(ste.words[index], at: place + UInt64(index) * 8) }
        }
    }

    private func load(_ address: UInt64) throws -> UInt64 {
        try machine.bus.load(.doubleword, at: PhysicalAddress(address))
    }

    private func store(_ word: UInt64, at address: UInt64) throws {
        try machine.bus.store(word, .doubleword, at: PhysicalAddress(address))
    }

    /// Where an endpoint's STE lies, by SMMU_STRTAB_BASE and SMMU_STRTAB_BASE_CFG.
    private func entryAddress(of endpoint: Int) throws -> UInt64 {
        let registers = machine.smmus[endpoint % smmuCount].node.registers.first
        let base = StrtabBase(rawValue: try load(registers + RegisterOffset.strtabBase)).addr
        let word = try machine.bus.load(
            .word,
            at: PhysicalAddress(registers + RegisterOffset.strtabBaseCfg)
        )
        let shape = StrtabBaseCfg(rawValue: UInt32(truncatingIfNeeded: word))
        let stream = UInt64(GeneratedBoard.stream(of: endpoint))
        guard shape.fmt == 1 else { return base + stream * 64 }
        let split = UInt64(shape.split)
        let descriptor = L1STD(word: try load(base + (stream >> split) * 8))
        return descriptor.l2Ptr + (stream & ((1 << split) - 1)) * 64
    }

    /// The level-0 table: one of level 1, one of level 2, and as many of level 3 as RAM takes, side by side.
    private func stage2Table() throws -> UInt64 {
        let (start, byteCount) = Self.ram
        let leaves = try frames.allocate(byteCount: byteCount >> 9, alignment: 4096).rawValue
        let tables = try (0..<3).map { _ in try frames.allocate(byteCount: 4096, alignment: 4096).rawValue }
        for table in tables { try machine.bus.fill(0, byteCount: 4096, at: PhysicalAddress(table)) }
        try store(tables[1] | 0b11, at: tables[0] + (start >> 39) * 8)
        try store(tables[2] | 0b11, at: tables[1] + (start >> 30) * 8)
        for block in 0..<byteCount >> 21 {
            try store(leaves + block << 12 | 0b11, at: tables[2] + block * 8)
        }
        for page in 0..<byteCount >> 12 {
            // AF, inner shareable, S2AP = read and write, MemAttr = write-back, page.
            try store(start + page << 12 | 0x7FF, at: leaves + page * 8)
        }
        return tables[0]
    }
}
