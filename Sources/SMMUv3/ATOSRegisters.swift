// The registers of one address translation interface: GATOS's, or VATOS's, which are alike.

import SMMUv3Spec

/// CTRL, SID, ADDR and PAR of one interface (IHI 0070, 9.1).
struct ATOSRegisters: Sendable {
    private(set) var isRunning = false
    private(set) var sid = GATOSSid(rawValue: 0)
    private(set) var addr = GATOSAddr(rawValue: 0)
    private(set) var par = GATOSPar(rawValue: 0)
    /// Counts requests: an answer to one that was given up meanwhile is dropped.
    private(set) var ticket: UInt64 = 0

    // Offsets from CTRL.
    private static let ctrlOffset: UInt64 = 0
    private static let sidOffset: UInt64 = 8
    private static let addrOffset: UInt64 = 16
    private static let parOffset: UInt64 = 24

    /// The 32-bit word at an offset from CTRL; 0 where there is no register.
    func read(_ offset: UInt64) -> UInt32 {
        switch offset & ~4 {
        case Self.ctrlOffset: offset & 4 == 0 && isRunning ? 1 : 0
        case Self.sidOffset: sid.rawValue.half(at: offset)
        case Self.addrOffset: addr.rawValue.half(at: offset)
        case Self.parOffset: par.rawValue.half(at: offset)
        default: 0
        }
    }

    /// Writes the 32-bit word at an offset from CTRL: ignored while a request runs.
    ///
    /// - Parameter isEnabled: SMMUEN, without which none starts.
    mutating func write(
        _ value: UInt32,
        at offset: UInt64,
        isEnabled: Bool,
        _ identification: Identification
    ) -> WriteConsequences {
        guard !isRunning else { return [] }
        switch offset & ~4 {
        case Self.ctrlOffset:
            guard offset & 4 == 0, value & 1 != 0, isEnabled else { return [] }
            isRunning = true
            ticket &+= 1
            return .commandQueue
        case Self.sidOffset:
            // StreamID and SubstreamID beyond what is implemented are RES0.
            let streams = ((1 as UInt64) &<< UInt64(identification.idr1.sidsize)) &- 1
            let substreams = ((1 as UInt64) &<< UInt64(identification.idr1.ssidsize)) &- 1
            let valid: UInt64 = identification.idr1.ssidsize != 0 ? 1 << 52 : 0
            let mask = streams | substreams << 32 | valid
            sid.rawValue = sid.rawValue.replacingHalf(at: offset, by: value) & mask
        case Self.addrOffset:
            addr.rawValue = addr.rawValue.replacingHalf(at: offset, by: value) & ~0x3F
        default:
            break
        }
        return []
    }

    /// SMMUEN was cleared: a request that runs ends with INTERNAL_ERR.
    mutating func terminate() {
        guard isRunning else { return }
        finish(.fault(ATOSFault.internalError), ticket)
    }

    /// Gives the answer to a request, if it still runs.
    mutating func finish(_ result: GATOSPar, _ ticket: UInt64) {
        guard isRunning, self.ticket == ticket else { return }
        par = result
        isRunning = false
    }
}

/// FAULTCODEs of SMMU_GATOS_PAR that are not event numbers.
enum ATOSFault {
    /// INV_REQ: a request that this interface does not have.
    static let invalidRequest: UInt8 = 0xFF
    /// INV_STAGE: a stage that the stream's configuration does not have.
    static let invalidStage: UInt8 = 0xFE
    /// INTERNAL_ERR: given up.
    static let internalError: UInt8 = 0xFD
}

extension GATOSPar {
    /// A fault.
    ///
    /// - Parameters:
    ///   - code: FAULTCODE.
    ///   - reason: REASON: 0 stage 1 or none, 1 stage 2 for a CD, 2 for a table, 3 for the input.
    ///   - ipa: FADDR.
    static func fault(_ code: UInt8, reason: UInt8 = 0, ipa: UInt64 = 0) -> GATOSPar {
        var result = GATOSPar(rawValue: 0)
        result.fault = true
        result.faultcode = code
        result.reason = reason
        result.addr = ipa
        return result
    }

    /// A translation, of a page or block of 2^`log2Bytes` bytes.
    static func translated(to output: UInt64, log2Bytes: UInt8, attributes: MemoryAttributes) -> GATOSPar {
        var result = GATOSPar(rawValue: 0)
        result.sh = attributes.shareability
        result.attr = attributes.mair
        let size = UInt64(min(max(log2Bytes, 12), 55))
        result.addr = output & ~((1 &<< size) &- 1)
        if size > 12 {
            // The lowest bit of ADDR that is set says how large it is.
            result.size = true
            result.addr |= 1 &<< (size &- 1)
        }
        return result
    }
}
