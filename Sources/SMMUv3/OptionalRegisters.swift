// Registers that are there only where an identification register says so: address translation operations, enhanced
// command queues.

import BitFields
import SMMUv3Spec

extension UInt64 {
    /// This register with one of its 32-bit halves, which `offset` names, replaced.
    func replacingHalf(at offset: UInt64, by value: UInt32) -> UInt64 {
        offset & 4 == 0
            ? (self & 0xFFFF_FFFF_0000_0000) | UInt64(value)
            : (self & 0x0000_0000_FFFF_FFFF) | (UInt64(value) &<< 32)
    }

    /// The 32-bit half of this register that `offset` names.
    func half(at offset: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: offset & 4 == 0 ? self : self &>> 32)
    }
}

extension Identification {
    /// Where the VATOS page begins, in bytes from page 0; nil where there is none.
    package var vatosPage: UInt64? { idr0.vatos ? 0x2_0000 &+ UInt64(idr2.baVATOS) &* 0x1_0000 : nil }

    /// How many enhanced command queues there are.
    package var enhancedQueueCount: Int { idr1.ecmdq ? 1 << Int(min(idr6.log2NumQ, 8)) : 0 }

    /// The bytes between two enhanced command queues' registers.
    var enhancedQueueSpacing: UInt64 { 0x1_0000 &>> UInt64(min(idr6.log2NumQ, 8)) }

    /// The optional pages that there are, of 64 KiB each: where each begins, in bytes from page 0.
    package var optionalPages: [(name: String, offset: UInt64)] {
        var pages: [(name: String, offset: UInt64)] = []
        if let vatosPage { pages.append(("vatos", vatosPage)) }
        if idr1.ecmdq { pages.append(("ecmdq", commandQueueControlPage)) }
        return pages
    }

    /// Adds the VATOS page and one command queue control page of 16 queues, as the last pages of a register window
    /// that has room for both behind page 1.
    ///
    /// Firmware puts what else stands in an SMMU's window, such as counter groups, right behind page 1.
    package mutating func addOptionalPages(within byteCount: UInt64) {
        let pages = byteCount &>> 16
        guard pages >= 4, idr0.atos, idr0.s1P, idr0.s2P else { return }
        // BA_VATOS has 10 bits, and counts from the third page.
        let vatos = min(pages &- 4, 0x3FF)
        idr0.vatos = true
        idr2.baVATOS = UInt16(truncatingIfNeeded: vatos)
        guard idr0.cohacc, idr0.msi else { return }
        idr1.ecmdq = true
        idr6.log2NumQ = 4
        commandQueueControlPage = 0x2_0000 &+ (vatos &+ 1) &* 0x1_0000
    }
}

extension RegisterFile {
    /// The word at `offset` of a register that is optional; 0 where it is not there.
    func readOptional(_ offset: UInt64) -> UInt32 {
        if identification.idr0.atos, RegisterOffset.gatosCtrl..<0x120 ~= offset {
            return gatos.read(offset &- RegisterOffset.gatosCtrl)
        }
        if offset == RegisterOffset.vatosSel { return vatosSel.rawValue }
        if let page = identification.vatosPage, page..<(page &+ 0x1_0000) ~= offset {
            return vatos.read(offset &- page &- VATOSRegisterOffset.ctrl)
        }
        guard identification.idr1.ecmdq else { return 0 }
        switch offset {
        case RegisterOffset.idr6: return identification.idr6.rawValue
        case RegisterOffset.cmdqControlPageBase(0), RegisterOffset.cmdqControlPageBase(0) &+ 4:
            var base = CmdqControlPageBase(rawValue: 0)
            base.preset = true
            base.cmdqGS = 1  // 64 KiB.
            base.addr = identification.commandQueueControlPage
            return base.rawValue.half(at: offset)
        case RegisterOffset.cmdqControlPageCfg(0), RegisterOffset.cmdqControlPageStatus(0): return 1
        default:
            guard let (queue, register) = enhancedQueue(at: offset) else { return 0 }
            return enhancedQueues[queue].read(register, identification)
        }
    }

    /// Writes the word at `offset` of a register that is optional.
    mutating func writeOptional(_ value: UInt32, at offset: UInt64) -> WriteConsequences {
        if identification.idr0.atos, RegisterOffset.gatosCtrl..<0x120 ~= offset {
            return gatos.write(
                value,
                at: offset &- RegisterOffset.gatosCtrl,
                isEnabled: cr0ack.smmuen,
                identification
            )
        }
        if identification.idr0.vatos, offset == RegisterOffset.vatosSel {
            // Not while it decides about a request.
            if !vatos.isRunning { vatosSel.rawValue = value & (identification.idr0.vmid16 ? 0xFFFF : 0xFF) }
            return []
        }
        if let page = identification.vatosPage, page..<(page &+ 0x1_0000) ~= offset {
            return vatos.write(
                value,
                at: offset &- page &- VATOSRegisterOffset.ctrl,
                isEnabled: cr0ack.smmuen,
                identification
            )
        }
        guard let (queue, register) = enhancedQueue(at: offset) else { return [] }
        return enhancedQueues[queue].write(value, at: register)
    }
}
