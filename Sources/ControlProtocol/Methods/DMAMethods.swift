// Transactions of devices: what they would reach, and reaching it.

extension Methods {
    /// Translates one address as a transaction would be, without one: no event, no interrupt.
    package enum Translate: ControlMethod {
        package static let name = "translate"
        package typealias Parameters = TransactionParameters
        package typealias Result = TranslationOutcome
    }

    /// Translates one address and says what was fetched and decided on the way.
    ///
    /// Caches are neither used nor filled, and no event is recorded.
    package enum Explain: ControlMethod {
        package static let name = "explain"
        package typealias Parameters = TransactionParameters
        package struct Result: Codable, Sendable, Equatable {
            /// In the order in which the SMMU takes them.
            package var steps: [ExplainStep]
            package var outcome: TranslationOutcome

            package init(steps: [ExplainStep], outcome: TranslationOutcome) {
                self.steps = steps
                self.outcome = outcome
            }
        }
    }

    /// Reads on behalf of a device.
    package enum DMARead: ControlMethod {
        package static let name = "dma.read"
        package struct Parameters: Codable, Sendable, Equatable, RequesterParameters {
            package var device: String?
            package var smmu: SMMUSelector?
            package var stream: Hex?
            package var substream: Hex?
            package var iova: Hex
            /// In bytes.
            package var length: Size
            /// No unless given.
            package var privileged: Bool?
            /// An instruction fetch; no unless given.
            package var instruction: Bool?

            package init(
                device: String? = nil,
                smmu: SMMUSelector? = nil,
                stream: Hex? = nil,
                substream: Hex? = nil,
                iova: Hex,
                length: Size,
                privileged: Bool? = nil,
                instruction: Bool? = nil
            ) {
                self.device = device
                self.smmu = smmu
                self.stream = stream
                self.substream = substream
                self.iova = iova
                self.length = length
                self.privileged = privileged
                self.instruction = instruction
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// What was read: all of it, or what came before the fault.
            package var data: ByteString
            package var fault: FaultInfo?

            package init(data: ByteString, fault: FaultInfo? = nil) {
                self.data = data
                self.fault = fault
            }
        }
    }

    /// Writes on behalf of a device.
    package enum DMAWrite: ControlMethod {
        package static let name = "dma.write"
        package struct Parameters: Codable, Sendable, Equatable, RequesterParameters {
            package var device: String?
            package var smmu: SMMUSelector?
            package var stream: Hex?
            package var substream: Hex?
            package var iova: Hex
            package var data: ByteString
            /// No unless given.
            package var privileged: Bool?

            package init(
                device: String? = nil,
                smmu: SMMUSelector? = nil,
                stream: Hex? = nil,
                substream: Hex? = nil,
                iova: Hex,
                data: ByteString,
                privileged: Bool? = nil
            ) {
                self.device = device
                self.smmu = smmu
                self.stream = stream
                self.substream = substream
                self.iova = iova
                self.data = data
                self.privileged = privileged
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// How many bytes were written: all of them, or those before the fault.
            package var bytesTransferred: Size
            package var fault: FaultInfo?

            package init(bytesTransferred: Size, fault: FaultInfo? = nil) {
                self.bytesTransferred = bytesTransferred
                self.fault = fault
            }
        }
    }

    /// Reads on behalf of one device and writes on behalf of another, or of the same one.
    package enum DMACopy: ControlMethod {
        package static let name = "dma.copy"
        package struct Parameters: Codable, Sendable, Equatable {
            package var source: DMAEnd
            package var destination: DMAEnd
            /// In bytes.
            package var length: Size

            package init(source: DMAEnd, destination: DMAEnd, length: Size) {
                self.source = source
                self.destination = destination
                self.length = length
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            package enum Side: String, Codable, Sendable { case source, destination }

            /// How many bytes were written.
            package var bytesTransferred: Size
            package var fault: FaultInfo?
            /// Whose fault it was.
            package var faultSide: Side?

            package init(bytesTransferred: Size, fault: FaultInfo? = nil, faultSide: Side? = nil) {
                self.bytesTransferred = bytesTransferred
                self.fault = fault
                self.faultSide = faultSide
            }
        }
    }
}

/// One end of a copy.
package struct DMAEnd: Codable, Sendable, Equatable, RequesterParameters {
    package var device: String?
    package var smmu: SMMUSelector?
    package var stream: Hex?
    package var substream: Hex?
    package var iova: Hex
    /// No unless given.
    package var privileged: Bool?

    package init(
        device: String? = nil,
        smmu: SMMUSelector? = nil,
        stream: Hex? = nil,
        substream: Hex? = nil,
        iova: Hex,
        privileged: Bool? = nil
    ) {
        self.device = device
        self.smmu = smmu
        self.stream = stream
        self.substream = substream
        self.iova = iova
        self.privileged = privileged
    }
}

/// A transaction as ``Methods/Translate`` and ``Methods/Explain`` take it.
package struct TransactionParameters: Codable, Sendable, Equatable, RequesterParameters {
    /// What the transaction would do.
    package enum Access: String, Codable, Sendable, CaseIterable {
        case read = "r"
        case write = "w"
        /// An instruction fetch.
        case execute = "x"
    }

    package var device: String?
    package var smmu: SMMUSelector?
    package var stream: Hex?
    package var substream: Hex?
    package var iova: Hex
    /// `r` unless given.
    package var access: Access?
    /// No unless given.
    package var privileged: Bool?

    package init(
        device: String? = nil,
        smmu: SMMUSelector? = nil,
        stream: Hex? = nil,
        substream: Hex? = nil,
        iova: Hex,
        access: Access? = nil,
        privileged: Bool? = nil
    ) {
        self.device = device
        self.smmu = smmu
        self.stream = stream
        self.substream = substream
        self.iova = iova
        self.access = access
        self.privileged = privileged
    }
}

/// Where a translation led: `{"translation": {…}}` or `{"fault": {…}}`.
package enum TranslationOutcome: Equatable, Sendable, Codable {
    case translation(TranslationInfo)
    case fault(FaultInfo)

    private enum CodingKeys: String, CodingKey { case translation, fault }

    package init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        if let fault = try container.decodeIfPresent(FaultInfo.self, forKey: .fault) {
            self = .fault(fault)
        } else {
            self = .translation(try container.decode(TranslationInfo.self, forKey: .translation))
        }
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        switch self {
        case .translation(let translation): try container.encode(translation, forKey: .translation)
        case .fault(let fault): try container.encode(fault, forKey: .fault)
        }
    }
}

/// A translation that came through.
package struct TranslationInfo: Codable, Sendable, Equatable {
    /// Physical.
    package var address: Hex
    /// The page or block that the address lies in, in bytes; nil where nothing was translated.
    package var pageSize: Size?
    /// What did it: `stage 1`, `stage 2`, `stage 1 + stage 2`, `bypass`, `no SMMU`.
    package var regime: String
    /// What the page permits to such a transaction, where it was translated.
    package var permissions: Permissions?
    /// Memory type and shareability for a person: `Normal WB, inner shareable`.
    package var attributes: String?

    package init(
        address: Hex,
        pageSize: Size? = nil,
        regime: String,
        permissions: Permissions? = nil,
        attributes: String? = nil
    ) {
        self.address = address
        self.pageSize = pageSize
        self.regime = regime
        self.permissions = permissions
        self.attributes = attributes
    }
}

/// One thing that the SMMU fetched, or one decision that it took, on the way through a translation.
package struct ExplainStep: Codable, Sendable, Equatable {
    /// What kind of thing, for a program: `register`, `l1std`, `ste`, `l1cd`, `cd`, `descriptor`, `decision`.
    package var kind: String
    /// What it is, for a person: `STE of StreamID 0x42`.
    package var title: String
    /// Where it was fetched, physical; nil for a register's decision or a rule's.
    package var address: Hex?
    /// What was there, as 64-bit words.
    package var words: [Hex]
    /// The fields that matter, numbered over the whole structure: bit 64 is bit 0 of the second word.
    package var fields: [FieldInfo]
    /// What follows from it.
    package var note: String?

    package init(
        kind: String,
        title: String,
        address: Hex? = nil,
        words: [Hex] = [],
        fields: [FieldInfo] = [],
        note: String? = nil
    ) {
        self.kind = kind
        self.title = title
        self.address = address
        self.words = words
        self.fields = fields
        self.note = note
    }
}
