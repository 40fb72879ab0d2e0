// A source of entropy (section 5.4): the host's random numbers.

import AddressSpace
import DeviceModel
import Glibc

/// A virtio entropy device: one queue, whose buffers are filled from the host's generator.
package final class VirtioEntropy: VirtioDevice {
    package let type = VirtioDeviceType.entropy
    package let features: VirtioFeatures = []
    package let queueSizesMax: [UInt16] = [64]
    package let threadQueues = [[0]]
    package let configuration: [UInt8] = []
    package let statistics = VirtioStatistics()
    /// What one buffer gets at most: a driver that asks for 4 GiB gets a part, as the specification permits.
    static let byteCountMax = 1 << 16

    package init() {}

    package func makeWorker(_ thread: Int) -> any VirtioWorker { EntropyWorker(statistics) }
}

private final class EntropyWorker: VirtioWorker {
    private let statistics: VirtioStatistics
    private var chain = DescriptorChain()
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 16)

    init(_ statistics: VirtioStatistics) { self.statistics = statistics }

    deinit { buffer.deallocate() }

    func serve(_ queues: [VirtioQueue?]) throws(VirtqueueError) {
        guard let queue = queues[0] else { return }
        try queue.drain(&chain) { (chain) throws(VirtqueueError) in try self.fill(chain, queue) }
    }

    private func fill(_ chain: DescriptorChain, _ queue: VirtioQueue) throws(VirtqueueError) -> Int {
        guard chain.writableByteCount > 0 else { throw queue.malformed("an entropy request without room") }
        let wanted = min(chain.writableByteCount, VirtioEntropy.byteCountMax)
        var done = 0
        while done < wanted {
            // getentropy(3) gives 256 bytes at once.
            let piece = min(256, wanted - done)
            guard getentropy(buffer.baseAddress, piece) == 0 else { break }
            done += try queue.write(UnsafeRawBufferPointer(rebasing: buffer[..<piece]), to: chain, from: done)
        }
        statistics.countRequest(toDriver: done)
        return done
    }
}
