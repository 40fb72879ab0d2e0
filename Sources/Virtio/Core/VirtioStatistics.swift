// What a device counts.

import Synchronization

/// Counters of one device; each is only ever added to.
package final class VirtioStatistics: Sendable {
    /// Requests, frames or buffers that were completed.
    private let requests = Atomic<UInt64>(0)
    /// Bytes that the device read from the driver's buffers.
    private let bytesFromDriver = Atomic<UInt64>(0)
    private let bytesToDriver = Atomic<UInt64>(0)
    /// Requests that were answered with an error.
    private let errors = Atomic<UInt64>(0)
    /// Frames or bytes for which there was no room on the other side.
    private let drops = Atomic<UInt64>(0)
    private let dmaFaults = Atomic<UInt64>(0)
    /// Times that the driver broke the format of a ring.
    private let malformed = Atomic<UInt64>(0)
    private let notifications = Atomic<UInt64>(0)
    private let interrupts = Atomic<UInt64>(0)
    private let resets = Atomic<UInt64>(0)

    package init() {}

    func countRequest(fromDriver: Int = 0, toDriver: Int = 0) {
        requests.wrappingAdd(1, ordering: .relaxed)
        if fromDriver > 0 { bytesFromDriver.wrappingAdd(UInt64(fromDriver), ordering: .relaxed) }
        if toDriver > 0 { bytesToDriver.wrappingAdd(UInt64(toDriver), ordering: .relaxed) }
    }

    func countError() { errors.wrappingAdd(1, ordering: .relaxed) }
    func countDrop() { drops.wrappingAdd(1, ordering: .relaxed) }
    func countFault() { dmaFaults.wrappingAdd(1, ordering: .relaxed) }
    func countMalformed() { malformed.wrappingAdd(1, ordering: .relaxed) }
    func countNotification() { notifications.wrappingAdd(1, ordering: .relaxed) }
    func countInterrupt() { interrupts.wrappingAdd(1, ordering: .relaxed) }
    func countReset() { resets.wrappingAdd(1, ordering: .relaxed) }

    /// All of them, by name, in an order that does not change.
    package var list: [VirtioStatistic] {
        func entry(_ name: String, _ counter: borrowing Atomic<UInt64>) -> VirtioStatistic {
            VirtioStatistic(name: name, value: counter.load(ordering: .relaxed))
        }
        return [
            entry("requests", requests), entry("bytes-from-driver", bytesFromDriver),
            entry("bytes-to-driver", bytesToDriver), entry("errors", errors), entry("drops", drops),
            entry("dma-faults", dmaFaults), entry("malformed", malformed),
            entry("notifications", notifications), entry("interrupts", interrupts), entry("resets", resets),
        ]
    }

    /// The counter of this name.
    package subscript(name: String) -> UInt64 { list.first { $0.name == name }?.value ?? 0 }
}
