// What the tests of ATS and PRI share: a function that notes what it is sent, and guests whose SMMU has both.

import AddressSpace
import DeviceModel
import Synchronization
import Testing

@testable import SMMUv3

/// A function that notes every invalidate request and page response.
final class RecordingEndpoint: ATSEndpoint {
    private struct Noted {
        var invalidations: [ATCInvalidation] = []
        var responses: [PageRequestGroupResponse] = []
        var isSilent = false
        var withheld: [@Sendable () -> Void] = []
    }
    private let noted = Mutex(Noted())

    var invalidations: [ATCInvalidation] { noted.withLock { $0.invalidations } }
    var responses: [PageRequestGroupResponse] { noted.withLock { $0.responses } }

    /// From now on it completes nothing; turned off, it completes what it has withheld.
    func setSilent(_ isSilent: Bool) {
        let withheld = noted.withLock { noted in
            noted.isSilent = isSilent
            defer { if !isSilent { noted.withheld = [] } }
            return isSilent ? [] : noted.withheld
        }
        for completion in withheld { completion() }
    }

    func invalidate(_ request: ATCInvalidation, completion: @escaping @Sendable () -> Void) {
        let isSilent = noted.withLock { noted in
            noted.invalidations.append(request)
            if noted.isSilent { noted.withheld.append(completion) }
            return noted.isSilent
        }
        if !isSilent { completion() }
    }

    func receive(_ response: PageRequestGroupResponse) {
        noted.withLock { $0.responses.append(response) }
    }
}

extension TransactionAttributes {
    static let translated = TransactionAttributes(isTranslated: true)
}

extension TestGuest {
    /// CR0: SMMUEN, EVENTQEN, CMDQEN, and what else; CR2: RECINVSID, PTM and REC_CFG_ATS, if wanted.
    func setATS(check: Bool = true, recordsConfiguration: Bool = false, recordsStreamIDs: Bool = false) throws
    {
        try write32(0x20, 0b1100)
        try write32(0x2C, (recordsConfiguration ? 0b1000 : 0) | (recordsStreamIDs ? 0b10 : 0))
        try write32(0x20, check ? 0b1_1101 : 0b1101)
        #expect(try read32(0x24) == (check ? 0b1_1101 : 0b1101))
    }

    /// A translation request.
    func ask(
        _ streamID: UInt32,
        _ address: UInt64,
        _ substreamID: UInt32? = nil,
        nw: Bool = false,
        exe: Bool = false,
        priv: Bool = false
    ) -> ATSTranslationAnswer {
        port(streamID).translate(
            ATSTranslationRequest(
                address: IOVirtualAddress(address),
                substreamID: substreamID.map { SubstreamID($0) },
                noWrite: nw,
                isExecute: exe,
                isPrivileged: priv
            )
        )
    }
}

extension ATSTranslationAnswer {
    /// Success with data permissions.
    static func granted(_ output: UInt64, _ log2Bytes: UInt8 = 12, r: Bool = true, w: Bool = true)
        -> ATSTranslationAnswer
    {
        .success(ATSTranslation(output: output, log2Bytes: log2Bytes, canRead: r, canWrite: w))
    }

    static let denied = ATSTranslationAnswer.success(.denied(log2Bytes: 12))
}
