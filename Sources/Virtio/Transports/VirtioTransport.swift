// What the owner of a device has of its transport.

/// A device with its registers.
package protocol VirtioTransport: AnyObject, Sendable {
    var device: any VirtioDevice { get }
    /// Why the device set DEVICE_NEEDS_RESET last.
    var lastError: VirtqueueError? { get }
    /// Ends the device's threads and waits for them; its registers still answer.
    func shutdown()
}

extension VirtioTransport {
    /// What the device counted, by name.
    package var statistics: [VirtioStatistic] { device.statistics.list }
}
