// A disk (section 5.2): a raw image behind request queues.

import AddressSpace
package import BlockStorage
package import DeviceModel
import Synchronization

/// A virtio block device.
///
/// Each queue has a thread, which serves one request after the other. What a request cannot have is its status
/// (IOERR, UNSUPP), and so is a data buffer that the device cannot reach; a ring, a header or a status byte that it
/// cannot reach ends in DEVICE_NEEDS_RESET.
package final class VirtioBlock: VirtioDevice {
    package let type = VirtioDeviceType.block
    package let features: VirtioFeatures
    package let queueSizesMax: [UInt16]
    package let threadQueues: [[Int]]
    package let statistics = VirtioStatistics()
    let image: RawImage
    /// What GET_ID answers: up to 20 bytes, with zeros behind.
    let serial: [UInt8]
    /// How long a queue's thread looks for the next request before it has itself notified.
    let pollMicroseconds: Int
    /// The driver's features, as it settled on them.
    private let negotiatedFeatures = Atomic<UInt64>(0)
    /// `writeback` of the configuration.
    private let isWriteBack = Atomic(true)

    /// VIRTIO_BLK_ID_BYTES.
    static let serialByteCount = 20

    /// - Parameters:
    ///   - queueCount: 1 to 64.
    ///   - queueSize: A power of two, 4 to 1024.
    ///   - serial: Its first 20 bytes of UTF-8 count.
    ///   - pollMicroseconds: How long a queue's thread looks for the next request before it has itself notified, where
    ///     requests come in bursts; 0 is not at all.
    package init(
        image: RawImage,
        queueCount: Int = 1,
        queueSize: UInt16 = 256,
        serial: String = "",
        pollMicroseconds: Int = 0
    ) {
        precondition((1...64).contains(queueCount), "a disk has 1 to 64 queues")
        precondition((4...1024).contains(queueSize) && queueSize & (queueSize - 1) == 0, "a power of two")
        self.image = image
        self.pollMicroseconds = pollMicroseconds
        queueSizesMax = Array(repeating: queueSize, count: queueCount)
        threadQueues = (0..<queueCount).map { [$0] }
        let name = Array(serial.utf8.prefix(Self.serialByteCount))
        self.serial = name + [UInt8](repeating: 0, count: Self.serialByteCount - name.count)
        var features: VirtioFeatures = [
            .blockSegmentsMax, .blockSize, .blockFlush, .blockTopology, .blockConfigurableCache,
            .blockMultiQueue,
        ]
        if image.isReadOnly {
            features.insert(.blockReadOnly)
        } else {
            features.formUnion([.blockDiscard, .blockWriteZeroes])
        }
        self.features = features
    }

    package var configuration: [UInt8] {
        BlockConfiguration(
            capacity: image.byteCount / RawImage.blockByteCount,
            // Beside the data a chain has a header and a status.
            segmentsMax: UInt32(queueSizesMax[0] - 2),
            queueCount: UInt16(queueSizesMax.count),
            isWriteBack: isWriteBack.load(ordering: .relaxed)
        ).bytes
    }

    package func writeConfiguration(_ value: UInt64, at offset: Int, width: AccessWidth) {
        let negotiated = VirtioFeatures(rawValue: negotiatedFeatures.load(ordering: .relaxed))
        guard offset == BlockConfiguration.writeBackOffset, width == .byte,
            negotiated.contains(.blockConfigurableCache)
        else { return }
        isWriteBack.store(value & 1 != 0, ordering: .relaxed)
    }

    package func negotiated(_ features: VirtioFeatures) {
        negotiatedFeatures.store(features.rawValue, ordering: .relaxed)
    }

    package func wasReset() {
        negotiatedFeatures.store(0, ordering: .relaxed)
        isWriteBack.store(true, ordering: .relaxed)
    }

    /// Whether a write is to be on stable storage when it is completed: the driver turned the cache off, or cannot
    /// flush it.
    var isWriteThrough: Bool {
        let features = VirtioFeatures(rawValue: negotiatedFeatures.load(ordering: .relaxed))
        guard features.contains(.blockConfigurableCache) else { return !features.contains(.blockFlush) }
        return !isWriteBack.load(ordering: .relaxed)
    }

    package func makeWorker(_ thread: Int) -> any VirtioWorker { BlockWorker(self, queue: thread) }
}
