// The methods of the control socket, by name, and what several of them share.

/// The methods of the control socket.
///
/// Each is a type with the name, the parameters and the result.
package enum Methods {
    /// Every method's name, in alphabetical order.
    package static let names: [String] = all.map { $0.name }.sorted()

    /// Every method.
    package static let all: [any ControlMethod.Type] = [
        DaemonVersion.self, DaemonShutdown.self, MachineDescribe.self,
        RegisterRead.self, RegisterWrite.self, RegisterList.self,
        BusLoad.self, BusStore.self,
        MemoryRead.self, MemoryWrite.self, MemoryFill.self, MemoryAllocate.self, MemoryFree.self,
        IOMMUMap.self, IOMMUUnmap.self, IOMMUMappings.self, IOMMUAttach.self,
        SVAList.self, SVABind.self, SVAUnbind.self,
        Translate.self, Explain.self,
        DMARead.self, DMAWrite.self, DMACopy.self,
        EventsList.self, EventsSubscribe.self, EventsUnsubscribe.self,
        InterruptsList.self, InterruptsSubscribe.self, InterruptsUnsubscribe.self,
        IOMMUAllocate.self, IOMMUFree.self,
        IOMMUGroups.self, IOMMUGroupType.self,
        IOMMUDomains.self, IOMMUDomainMake.self, IOMMUDomainFree.self, IOMMUCompare.self,
        DeviceAdd.self, DeviceRemove.self, DeviceBind.self, DeviceUnbind.self,
        Stats.self, DriverLog.self, DriverLogSubscribe.self, DriverLogUnsubscribe.self,
        DriverTrace.self, DriverCounts.self, DriverTraceSubscribe.self, DriverTraceUnsubscribe.self,
    ]
}

/// Which SMMU: its node's path, or its place in ``BoardInfo/smmus``.
package enum SMMUSelector: Hashable, Sendable, Codable {
    case path(String)
    case index(Int)

    package init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let index = try? container.decode(Int.self) {
            self = .index(index)
        } else if let path = try? container.decode(String.self) {
            self = .path(path)
        } else {
            throw DecodingError.dataCorruptedError(
                in: container,
                debugDescription: "expected an SMMU's path or its index"
            )
        }
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .path(let path): try container.encode(path)
        case .index(let index): try container.encode(index)
        }
    }
}

extension SMMUSelector: CustomStringConvertible {
    package var description: String {
        switch self {
        case .path(let path): path
        case .index(let index): String(index)
        }
    }
}

/// Parameters that say on whose behalf a transaction goes out: `device`, or `stream` with `smmu`.
package protocol RequesterParameters {
    /// An endpoint's name or one of its aliases.
    var device: String? { get }
    /// Which SMMU `stream` belongs to; may be left out on a board with one.
    var smmu: SMMUSelector? { get }
    /// A StreamID: which of the device's, or alone with `smmu`.
    var stream: Hex? { get }
    /// A SubstreamID; without one the transaction has none (SSV = 0).
    var substream: Hex? { get }
}

/// On whose behalf a transaction goes out.
package enum Requester: Equatable, Sendable {
    /// An endpoint by name; with a StreamID where it is to be another one than the endpoint's first.
    case device(String, stream: UInt32?)
    /// Any StreamID of an SMMU; of the only one where none is named.
    case stream(UInt32, smmu: SMMUSelector?)
}

extension RequesterParameters {
    /// - Throws: An invalid-parameters error where neither or both are given, or a StreamID is no 32-bit number.
    package func requester() throws(ControlError) -> Requester {
        let streamID = try stream.map { (stream) throws(ControlError) in
            guard let streamID = UInt32(exactly: stream.value) else {
                throw ControlError.invalidParameter("stream", "a StreamID has 32 bits; \(stream) has more")
            }
            return streamID
        }
        switch (device, streamID) {
        case (let device?, let streamID):
            guard smmu == nil else {
                throw .invalidParameter(
                    "smmu",
                    "a device says by itself which SMMU it is behind; leave it out"
                )
            }
            return .device(device, stream: streamID)
        case (nil, let streamID?):
            return .stream(streamID, smmu: smmu)
        case (nil, nil):
            throw .invalidParameter("device", "it is missing; name a device, or give \"stream\" and \"smmu\"")
        }
    }

    /// The SubstreamID, 20 bits at most.
    ///
    /// - Throws: An invalid-parameters error where it is wider.
    package func substreamID() throws(ControlError) -> UInt32? {
        guard let substream else { return nil }
        guard substream.value < 1 << 20 else {
            throw .invalidParameter("substream", "a SubstreamID has 20 bits; \(substream) has more")
        }
        return UInt32(truncatingIfNeeded: substream.value)
    }
}

/// One bit field of a word, decoded for a person.
package struct FieldInfo: Codable, Sendable, Equatable {
    /// The architecture's name: `OAS`.
    package var name: String
    /// Its highest bit, as the architecture numbers it.
    package var high: Int
    /// Its lowest bit.
    package var low: Int
    package var value: Hex
    /// What this value stands for, where it is not the number itself: `48 bits`.
    package var meaning: String?

    package init(name: String, high: Int, low: Int, value: Hex, meaning: String? = nil) {
        self.name = name
        self.high = high
        self.low = low
        self.value = value
        self.meaning = meaning
    }
}

/// Why a transaction did not take place, or not all of it: what the device sees, and what the event says.
package struct FaultInfo: Codable, Sendable, Equatable {
    /// How it ended.
    package enum Kind: String, Codable, Sendable {
        /// The SMMU terminated it and has an event number for the reason.
        case event
        /// The SMMU aborted it without an event: SMMU_GBPA.ABORT, or STE.Config = 0b0xx.
        case aborted
        /// It came through to an address at which nobody answers.
        case bus
    }

    package var kind: Kind
    /// The event number: `0x10`.
    ///
    /// Only for ``Kind/event``.
    package var event: Hex?
    /// The event's name: `F_TRANSLATION`.
    ///
    /// Only for ``Kind/event``.
    package var name: String?
    /// The first byte that was not transferred, as the device drove it.
    package var address: Hex
    /// The physical address at which nobody answered.
    ///
    /// Only for ``Kind/bus``.
    package var physicalAddress: Hex?
    /// How many bytes before it were transferred.
    package var bytesTransferred: Size
    /// A sentence for a person.
    package var message: String

    package init(
        kind: Kind,
        event: Hex? = nil,
        name: String? = nil,
        address: Hex,
        physicalAddress: Hex? = nil,
        bytesTransferred: Size,
        message: String
    ) {
        self.kind = kind
        self.event = event
        self.name = name
        self.address = address
        self.physicalAddress = physicalAddress
        self.bytesTransferred = bytesTransferred
        self.message = message
    }
}

extension Methods {
    /// How many bytes of data one call reads or writes at most: as base64 they fit a line with room to spare.
    package static let dataByteCountMax: UInt64 = 8 << 20

    /// The length that a call asks for, as an array can have it.
    ///
    /// - Throws: An invalid-parameters error that names `parameter`, where it is more than
    ///   ``dataByteCountMax``.
    package static func dataByteCount(
        _ length: Size,
        parameter: String = "length"
    ) throws(ControlError) -> Int {
        guard length.value <= dataByteCountMax else {
            throw .invalidParameter(
                parameter,
                "\(length) bytes in one call: at most \(dataByteCountMax); use several, or the DMA socket"
            )
        }
        return Int(length.value)
    }
}
