// Frames between a network device's queues and the host.

import AddressSpace
import DeviceModel
import Glibc

/// Takes frames from the driver.
final class NetTransmitter: VirtioWorker {
    private let device: VirtioNet
    private var chain = DescriptorChain()
    private var frame: UnsafeMutableRawBufferPointer
    /// A frame that the host could not take yet is in `frame`, and its chain in `chain`.
    private var waiting: (byteCount: Int, activation: UInt64)?

    init(_ device: VirtioNet) {
        self.device = device
        frame = .allocate(byteCount: device.frameByteCountMax, alignment: 16)
    }

    deinit { frame.deallocate() }

    var pollEntries: [pollfd] { device.backend.pollEntries(reading: false, writing: waiting != nil) }

    func serve(_ queues: [VirtioQueue?]) throws(VirtqueueError) {
        device.backend.prepare()
        guard let queue = queues[1] else {
            waiting = nil
            return
        }
        if let waiting, waiting.activation == queue.activation {
            guard try finish(waiting.byteCount, queue) else { return }
        }
        waiting = nil
        repeat {
            try queue.disarm()
            while try queue.next(&chain) {
                guard let count = try takeFrame(queue) else {
                    device.statistics.countDrop()
                    try queue.complete(chain, writtenByteCount: 0)
                    continue
                }
                guard try finish(count, queue) else {
                    waiting = (count, queue.activation)
                    return try queue.publish()
                }
            }
            try queue.publish()
        } while try queue.arm()
    }

    /// Reads a frame out of its chain; nil where there is none that could be sent.
    private func takeFrame(_ queue: VirtioQueue) throws(VirtqueueError) -> Int? {
        let count = chain.readableByteCount - VirtioNet.headerByteCount
        guard count > 0, count <= frame.count, device.isLinkUp else { return nil }
        do throws(DMAFault) {
            // The header asks for nothing: no offload was negotiated.
            let target = UnsafeMutableRawBufferPointer(rebasing: frame[..<count])
            return try queue.port.gather(chain.readable, from: VirtioNet.headerByteCount, into: target)
        } catch {
            throw queue.failed(error)
        }
    }

    /// Sends what is in `frame`; false where the host takes it later.
    private func finish(_ count: Int, _ queue: VirtioQueue) throws(VirtqueueError) -> Bool {
        switch device.backend.send(UnsafeRawBufferPointer(rebasing: frame[..<count])) {
        case .sent: device.statistics.countRequest(fromDriver: count)
        case .dropped: device.statistics.countDrop()
        case .later: return false
        }
        try queue.complete(chain, writtenByteCount: 0)
        return true
    }
}

/// Gives frames to the driver.
final class NetReceiver: VirtioWorker {
    private let device: VirtioNet
    private let frame: UnsafeMutableRawBufferPointer
    /// How many bytes of a frame wait in `frame` for buffers.
    private var frameByteCount = 0
    /// Chains that were taken for a frame, in their order.
    private var chains: [DescriptorChain] = []
    private var roomByteCount = 0
    private var activation: UInt64 = 0
    private var isFrameWanted = false

    init(_ device: VirtioNet) {
        self.device = device
        // One byte more than may pass shows a frame that is too long.
        frame = .allocate(byteCount: VirtioNet.headerByteCount + device.frameByteCountMax + 1, alignment: 16)
    }

    deinit { frame.deallocate() }

    var pollEntries: [pollfd] { device.backend.pollEntries(reading: isFrameWanted, writing: false) }

    func serve(_ queues: [VirtioQueue?]) throws(VirtqueueError) {
        device.backend.prepare()
        isFrameWanted = false
        guard let queue = queues[0] else {
            release()
            return
        }
        if activation != queue.activation {
            release()
            activation = queue.activation
        }
        repeat {
            try queue.disarm()
            while takeFrame() {
                guard try deliver(queue) else { break }
            }
            try queue.publish()
            // While there is no frame nobody waits for buffers.
            guard frameByteCount > 0 else { return }
        } while try queue.arm()
    }

    private func release() {
        chains.removeAll(keepingCapacity: true)
        roomByteCount = 0
    }

    /// Whether there is a frame to be delivered.
    private func takeFrame() -> Bool {
        let start = VirtioNet.headerByteCount
        while frameByteCount == 0 {
            guard let count = device.backend.receive(UnsafeMutableRawBufferPointer(rebasing: frame[start...]))
            else {
                isFrameWanted = true
                return false
            }
            guard count > 0, count <= device.frameByteCountMax, device.isLinkUp else {
                device.statistics.countDrop()
                continue
            }
            frameByteCount = count
        }
        return true
    }

    /// Writes the frame to one chain, or to as many as it takes where they may be merged; false where they are too few.
    private func deliver(_ queue: VirtioQueue) throws(VirtqueueError) -> Bool {
        let total = VirtioNet.headerByteCount + frameByteCount
        let isMergeable = queue.features.contains(.networkMergeableBuffers)
        while roomByteCount < total {
            guard isMergeable || chains.isEmpty else {
                // The one buffer is too small for this frame; a smaller frame may fit.
                device.statistics.countDrop()
                frameByteCount = 0
                return true
            }
            // More buffers than the queue has are the same ones again.
            guard chains.count < Int(device.queueSizesMax[0]) else {
                throw queue.malformed("receive buffers too small for a frame")
            }
            var chain = DescriptorChain()
            guard try queue.next(&chain) else { return false }
            guard chain.writableByteCount >= VirtioNet.headerByteCount else {
                throw queue.malformed("a receive buffer that has no room for a header")
            }
            roomByteCount += chain.writableByteCount
            chains.append(chain)
        }
        writeHeader()
        var done = 0
        for chain in chains {
            let piece = min(chain.writableByteCount, total - done)
            let bytes = UnsafeRawBufferPointer(rebasing: frame[done..<done + piece])
            _ = try queue.write(bytes, to: chain, from: 0)
            queue.stage(chain, writtenByteCount: piece)
            done += piece
        }
        device.statistics.countRequest(toDriver: frameByteCount)
        frameByteCount = 0
        release()
        // All of a frame's buffers are shown at once; several frames may be.
        try queue.publishIfFull()
        return true
    }

    /// struct virtio_net_hdr: all zero but num_buffers, at offset 10.
    private func writeHeader() {
        for index in 0..<VirtioNet.headerByteCount { frame[index] = 0 }
        frame[10] = UInt8(truncatingIfNeeded: chains.count)
        frame[11] = UInt8(truncatingIfNeeded: chains.count >> 8)
    }
}
