// What each CMD_TLBI_* removes from the TLB (IHI 0070, 4.4).

import BitFields
import SMMUv3Spec
import Synchronization

extension SMMUv3 {
    /// Executes a CMD_TLBI_*.
    ///
    /// CMD_TLBI_S2_IPA removes what stage 2 alone translates. Entries of both stages stay, as the architecture
    /// permits: software follows it with a TLBI of stage 1, and a driver that does not is found out.
    func invalidateTranslations(_ command: Command, _ controls: InvalidationControls) -> CommandOutcome {
        guard let scope = scope(of: command, controls) else { return .failed(.cerrorIll) }
        let wildcard = controls.wildcardVMIDBits
        // Before the TLB, which advances the generation of translations: a walk by a table that goes is overtaken.
        if !isLeafOnly(command) { walkCache.invalidate(scope, ignoringVMIDBits: wildcard) }
        translationCache.invalidate(scope, ignoringVMIDBits: wildcard)
        return .done
    }

    /// The same for a CMD_TLBI_NH_VA without a range, where there is a stage 1 and no bit of a VMID is ignored.
    @inline(__always)  // What most CMD_TLBI_* are.
    func invalidatePage(of command: Command) {
        let first = Self.virtualAddress(of: command)
        let scope = TranslationCache.Scope.address(
            .nsEL1,
            vmid: identification.idr0.s2P ? command.vmid : 0,
            asid: command.asid,
            TranslationCache.AddressScope(first: first, last: first &+ 0xFFF, granule: nil, level: nil)
        )
        if !command.leaf { walkCache.invalidate(scope) }
        translationCache.invalidate(scope)
    }

    /// The same for one with a range of pages.
    ///
    /// - Returns: false, having done nothing, where there are more than `limit`, or the range is reserved.
    @inline(never)  // Keeps the way of a page small.
    func invalidateRange(of command: Command, upTo limit: UInt64) -> Bool {
        guard let addresses = virtualScope(of: command), let granule = addresses.granule,
            (addresses.last &- addresses.first) &>> UInt64(granule.log2Bytes) < limit
        else { return false }
        let scope = TranslationCache.Scope.address(
            .nsEL1,
            vmid: identification.idr0.s2P ? command.vmid : 0,
            asid: command.asid,
            addresses
        )
        if !command.leaf { walkCache.invalidate(scope) }
        translationCache.invalidate(scope)
        return true
    }

    /// Whether a CMD_TLBI_* leaves tables alone: by address, with Leaf == 1.
    private func isLeafOnly(_ command: Command) -> Bool {
        switch command.opcode {
        case .tlbiNHVA, .tlbiNHVAA, .tlbiEL2VA, .tlbiEL2VAA, .tlbiS2IPA: command.leaf
        default: false
        }
    }

    /// - Returns: nil where the command is ILLEGAL.
    private func scope(of command: Command, _ controls: InvalidationControls) -> TranslationCache.Scope? {
        // Without stage 2 the VMID field is RES0 and entries are tagged with 0.
        let vmid = identification.idr0.s2P ? command.vmid : 0
        switch command.opcode {
        case .tlbiNSNHAll:
            return .regimes([.nsEL1, .nsEL1Stage2])
        case .tlbiS12VMAll:
            return identification.idr0.s2P ? .vmid([.nsEL1, .nsEL1Stage2], vmid) : nil
        case .tlbiS2IPA:
            guard identification.idr0.s2P, let addresses = addressScope(of: command, first: command.ipa)
            else {
                return nil
            }
            return .address(.nsEL1Stage2, vmid: vmid, asid: 0, addresses)
        case .tlbiEL2All, .tlbiEL2ASID, .tlbiEL2VA, .tlbiEL2VAA:
            return identification.idr0.hyp ? hypervisorScope(of: command, controls.isE2H) : nil
        default:
            return identification.idr0.s1P ? guestScope(of: command, vmid) : nil
        }
    }

    private func guestScope(of command: Command, _ vmid: UInt16) -> TranslationCache.Scope? {
        switch command.opcode {
        case .tlbiNHAll:
            return .vmid([.nsEL1], vmid)
        case .tlbiNHASID:
            return .asid(.nsEL1, vmid: vmid, asid: command.asid)
        default:
            guard let addresses = virtualScope(of: command) else { return nil }
            return command.opcode == .tlbiNHVA
                ? .address(.nsEL1, vmid: vmid, asid: command.asid, addresses)
                : .addressAllASIDs(.nsEL1, vmid: vmid, addresses)
        }
    }

    private func hypervisorScope(of command: Command, _ isE2H: Bool) -> TranslationCache.Scope? {
        switch command.opcode {
        case .tlbiEL2All:
            return .regimes([.nsEL2, .nsEL2E2H])
        case .tlbiEL2ASID:
            return .asid(.nsEL2E2H, vmid: 0, asid: command.asid)
        default:
            guard let addresses = virtualScope(of: command) else { return nil }
            // SMMU_CR2.E2H says which of the two regimes the command means; NS-EL2 has no ASIDs.
            guard isE2H else {
                return .addressAllASIDs(.nsEL2, vmid: 0, addresses)
            }
            return command.opcode == .tlbiEL2VA
                ? .address(.nsEL2E2H, vmid: 0, asid: command.asid, addresses)
                : .addressAllASIDs(.nsEL2E2H, vmid: 0, addresses)
        }
    }

    /// The virtual addresses of a TLBI, sign-extended from bit 55 as entries are.
    private func virtualScope(of command: Command) -> TranslationCache.AddressScope? {
        addressScope(of: command, first: Self.virtualAddress(of: command))
    }

    private static func virtualAddress(of command: Command) -> UInt64 {
        UInt64(bitPattern: (Int64(bitPattern: command.address) &<< 8) &>> 8)
    }

    /// The addresses of a TLBI, with range and TTL where SMMU_IDR3.RIL has them (IHI 0070, 4.4.1.1).
    ///
    /// - Returns: nil for the reserved combination of a range with NUM, SCALE and TTL all zero.
    private func addressScope(of command: Command, first: UInt64) -> TranslationCache.AddressScope? {
        guard identification.idr3.ril, command.tg != 0, let granule = Granule(tlbiTG: command.tg) else {
            return TranslationCache.AddressScope(
                first: first,
                last: first &+ 0xFFF,
                granule: nil,
                level: nil
            )
        }
        let ds = identification.idr5.ds
        var level = command.ttl == 0 ? nil : command.ttl
        // Level 1 has no 16 KiB leaves without DS: the value is reserved and acts as 0.
        if granule == .kib16, level == 1, !ds { level = nil }
        // With 52-bit addresses SCALE has six bits, and values above 39 act as 39.
        let scale = ds ? min(command.scaleDS, 39) : command.scale
        if command.num == 0, scale == 0, level == nil { return nil }
        let pages = UInt64(command.num &+ 1) &<< UInt64(scale)
        let (bytes, overflow) = pages.multipliedReportingOverflow(by: granule.byteCount)
        let (last, wraps) = first.addingReportingOverflow(bytes &- 1)
        // A range does not wrap at the top of the address space.
        return TranslationCache.AddressScope(
            first: first,
            last: overflow || wraps ? UInt64.max : last,
            granule: granule,
            level: level
        )
    }
}
