// Descriptors that came over a stream and that no request has claimed yet.

import CLinux
import Glibc
import GuestMemory

/// Keeps received descriptors in order, and closes those that nobody claims.
///
/// The kernel delivers a descriptor with the bytes of the message that it was sent with. A request may claim it
/// while any of these bytes are not consumed; then it is a stray one.
struct DescriptorQueue: ~Copyable {
    private var entries: [(descriptor: CInt, end: UInt64)] = []

    /// How many may wait.
    ///
    /// Nobody has use for more, and they count against the process's limit.
    private static let capacity = 4 * Int(SMMUD_MAX_FDS)

    init() {}

    deinit { for entry in entries { close(entry.descriptor) } }

    /// Adds descriptors that came with bytes up to the position `end` of the stream.
    mutating func append(_ descriptors: UnsafeBufferPointer<CInt>, end: UInt64) {
        for descriptor in descriptors {
            if entries.count < Self.capacity {
                entries.append((descriptor, end))
            } else {
                close(descriptor)
            }
        }
    }

    /// Takes the oldest.
    mutating func removeFirst() -> OwnedDescriptor? {
        entries.isEmpty ? nil : OwnedDescriptor(adopting: entries.removeFirst().descriptor)
    }

    /// Closes those whose bytes are all consumed: the stream's, up to `position`.
    mutating func closeStrays(upTo position: UInt64) {
        guard !entries.isEmpty else { return }
        while let first = entries.first, first.end <= position {
            close(first.descriptor)
            entries.removeFirst()
        }
    }
}
