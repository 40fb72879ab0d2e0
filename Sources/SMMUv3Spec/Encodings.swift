// Open types for what a guest can write into a field: every value can be held, the named ones have names.

/// STE.Config [3:1]: which stages a stream goes through.
public struct StreamConfig: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Terminate without an event; every `0b0xx` behaves like it.
    public static let abort = Self(rawValue: 0b000)
    /// Neither stage translates.
    public static let bypass = Self(rawValue: 0b100)
    /// Stage 1 translates, stage 2 is bypassed.
    public static let stage1 = Self(rawValue: 0b101)
    /// Stage 2 translates, stage 1 is bypassed.
    public static let stage2 = Self(rawValue: 0b110)
    /// Both stages translate.
    public static let nested = Self(rawValue: 0b111)

    /// Whether traffic is terminated without an event (`0b0xx`).
    public var abortsSilently: Bool { rawValue & 0b100 == 0 }
    /// Whether stage 1 translates (`0b1x1`).
    public var translatesStage1: Bool { rawValue & 0b101 == 0b101 }
    /// Whether stage 2 translates (`0b11x`).
    public var translatesStage2: Bool { rawValue & 0b110 == 0b110 }
}

extension StreamConfig: CustomStringConvertible {
    public var description: String {
        guard !abortsSilently else { return "abort" }
        switch (translatesStage1, translatesStage2) {
        case (false, false): return "bypass"
        case (true, false): return "stage 1"
        case (false, true): return "stage 2"
        case (true, true): return "stage 1 + stage 2"
        }
    }
}

/// The translation regime of a stream: what its TLB entries are tagged with.
public enum StreamWorld: Hashable, Sendable, CaseIterable {
    /// Non-secure EL1: what a guest or a bare-metal operating system at EL1 uses.
    case nsEL1
    /// Non-secure EL2 without E2H: one table, no ASID.
    case nsEL2
    /// Non-secure EL2 with E2H: two tables and an ASID, as at EL1.
    case nsEL2E2H
    /// Secure EL1.
    case secure
    /// Secure EL2 without E2H.
    case sEL2
    /// Secure EL2 with E2H.
    case sEL2E2H
    /// EL3.
    case el3

    /// What STE.STRW selects for a Non-secure, stage-1-only stream; nil where it is ILLEGAL (`0bx1`).
    ///
    /// - Parameters:
    ///   - strw: STE.STRW [95:94].
    ///   - e2H: CR2.E2H.
    public init?(strw: UInt8, e2H: Bool) {
        switch strw & 0b11 {
        case 0b00: self = .nsEL1
        case 0b10: self = e2H ? .nsEL2E2H : .nsEL2
        default: return nil
        }
    }

    /// Whether there is a second table for the upper half of addresses, and with it ASIDs and unprivileged
    /// access.
    public var hasTwoRanges: Bool {
        switch self {
        case .nsEL1, .nsEL2E2H, .secure, .sEL2E2H: return true
        case .nsEL2, .sEL2, .el3: return false
        }
    }

    /// The specification's name of it.
    public var name: String {
        switch self {
        case .nsEL1: return "NS-EL1"
        case .nsEL2: return "NS-EL2"
        case .nsEL2E2H: return "NS-EL2-E2H"
        case .secure: return "Secure"
        case .sEL2: return "S-EL2"
        case .sEL2E2H: return "S-EL2-E2H"
        case .el3: return "EL3"
        }
    }
}

/// CMDQ_CONS.ERR [30:24] and ECMDQ_CONS.ERR_REASON: why a command queue stopped.
public struct CommandError: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// No error; never reported.
    public static let cerrorNone = Self(rawValue: 0)
    /// An unknown or unsupported command, or an illegal parameter.
    public static let cerrorIll = Self(rawValue: 1)
    /// The fetch of the command aborted.
    public static let cerrorAbt = Self(rawValue: 2)
    /// A CMD_SYNC could not complete a CMD_ATC_INV before it.
    public static let cerrorAtcInvSync = Self(rawValue: 3)

    /// The specification's name, or nil where the value is reserved.
    public var name: String? {
        switch self {
        case .cerrorNone: return "CERROR_NONE"
        case .cerrorIll: return "CERROR_ILL"
        case .cerrorAbt: return "CERROR_ABT"
        case .cerrorAtcInvSync: return "CERROR_ATC_INV_SYNC"
        default: return nil
        }
    }
}

/// CLASS [105:104] of an event record: what was being translated when the fault came.
public struct EventClass: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// The fetch of a CD or L1CD.
    public static let cd = Self(rawValue: 0b00)
    /// The fetch of a translation table descriptor.
    public static let ttd = Self(rawValue: 0b01)
    /// The transaction's own address.
    public static let `in` = Self(rawValue: 0b10)

    /// The specification's name, or nil where the value is reserved.
    public var name: String? {
        switch self {
        case .cd: return "CD"
        case .ttd: return "TTD"
        case .in: return "IN"
        default: return nil
        }
    }
}

/// CMD_SYNC.CS [13:12]: how the completion of a CMD_SYNC is told.
public struct CompletionSignal: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8

    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Only CMDQ_CONS moves.
    @inlinable public static var sigNone: Self { Self(rawValue: 0) }
    /// An MSI where MSIAddr says, or a wired interrupt.
    @inlinable public static var sigIRQ: Self { Self(rawValue: 1) }
    /// A wake-up event to processors.
    @inlinable public static var sigSEV: Self { Self(rawValue: 2) }

    /// The specification's name, or nil where the value is reserved.
    public var name: String? {
        switch self {
        case .sigNone: return "SIG_NONE"
        case .sigIRQ: return "SIG_IRQ"
        case .sigSEV: return "SIG_SEV"
        default: return nil
        }
    }
}

/// CMD_PRI_RESP.Resp [77:76]: the answer to a page request group.
public struct PageResponse: RawRepresentable, Hashable, Sendable {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// ResponseFailure, 0b1111 on PCIe.
    public static let failure = Self(rawValue: 0)
    /// InvalidRequest, 0b0001 on PCIe.
    public static let invalidRequest = Self(rawValue: 1)
    /// Success, 0b0000 on PCIe.
    public static let success = Self(rawValue: 2)
}
