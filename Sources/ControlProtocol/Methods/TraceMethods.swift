// What the daemon's own drivers sent to the command queues, and hearing of that and of their logs.

extension Methods {
    /// Lists the last commands that were sent to command queues.
    package enum DriverTrace: ControlMethod {
        package static let name = "driver.trace"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Which SMMU's; may be left out on a board with one.
            package var smmu: SMMUSelector?
            /// Only commands with this number or a higher one.
            package var since: Size?
            /// At most so many, the latest ones; all that are kept unless given.
            package var limit: Size?

            package init(smmu: SMMUSelector? = nil, since: Size? = nil, limit: Size? = nil) {
                self.smmu = smmu
                self.since = since
                self.limit = limit
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// The oldest first.
            package var commands: [CommandInfo]
            /// What to give as `since` to go on from here.
            package var next: Size

            package init(commands: [CommandInfo], next: Size) {
                self.commands = commands
                self.next = next
            }
        }
    }

    /// Counts the commands that were sent since the drivers started.
    package enum DriverCounts: ControlMethod {
        package static let name = "driver.counts"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Only this SMMU's.
            package var smmu: SMMUSelector?

            package init(smmu: SMMUSelector? = nil) { self.smmu = smmu }
        }
        package struct Result: Codable, Sendable, Equatable {
            package var smmus: [SMMUCommandCounts]

            package init(smmus: [SMMUCommandCounts]) { self.smmus = smmus }
        }
    }

    /// Has each command sent as a notification, ``CommandNotification``, from now on.
    package enum DriverTraceSubscribe: ControlMethod {
        package static let name = "driver.trace.subscribe"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Only this SMMU's; replaces an earlier subscription of the same connection.
            package var smmu: SMMUSelector?

            package init(smmu: SMMUSelector? = nil) { self.smmu = smmu }
        }
        package typealias Result = Nothing
    }

    /// Ends the subscription of this connection.
    package enum DriverTraceUnsubscribe: ControlMethod {
        package static let name = "driver.trace.unsubscribe"
        package typealias Parameters = Nothing
        package typealias Result = Nothing
    }

    /// Has each line of the drivers' logs sent as a notification, ``LogNotification``, from now on.
    package enum DriverLogSubscribe: ControlMethod {
        package static let name = "driver.log.subscribe"
        package typealias Parameters = Nothing
        package struct Result: Codable, Sendable, Equatable {
            /// The number of the first line that may come.
            package var next: Size

            package init(next: Size) { self.next = next }
        }
    }

    /// Ends the subscription of this connection.
    package enum DriverLogUnsubscribe: ControlMethod {
        package static let name = "driver.log.unsubscribe"
        package typealias Parameters = Nothing
        package typealias Result = Nothing
    }
}

/// A command that a driver sent, decoded.
package struct CommandInfo: Codable, Sendable, Equatable {
    /// Counts the SMMU's commands from 0 since its driver started.
    package var sequence: Size
    /// The SMMU's path.
    package var smmu: String
    package var opcode: Hex
    /// `CMD_TLBI_NH_VA`.
    package var name: String
    /// The command's fields, numbered over its 128 bits.
    package var fields: [FieldInfo]
    /// The command: two 64-bit words.
    package var words: [Hex]

    package init(
        sequence: Size,
        smmu: String,
        opcode: Hex,
        name: String,
        fields: [FieldInfo] = [],
        words: [Hex]
    ) {
        self.sequence = sequence
        self.smmu = smmu
        self.opcode = opcode
        self.name = name
        self.fields = fields
        self.words = words
    }
}

/// How many commands of one opcode there were.
package struct OpcodeCount: Codable, Sendable, Equatable {
    package var opcode: Hex
    /// `CMD_SYNC`.
    package var name: String
    package var count: UInt64

    package init(opcode: Hex, name: String, count: UInt64) {
        self.opcode = opcode
        self.name = name
        self.count = count
    }
}

/// What one SMMU was sent.
package struct SMMUCommandCounts: Codable, Sendable, Equatable {
    /// The SMMU's path.
    package var smmu: String
    /// In ascending order; what was never sent is left out.
    package var commands: [OpcodeCount]
    /// Of any opcode.
    package var total: UInt64

    package init(smmu: String, commands: [OpcodeCount], total: UInt64) {
        self.smmu = smmu
        self.commands = commands
        self.total = total
    }
}

/// The notification `command`.
package struct CommandNotification: ControlNotification {
    package static let name = "command"
    package var command: CommandInfo
    /// How many notifications this connection lost just before this one because it did not read in time.
    package var dropped: Size?

    package init(command: CommandInfo, dropped: Size? = nil) {
        self.command = command
        self.dropped = dropped
    }
}

/// The notification `log`.
package struct LogNotification: ControlNotification {
    package static let name = "log"
    package var line: LogLine
    /// How many notifications this connection lost just before this one because it did not read in time.
    package var dropped: Size?

    package init(line: LogLine, dropped: Size? = nil) {
        self.line = line
        self.dropped = dropped
    }
}
