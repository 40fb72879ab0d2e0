// The daemon itself: what it is, how it stops, what it counts, what its drivers say.

extension Methods {
    /// What answers on this socket.
    package enum DaemonVersion: ControlMethod {
        package static let name = "daemon.version"
        package typealias Parameters = Nothing
        package struct Result: Codable, Sendable, Equatable {
            /// The program's name: `smmud`.
            package var name: String
            /// The program's version: `0.1.0`.
            package var version: String
            /// The version of the control protocol, ``ControlProtocolVersion/current``.
            package var controlProtocol: Int
            /// The version of the DMA protocol, ``DMAProtocol/version``.
            package var dmaProtocol: Int
            /// The daemon's process.
            package var processID: Int
            /// Where its DMA socket is, if it has one.
            package var dmaSocket: String?

            package init(
                name: String,
                version: String,
                controlProtocol: Int,
                dmaProtocol: Int,
                processID: Int,
                dmaSocket: String? = nil
            ) {
                self.name = name
                self.version = version
                self.controlProtocol = controlProtocol
                self.dmaProtocol = dmaProtocol
                self.processID = processID
                self.dmaSocket = dmaSocket
            }
        }
    }

    /// Stops the daemon once this is answered.
    package enum DaemonShutdown: ControlMethod {
        package static let name = "daemon.shutdown"
        package typealias Parameters = Nothing
        package typealias Result = Nothing
    }

    /// Reads counters.
    package enum Stats: ControlMethod {
        package static let name = "stats"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Only this SMMU's counters.
            package var smmu: SMMUSelector?

            package init(smmu: SMMUSelector? = nil) {
                self.smmu = smmu
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            package var groups: [CounterGroup]

            package init(groups: [CounterGroup]) {
                self.groups = groups
            }
        }
    }

    /// Reads what the daemon's own drivers have logged.
    package enum DriverLog: ControlMethod {
        package static let name = "driver.log"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Only lines with this sequence number or a higher one.
            package var since: Size?

            package init(since: Size? = nil) {
                self.since = since
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            package var lines: [LogLine]
            /// What to give as `since` to go on from here.
            package var next: Size

            package init(lines: [LogLine], next: Size) {
                self.lines = lines
                self.next = next
            }
        }
    }
}

/// The version of the control protocol.
package enum ControlProtocolVersion {
    /// Grows when something that worked would no longer.
    ///
    /// New methods and fields leave it as it is.
    package static let current = 1
}

/// Counters with one owner.
package struct CounterGroup: Codable, Sendable, Equatable {
    /// Whose: an SMMU's path, or the name of an endpoint that has a model.
    package var owner: String
    package var counters: [Counter]

    package init(owner: String, counters: [Counter]) {
        self.owner = owner
        self.counters = counters
    }
}

/// A number that only grows.
package struct Counter: Codable, Sendable, Equatable {
    package var name: String
    package var value: UInt64
    /// What is counted, in a few words.
    package var meaning: String?

    package init(name: String, value: UInt64, meaning: String? = nil) {
        self.name = name
        self.value = value
        self.meaning = meaning
    }
}

/// One line that a driver logged.
package struct LogLine: Codable, Sendable, Equatable {
    package var sequence: Size
    /// Who logged it: an SMMU's path, or `iommu` for what all share.
    package var source: String
    package var text: String
    /// When, in microseconds since the daemon's driver started.
    package var microseconds: Size?

    package init(sequence: Size, source: String, text: String, microseconds: Size? = nil) {
        self.sequence = sequence
        self.source = source
        self.text = text
        self.microseconds = microseconds
    }
}
