// Events of SMMUs and signals of interrupt lines: what happened, and hearing of it.

extension Methods {
    /// Lists events that SMMUs raised, the latest last.
    package enum EventsList: ControlMethod {
        package static let name = "events.list"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Only this SMMU's.
            package var smmu: SMMUSelector?
            /// Only those with this sequence number or a higher one.
            package var since: Size?
            /// At most so many, the latest ones; 100 unless given.
            package var limit: Size?

            package init(smmu: SMMUSelector? = nil, since: Size? = nil, limit: Size? = nil) {
                self.smmu = smmu
                self.since = since
                self.limit = limit
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            package var events: [EventInfo]
            /// What to give as `since` to go on from here.
            package var next: Size

            package init(events: [EventInfo], next: Size) {
                self.events = events
                self.next = next
            }
        }
    }

    /// Has each event sent as a notification, ``EventNotification``, from now on.
    package enum EventsSubscribe: ControlMethod {
        package static let name = "events.subscribe"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Only this SMMU's.
            ///
            /// Another subscription of the same connection takes the place of the first.
            package var smmu: SMMUSelector?

            package init(smmu: SMMUSelector? = nil) {
                self.smmu = smmu
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// The sequence number of the next event: those before it are to be had with `events.list`.
            package var next: Size

            package init(next: Size) {
                self.next = next
            }
        }
    }

    /// Ends the subscription of this connection.
    package enum EventsUnsubscribe: ControlMethod {
        package static let name = "events.unsubscribe"
        package typealias Parameters = Nothing
        package typealias Result = Nothing
    }

    /// Lists interrupt lines and what they did so far.
    package enum InterruptsList: ControlMethod {
        package static let name = "interrupts.list"
        package typealias Parameters = Nothing
        package struct Result: Codable, Sendable, Equatable {
            package var interrupts: [InterruptInfo]

            package init(interrupts: [InterruptInfo]) {
                self.interrupts = interrupts
            }
        }
    }

    /// Has each signal sent as a notification, ``InterruptNotification``, from now on.
    package enum InterruptsSubscribe: ControlMethod {
        package static let name = "interrupts.subscribe"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Line numbers; all lines unless given.
            ///
            /// Another subscription of the same connection adds to it.
            package var lines: [Int]?

            package init(lines: [Int]? = nil) {
                self.lines = lines
            }
        }
        package typealias Result = Nothing
    }

    /// Ends subscriptions of this connection.
    package enum InterruptsUnsubscribe: ControlMethod {
        package static let name = "interrupts.unsubscribe"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Line numbers; all lines unless given.
            package var lines: [Int]?

            package init(lines: [Int]? = nil) {
                self.lines = lines
            }
        }
        package typealias Result = Nothing
    }
}

/// An event record, decoded.
package struct EventInfo: Codable, Sendable, Equatable {
    /// Counts all events of the machine from 0.
    package var sequence: Size
    /// The SMMU's path.
    package var smmu: String
    /// The event number: `0x10`.
    package var number: Hex
    /// `F_TRANSLATION`.
    package var name: String
    package var stream: Hex?
    /// Nil where the transaction had none (SSV = 0).
    package var substream: Hex?
    /// The endpoint with this StreamID, where there is one.
    package var device: String?
    /// The address as the device drove it, for events that have one.
    package var address: Hex?
    /// The record's fields, numbered over its 256 bits.
    package var fields: [FieldInfo]
    /// The record: four 64-bit words.
    package var words: [Hex]
    /// Whether the event queue took it.
    package var recorded: Bool
    /// What became of it: `recorded`, `overflow`, `not-writable`, `aborted` or `not-recorded`.
    ///
    /// An event that the configuration does not want recorded (CD.R == 0, CR2.RECINVSID == 0) is listed all the
    /// same, as `not-recorded`.
    package var disposition: String?
    /// Why it happened, in a sentence: `the level-3 descriptor is invalid`.
    package var reason: String?

    package init(
        sequence: Size,
        smmu: String,
        number: Hex,
        name: String,
        stream: Hex? = nil,
        substream: Hex? = nil,
        device: String? = nil,
        address: Hex? = nil,
        fields: [FieldInfo] = [],
        words: [Hex],
        recorded: Bool,
        disposition: String? = nil,
        reason: String? = nil
    ) {
        self.sequence = sequence
        self.smmu = smmu
        self.number = number
        self.name = name
        self.stream = stream
        self.substream = substream
        self.device = device
        self.address = address
        self.fields = fields
        self.words = words
        self.recorded = recorded
        self.disposition = disposition
        self.reason = reason
    }
}

/// The notification `event`.
package struct EventNotification: ControlNotification {
    package static let name = "event"
    package var event: EventInfo
    /// How many notifications this connection lost just before this one because it did not read in time.
    package var dropped: Size?

    package init(event: EventInfo, dropped: Size? = nil) {
        self.event = event
        self.dropped = dropped
    }
}

/// The notification `interrupt`.
package struct InterruptNotification: ControlNotification {
    package static let name = "interrupt"
    /// What happened on the line.
    package enum Signal: String, Codable, Sendable {
        /// One edge.
        case pulse
        case asserted
        case deasserted
    }

    package var line: Int
    /// What the device calls it: `eventq`.
    package var label: String
    /// The path of the node that drives it.
    package var device: String
    package var controller: String
    package var specifier: [UInt32]
    package var intid: UInt32?
    package var signal: Signal
    /// How many such signals the line has had, with this one: pulses, or assertions.
    package var count: Size
    /// How many notifications this connection lost just before this one because it did not read in time.
    package var dropped: Size?

    package init(
        line: Int,
        label: String,
        device: String,
        controller: String,
        specifier: [UInt32],
        intid: UInt32? = nil,
        signal: Signal,
        count: Size,
        dropped: Size? = nil
    ) {
        self.line = line
        self.label = label
        self.device = device
        self.controller = controller
        self.specifier = specifier
        self.intid = intid
        self.signal = signal
        self.count = count
        self.dropped = dropped
    }
}
