// How a translation ends when it does not end in an address.

package import SMMUv3Spec

/// A transaction was terminated: what the device sees, and what is recorded.
package struct TranslationFault: Error, Equatable, Sendable {
    /// What the device sees.
    package enum Response: String, Sendable {
        /// An abort.
        case abort
        /// Reads as zero, writes ignored (CD.A == 0).
        case readAsZeroWriteIgnored
        /// It waits until software resumes or terminates it (CD.S == 1, STE.S2S == 1).
        case stall
    }

    package var response: Response
    /// Which event this is; nil for the aborts that have none (GBPA.ABORT, STE.Config == 0b0xx).
    package var event: EventNumber?
    /// The record for the event queue; nil where the configuration does not want it recorded.
    package var record: EventRecord?
    /// In words, for a person.
    package var reason: String

    static func silentAbort(_ reason: String) -> TranslationFault {
        TranslationFault(response: .abort, event: nil, record: nil, reason: reason)
    }

    /// An event that always aborts.
    static func abort(_ record: EventRecord, isRecorded: Bool = true, _ reason: String) -> TranslationFault {
        TranslationFault(
            response: .abort,
            event: record.number,
            record: isRecorded ? record : nil,
            reason: reason
        )
    }
}
