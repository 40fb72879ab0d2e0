// How commands end: the status codes that this controller gives.

import BitFields

/// The Status Field of a completion queue entry without its phase tag: SC in bits 7:0, SCT in 10:8, M in 13, DNR
/// in 14.
struct CommandStatus: RawRepresentable, Error, Equatable, Sendable {
    var rawValue: UInt16

    /// A status of Status Code Type `type`; `isPermanent` is DNR, Do Not Retry.
    init(type: UInt16, code: UInt16, isPermanent: Bool = true) {
        rawValue = code | type << 8 | (isPermanent ? 1 << 14 : 0)
    }

    init(rawValue: UInt16) { self.rawValue = rawValue }

    /// With M, More: the error log has an entry for it.
    var withMore: Self { Self(rawValue: rawValue | 1 << 13) }

    var isSuccess: Bool { rawValue & 0x7FF == 0 }
}

/// Generic command status (SCT 0).
extension CommandStatus {
    static let success = Self(rawValue: 0)
    static let invalidOpcode = Self(type: 0, code: 0x01)
    static let invalidField = Self(type: 0, code: 0x02)
    /// Another mapping may be there at the next try, so it may be tried again.
    static let dataTransferError = Self(type: 0, code: 0x04, isPermanent: false)
    static let internalError = Self(type: 0, code: 0x06, isPermanent: false)
    static let abortRequested = Self(type: 0, code: 0x07, isPermanent: false)
    static let abortedByQueueDeletion = Self(type: 0, code: 0x08, isPermanent: false)
    static let invalidNamespace = Self(type: 0, code: 0x0B)
    static let commandSequenceError = Self(type: 0, code: 0x0C)
    static let invalidSGLSegment = Self(type: 0, code: 0x0D)
    static let invalidSGLDescriptorCount = Self(type: 0, code: 0x0E)
    static let invalidSGLLength = Self(type: 0, code: 0x0F)
    static let invalidSGLType = Self(type: 0, code: 0x11)
    static let invalidPRPOffset = Self(type: 0, code: 0x13)
    static let namespaceWriteProtected = Self(type: 0, code: 0x20)
    static let outOfRange = Self(type: 0, code: 0x80)
    static let capacityExceeded = Self(type: 0, code: 0x81)
}

/// Command specific status (SCT 1).
extension CommandStatus {
    static let invalidCompletionQueue = Self(type: 1, code: 0x00)
    static let invalidQueueIdentifier = Self(type: 1, code: 0x01)
    static let invalidQueueSize = Self(type: 1, code: 0x02)
    static let asynchronousEventLimitExceeded = Self(type: 1, code: 0x05)
    static let invalidInterruptVector = Self(type: 1, code: 0x08)
    static let invalidLogPage = Self(type: 1, code: 0x09)
    static let invalidQueueDeletion = Self(type: 1, code: 0x0C)
    static let featureNotSaveable = Self(type: 1, code: 0x0D)
    static let featureNotChangeable = Self(type: 1, code: 0x0E)
    static let featureNotOfNamespace = Self(type: 1, code: 0x0F)
}

/// Media and data integrity errors (SCT 2).
extension CommandStatus {
    static let writeFault = Self(type: 2, code: 0x80)
    static let unrecoveredReadError = Self(type: 2, code: 0x81)
    static let compareFailure = Self(type: 2, code: 0x85)
}
