// What the driver tells people: its log in the kernel's words, and the events that it took from the queue.

package import SMMUv3Spec
import Synchronization

/// How much a line of the log matters; the kernel's names.
package enum LogLevel: Int, Sendable, Comparable {
    case debug, info, notice, warning, error

    package static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
}

/// One line of the driver's log.
package struct LogLine: Equatable, Sendable {
    /// Counts from 0 without gaps; what is missing has been overwritten.
    package let sequence: UInt64
    package let level: LogLevel
    package let text: String
}

/// One record that the driver took from the event queue.
package struct DriverEvent: Equatable, Sendable {
    /// Counts from 0 without gaps; what is missing has been overwritten.
    package let sequence: UInt64
    package let record: EventRecord
}

/// The last lines and events of one SMMU's driver.
///
/// Its lock is a leaf. What devices provoke cannot fill memory: each ring keeps its newest entries alone.
package final class DriverLog: Sendable {
    private let lines: Mutex<Ring<LogLine>>
    private let records: Mutex<Ring<DriverEvent>>
    /// Before every line, as the kernel's `dev_*` print it: `arm-smmu-v3 9050000.iommu: `.
    private let prefix: String
    private let sink: (@Sendable (String) -> Void)?

    /// An empty log.
    ///
    /// - Parameters:
    ///   - name: The SMMU's device name.
    ///   - capacity: How many lines, and how many events, are kept.
    ///   - sink: Hears of every line.
    package init(name: String, capacity: Int = 1024, sink: (@Sendable (String) -> Void)? = nil) {
        self.sink = sink
        prefix = "arm-smmu-v3 \(name): "
        lines = Mutex(Ring(capacity: capacity))
        records = Mutex(Ring(capacity: capacity))
    }

    /// Adds a line.
    func note(_ level: LogLevel, _ text: String) {
        lines.withLock { lines in
            lines.append { LogLine(sequence: $0, level: level, text: prefix + text) }
        }
        sink?(prefix + text)
    }

    /// Adds an event, and its lines as the kernel prints it.
    func note(_ record: EventRecord) {
        records.withLock { records in records.append { DriverEvent(sequence: $0, record: record) } }
        note(.info, "event 0x\(hex(record.number.rawValue, digits: 2)) received:")
        for index in 0..<4 { note(.info, "\t0x\(hex(record.words[index], digits: 16))") }
    }

    /// The lines from `sequence` on that are still there.
    package func lines(since sequence: UInt64 = 0) -> [LogLine] {
        lines.withLock { $0.elements(since: sequence) }
    }

    /// The events from `sequence` on that are still there.
    package func events(since sequence: UInt64 = 0) -> [DriverEvent] {
        records.withLock { $0.elements(since: sequence) }
    }

    /// How many events there have been: the sequence number that the next one gets.
    package var eventCount: UInt64 { records.withLock { $0.nextSequence } }
}

/// The newest elements, numbered.
private struct Ring<Element: Sendable>: Sendable {
    private let capacity: Int
    private var elements: [Element] = []
    private(set) var nextSequence: UInt64 = 0

    init(capacity: Int) { self.capacity = max(1, capacity) }

    mutating func append(_ make: (UInt64) -> Element) {
        let element = make(nextSequence)
        if elements.count < capacity {
            elements.append(element)
        } else {
            elements[Int(truncatingIfNeeded: nextSequence % UInt64(capacity))] = element
        }
        nextSequence &+= 1
    }

    func elements(since sequence: UInt64) -> [Element] {
        let oldest = nextSequence &- UInt64(elements.count)
        let first = max(sequence, oldest)
        guard first < nextSequence else { return [] }
        return (first..<nextSequence).map { elements[Int(truncatingIfNeeded: $0 % UInt64(capacity))] }
    }
}
