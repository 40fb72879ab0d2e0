// What a command queue has been sent: counts by opcode, the last commands, and who hears of each.

package import SMMUv3Spec
import Synchronization

/// One command that went into a queue.
package struct SentCommand: Hashable, Sendable {
    /// Counts the queue's commands from 0 without gaps; what is missing has been overwritten.
    package let sequence: UInt64
    package let command: Command

    package init(sequence: UInt64, command: Command) {
        self.sequence = sequence
        self.command = command
    }
}

/// How many commands of each opcode a queue has been sent; CMD_SYNCs are among them.
package struct CommandCounts: Equatable, Sendable {
    /// By opcode.
    private var counts: [UInt64]

    /// Nothing was sent.
    package init() { counts = [UInt64](repeating: 0, count: 256) }

    package subscript(opcode: Opcode) -> UInt64 { counts[Int(opcode.rawValue)] }

    /// Commands of any opcode.
    package var total: UInt64 { counts.reduce(0, &+) }

    /// Every opcode that was sent, in ascending order.
    package var opcodes: [(opcode: Opcode, count: UInt64)] {
        counts.indices.compactMap { index in
            counts[index] > 0 ? (Opcode(rawValue: UInt8(index)), counts[index]) : nil
        }
    }

    /// What was sent between two looks at one queue.
    package static func - (later: Self, earlier: Self) -> Self {
        var difference = Self()
        for index in difference.counts.indices {
            difference.counts[index] = later.counts[index] &- earlier.counts[index]
        }
        return difference
    }

    mutating func add(_ opcode: Opcode) { counts[Int(opcode.rawValue)] &+= 1 }
}

/// The counts, and the newest commands as they lie in memory.
///
/// Nothing is decoded and nothing allocated for a command, so that it costs little when nobody looks.
struct CommandHistory: Sendable {
    /// How many commands are kept.
    static let capacity = 1024

    private(set) var counts = CommandCounts()
    private var ring: [Command] = []
    private(set) var next: UInt64 = 0

    init() { ring.reserveCapacity(Self.capacity) }

    /// - Returns: The command's number.
    @discardableResult
    mutating func note(_ command: Command) -> UInt64 {
        counts.add(command.opcode)
        if ring.count < Self.capacity {
            ring.append(command)
        } else {
            ring[Int(truncatingIfNeeded: next % UInt64(Self.capacity))] = command
        }
        defer { next &+= 1 }
        return next
    }

    func commands(since sequence: UInt64) -> [SentCommand] {
        let first = max(sequence, next &- UInt64(ring.count))
        guard first < next else { return [] }
        return (first..<next).map { number in
            SentCommand(
                sequence: number,
                command: ring[Int(truncatingIfNeeded: number % UInt64(Self.capacity))]
            )
        }
    }
}

/// Hears of every command as it goes into the queue.
///
/// A leaf: it is called with the queue's lock held, notes the command and returns.
package typealias CommandListener = @Sendable (SentCommand) -> Void

extension SMMUv3Driver {
    /// How many commands of each opcode were sent since the driver started.
    package var commandCounts: CommandCounts { device.commands.history.counts }

    /// The commands from `sequence` on that are still kept, the oldest first, and the number of the next one.
    package func sentCommands(since sequence: UInt64 = 0) -> (commands: [SentCommand], next: UInt64) {
        let history = device.commands.history
        return (history.commands(since: sequence), history.next)
    }

    /// Has `listener` hear of every command from now on; nil ends that.
    ///
    /// - Returns: The number of the first command that it hears of.
    @discardableResult
    package func setCommandListener(_ listener: CommandListener?) -> UInt64 {
        device.commands.setListener(listener)
    }
}
