// The registers of a counter group: where they are, what they read as, what of a write they take.

import BitFields
import SMMUv3Spec

/// Which of a counter group's two pages.
package enum PMCGPageNumber: Sendable {
    case page0
    case page1
}

/// What a 32-bit word of a page belongs to.
private enum Word {
    /// A word of SMMU_PMCG_EVCNTRn.
    case counter(Int, isUpper: Bool)
    case type(Int)
    /// A word of SMMU_PMCG_SVRn.
    case shadow(Int, isUpper: Bool)
    case filter(Int)
    /// Anything else: the register's offset.
    case single(UInt64, isUpper: Bool)
    case none
}

extension CounterGroup {
    // MARK: Places

    private func word(at offset: UInt64, _ page: PMCGPageNumber) -> Word {
        let word = word(at: offset)
        guard configuration.relocatesCounters else { return page == .page0 ? word : .none }
        let isRelocated =
            switch word {
            case .counter, .shadow: true
            case .single(PMCGRegisterOffset.ovsclr0, _), .single(PMCGRegisterOffset.ovsset0, _),
                .single(PMCGRegisterOffset.capr, _):
                true
            default: false
            }
        return isRelocated == (page == .page1) ? word : .none
    }

    private func word(at offset: UInt64) -> Word {
        let stride = configuration.counterStride
        /// Nil for a counter that is not there.
        func index(_ base: UInt64, _ stride: UInt64) -> Int? {
            let index = Int(truncatingIfNeeded: (offset &- base) / stride)
            return index < counters.count ? index : nil
        }
        let isUpper = offset & 4 != 0
        switch offset {
        case PMCGRegisterOffset.evcntr..<0x200:
            return index(PMCGRegisterOffset.evcntr, stride).map {
                .counter($0, isUpper: isUpper && stride == 8)
            }
                ?? .none
        case PMCGRegisterOffset.evtyper..<0x500:
            return index(PMCGRegisterOffset.evtyper, 4).map { .type($0) } ?? .none
        case PMCGRegisterOffset.svr..<0x800:
            return index(PMCGRegisterOffset.svr, stride).map { .shadow($0, isUpper: isUpper && stride == 8) }
                ?? .none
        case PMCGRegisterOffset.smr..<0xB00:
            return index(PMCGRegisterOffset.smr, 4).map { .filter($0) } ?? .none
        default:
            return .single(offset & ~(Self.isDoubleword(offset & ~4) ? 4 : 0), isUpper: isUpper)
        }
    }

    private static func isDoubleword(_ offset: UInt64) -> Bool {
        switch offset {
        case PMCGRegisterOffset.cntenset0, PMCGRegisterOffset.cntenclr0, PMCGRegisterOffset.intenset0,
            PMCGRegisterOffset.intenclr0, PMCGRegisterOffset.ovsclr0, PMCGRegisterOffset.ovsset0,
            PMCGRegisterOffset.ceid0, PMCGRegisterOffset.ceid1, PMCGRegisterOffset.irqCfg0:
            true
        default: false
        }
    }

    // MARK: Reading

    /// The 32-bit word at `offset` of a page, 0 where there is no register (RES0).
    func read(_ offset: UInt64, _ page: PMCGPageNumber) -> UInt32 {
        switch word(at: offset, page) {
        case .counter(let index, let isUpper): Self.half(counters[index], isUpper)
        case .type(let index): types[index].rawValue
        case .shadow(let index, let isUpper):
            configuration.hasCapture ? Self.half(shadows[index], isUpper) : 0
        case .filter(let index): filters[index].rawValue
        case .single(let register, let isUpper): read(register: register, isUpper)
        case .none: 0
        }
    }

    private func read(register offset: UInt64, _ isUpper: Bool) -> UInt32 {
        switch offset {
        case PMCGRegisterOffset.cntenset0, PMCGRegisterOffset.cntenclr0: Self.half(enabled, isUpper)
        case PMCGRegisterOffset.intenset0, PMCGRegisterOffset.intenclr0: Self.half(interruptEnabled, isUpper)
        case PMCGRegisterOffset.ovsclr0, PMCGRegisterOffset.ovsset0: Self.half(overflowed, isUpper)
        case PMCGRegisterOffset.cfgr: configuration.cfgr(hasMSI: hasMSI).rawValue
        case PMCGRegisterOffset.cr: cr.rawValue
        case PMCGRegisterOffset.ceid0: Self.half(countableEvents, isUpper)
        case PMCGRegisterOffset.irqCtrl: irqCtrl.rawValue
        case PMCGRegisterOffset.irqCtrlack: acknowledgedIRQCtrl.rawValue
        case PMCGRegisterOffset.irqCfg0: Self.half(messageAddress, isUpper)
        case PMCGRegisterOffset.irqCfg1: messageData
        case PMCGRegisterOffset.irqCfg2: messageAttributes
        case PMCGRegisterOffset.irqStatus: irqStatus.rawValue
        default: Self.identification(offset)
        }
    }

    /// An IRQEN that was cleared stays acknowledged until the last message has arrived, so that none comes later.
    private var acknowledgedIRQCtrl: PMCGIRQCtrl {
        var value = irqCtrl
        if messagesInFlight > 0 { value.irqen = true }
        return value
    }

    private static func half(_ register: UInt64, _ isUpper: Bool) -> UInt32 {
        UInt32(truncatingIfNeeded: isUpper ? register &>> 32 : register)
    }

    /// The registers that never change.
    ///
    /// No implementer's code, in SMMU_PMCG_IIDR or SMMU_PMCG_PIDRn: this is nobody's product, and drivers key
    /// their errata on it.
    private static func identification(_ offset: UInt64) -> UInt32 {
        switch offset {
        case PMCGRegisterOffset.aidr: 0x02  // SMMUv3.2.
        case PMCGRegisterOffset.pmdevarch: 0x4770_2A56
        case PMCGRegisterOffset.pmdevtype: 0x56
        case PMCGRegisterOffset.cidr0: 0x0D
        case PMCGRegisterOffset.cidr1: 0x90  // Class 9: a CoreSight component.
        case PMCGRegisterOffset.cidr2: 0x05
        case PMCGRegisterOffset.cidr3: 0xB1
        default: 0
        }
    }

    // MARK: Writing

    /// Writes the 32-bit word at `offset` of a page.
    ///
    /// Offsets without a register, and read-only ones, ignore it.
    mutating func write(_ value: UInt32, at offset: UInt64, _ page: PMCGPageNumber) {
        switch word(at: offset, page) {
        case .counter(let index, let isUpper):
            counters[index] =
                Self.replacingHalf(of: counters[index], value, isUpper) & configuration.counterMask
        case .type(let index):
            types[index].rawValue = value & writableTypeBits(of: index)
        case .filter(let index) where index == 0 || !configuration.hasGlobalFilter:
            filters[index].rawValue = value & configuration.streamIDMask
        case .single(let register, let isUpper):
            write(value, register: register, isUpper)
        case .filter, .shadow, .none:
            break
        }
    }

    /// EVENT, and what of the rest this group and this counter have.
    private func writableTypeBits(of index: Int) -> UInt32 {
        var bits = PMCGEvtyper(rawValue: 0)
        bits.event = .max
        bits.filterSIDSpan = index == 0 || !configuration.hasGlobalFilter
        bits.ovfcap = configuration.hasCapture
        return bits.rawValue
    }

    private mutating func write(_ value: UInt32, register offset: UInt64, _ isUpper: Bool) {
        let set = Self.replacingHalf(of: 0, value, isUpper) & configuration.counterSet
        switch offset {
        case PMCGRegisterOffset.cntenset0: enabled |= set
        case PMCGRegisterOffset.cntenclr0: enabled &= ~set
        case PMCGRegisterOffset.intenset0: interruptEnabled |= set
        case PMCGRegisterOffset.intenclr0: interruptEnabled &= ~set
        // Whether OVSSET has an overflow's other effects is the implementation's choice: it has none here.
        case PMCGRegisterOffset.ovsset0: overflowed |= set
        case PMCGRegisterOffset.ovsclr0: overflowed &= ~set
        case PMCGRegisterOffset.capr:
            if PMCGCapr(rawValue: value).capture, configuration.hasCapture { capture() }
        case PMCGRegisterOffset.cr: cr.e = PMCGCr(rawValue: value).e
        case PMCGRegisterOffset.irqCtrl: writeIRQCtrl(PMCGIRQCtrl(rawValue: value))
        default: writeMessage(value, register: offset, isUpper)
        }
    }

    private mutating func writeIRQCtrl(_ value: PMCGIRQCtrl) {
        if value.irqen, !irqCtrl.irqen { irqStatus.irqAbt = false }
        irqCtrl.irqen = value.irqen
    }

    /// IRQ_CFG0 to IRQ_CFG2, read-only while IRQEN or its acknowledgement is set.
    private mutating func writeMessage(_ value: UInt32, register offset: UInt64, _ isUpper: Bool) {
        guard hasMSI, !acknowledgedIRQCtrl.irqen else { return }
        switch offset {
        case PMCGRegisterOffset.irqCfg0:
            messageAddress =
                Self.replacingHalf(of: messageAddress, value, isUpper) & configuration.messageAddressMask
        case PMCGRegisterOffset.irqCfg1: messageData = value
        case PMCGRegisterOffset.irqCfg2: messageAttributes = value & UInt32.mask(0...5)
        default: break
        }
    }

    private static func replacingHalf(of register: UInt64, _ value: UInt32, _ isUpper: Bool) -> UInt64 {
        isUpper
            ? (register & 0x0000_0000_FFFF_FFFF) | (UInt64(value) &<< 32)
            : (register & 0xFFFF_FFFF_0000_0000) | UInt64(value)
    }
}
