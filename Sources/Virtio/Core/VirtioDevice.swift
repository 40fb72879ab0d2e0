// What a device is, apart from how its driver reaches it.

package import DeviceModel
package import Glibc

/// A virtio device: features, configuration, and what its threads do with buffers.
///
/// It is driven by one transport, which owns its threads. Configuration accesses come from any thread and never
/// wait.
package protocol VirtioDevice: AnyObject, Sendable {
    var type: VirtioDeviceType { get }
    /// The device type's own features; those of rings and transports are added to them.
    var features: VirtioFeatures { get }
    /// The largest size of each queue, a power of two up to 32768: how many queues there are.
    var queueSizesMax: [UInt16] { get }
    /// For each thread, the queues that it serves; every queue is in one.
    var threadQueues: [[Int]] { get }
    /// The device-specific configuration space as it reads now.
    var configuration: [UInt8] { get }
    /// What the device counted since it was made.
    var statistics: VirtioStatistics { get }
    /// The driver wrote `width` bytes at `offset` of the configuration space.
    func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth)
    /// Whether features that were all offered go together.
    func accepts(_ features: VirtioFeatures) -> Bool
    /// The driver settled on these features.
    func negotiated(_ features: VirtioFeatures)
    /// The driver reset the device, or the bus did.
    func wasReset()
    /// Says whom to tell that the configuration changed by itself; called once, before any thread starts.
    func connect(_ listener: @escaping @Sendable () -> Void)
    /// What thread number `thread` runs; called on that thread, which is its only user.
    func makeWorker(_ thread: Int) -> any VirtioWorker
}

extension VirtioDevice {
    package func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth) {}
    package func accepts(_ features: VirtioFeatures) -> Bool { true }
    package func negotiated(_ features: VirtioFeatures) {}
    package func wasReset() {}
    package func connect(_ listener: @escaping @Sendable () -> Void) {}
}

/// The part of a device that moves bytes.
///
/// Of one thread: it has no lock, and may block in system calls on what it serves, but not for ever.
package protocol VirtioWorker: AnyObject {
    /// Host descriptors to wait for, beside the driver's notifications; asked before each wait.
    var pollEntries: [pollfd] { get }
    /// Serves what there is to serve, and returns when there is nothing more to do for now.
    ///
    /// - Parameter queues: By queue number; nil where the driver has not enabled a queue, or this thread does not
    ///   serve it.
    func serve(_ queues: [VirtioQueue?]) throws(VirtqueueError)
}

extension VirtioWorker {
    package var pollEntries: [pollfd] { [] }
}

/// Why a queue cannot go on.
package enum VirtqueueError: Error, Equatable, Sendable {
    /// The driver broke the format; the text says where.
    case malformed(String)
    /// A ring, a descriptor or a buffer could not be accessed.
    case fault(DMAFault)
    /// The queue was reset meanwhile: nothing of it may be touched any more.
    case stopped
}

/// Numbers of a device, counted by its threads and read by anybody.
package struct VirtioStatistic: Hashable, Sendable {
    package var name: String
    package var value: UInt64

    package init(name: String, value: UInt64) {
        self.name = name
        self.value = value
    }
}
