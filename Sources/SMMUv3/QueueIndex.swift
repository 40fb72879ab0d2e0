// Indices into circular queues, with their wrap bit.

/// An index as CMDQ_PROD or EVENTQ_CONS hold it: bits [n-1:0] the entry, bit n the wrap flag (IHI 0070, 3.5.1).
struct QueueIndex: Equatable, Sendable {
    /// log2 of the number of entries, 0...19.
    let log2Entries: UInt8
    private(set) var rawValue: UInt32

    /// Takes a register's value; bits above the wrap flag are ignored.
    init(_ register: UInt32, log2Entries: UInt8) {
        self.log2Entries = log2Entries
        rawValue = register & ((2 &<< UInt32(log2Entries)) &- 1)
    }

    /// Which entry.
    var entry: UInt64 { UInt64(rawValue & ((1 &<< UInt32(log2Entries)) &- 1)) }

    /// The index one on; it wraps, and the wrap flag turns over.
    var next: QueueIndex { advanced(by: 1) }

    /// The index so many on, likewise.
    func advanced(by count: UInt32) -> QueueIndex {
        QueueIndex(rawValue &+ count, log2Entries: log2Entries)
    }

    /// How many entries lie between a consumer and this producer; nil where no pair of indices can be so far
    /// apart, which only a wrong register value makes.
    func entries(after consumer: QueueIndex) -> UInt32? {
        let count = (rawValue &- consumer.rawValue) & ((2 &<< UInt32(log2Entries)) &- 1)
        return count <= 1 &<< UInt32(log2Entries) ? count : nil
    }
}
