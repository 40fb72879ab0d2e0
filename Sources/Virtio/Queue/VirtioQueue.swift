// A queue during one activation, for the thread that serves it.

import AddressSpace
package import DeviceModel

/// A virtqueue from the moment that the driver enabled it until it is reset.
///
/// Of one thread.
package final class VirtioQueue {
    /// Its number.
    package let index: Int
    /// What was negotiated.
    package let features: VirtioFeatures
    let activation: UInt64
    let port: GatedPort
    private var ring: any Ring
    private let interrupt: () -> Void
    /// Whether it is this queue that threw an error.
    private(set) var hasFailed = false

    init(
        index: Int,
        _ configuration: QueueConfiguration,
        _ features: VirtioFeatures,
        activation: UInt64,
        port: GatedPort,
        interrupt: @escaping () -> Void
    ) {
        self.index = index
        self.features = features
        self.activation = activation
        self.port = port
        self.interrupt = interrupt
        ring =
            features.contains(.packedRing)
            ? PackedRing(configuration, features) : SplitRing(configuration, features)
    }

    /// A queue without a transport before it, which interrupts nobody; nil where it cannot be one of its format.
    package convenience init?(
        unattached index: Int,
        size: UInt16,
        descriptors: UInt64,
        driverArea: UInt64,
        deviceArea: UInt64,
        _ features: VirtioFeatures,
        port: any DMAPort
    ) {
        let configuration = QueueConfiguration(
            size: size,
            descriptors: descriptors,
            driverArea: driverArea,
            deviceArea: deviceArea
        )
        guard configuration.defect(isPacked: features.contains(.packedRing)) == nil else { return nil }
        let gate = DMAGate()
        gate.open(1)
        let gated = GatedPort(port, gate, 1)
        self.init(index: index, configuration, features, activation: 1, port: gated) {}
    }

    /// Takes the next chain; false where the driver has made none available.
    package func next(_ chain: inout DescriptorChain) throws(VirtqueueError) -> Bool {
        do throws(VirtqueueError) { return try ring.next(&chain, port) } catch { throw noting(error) }
    }

    /// Gives a chain back of which the device wrote `writtenByteCount` bytes, from its first writable byte on.
    ///
    /// The driver sees it after ``publish()``, or before.
    package func complete(_ chain: DescriptorChain, writtenByteCount: Int) throws(VirtqueueError) {
        stage(chain, writtenByteCount: writtenByteCount)
        try publishIfFull()
    }

    /// The same, but the driver sees it after ``publish()`` or ``publishIfFull()`` only: for chains that belong
    /// together.
    func stage(_ chain: DescriptorChain, writtenByteCount: Int) {
        ring.stage(chain, length: UInt32(clamping: writtenByteCount))
    }

    /// Shows the driver what was completed where it is enough for a batch.
    func publishIfFull() throws(VirtqueueError) {
        if ring.isBatchFull { try publish() }
    }

    /// Shows the driver what was completed, and interrupts it if it wants that.
    package func publish() throws(VirtqueueError) {
        do throws(VirtqueueError) {
            if try ring.publish(port) { port.interrupt(interrupt) }
        } catch {
            throw noting(error)
        }
    }

    /// Asks the driver not to notify.
    package func disarm() throws(VirtqueueError) {
        do throws(VirtqueueError) { try ring.disarm(port) } catch { throw noting(error) }
    }

    /// Asks the driver to notify of the next chain.
    ///
    /// - Returns: Whether there is one already: then look again.
    package func arm() throws(VirtqueueError) -> Bool {
        do throws(VirtqueueError) { return try ring.arm(port) } catch { throw noting(error) }
    }

    /// The error for a buffer that is not as its device type wants it.
    package func malformed(_ what: String) -> VirtqueueError { noting(.malformed(what)) }

    /// The error for a buffer that cannot be reached.
    package func failed(_ fault: DMAFault) -> VirtqueueError { noting(port.asQueueError(fault)) }

    private func noting(_ error: VirtqueueError) -> VirtqueueError {
        hasFailed = true
        return error
    }

    /// Takes every chain that there is, has `body` serve it, and arms the queue when there is none left.
    ///
    /// - Parameters:
    ///   - idle: Called when there is none left, before the driver is asked to notify; returns whether there is one
    ///     again.
    ///   - body: Returns how many bytes it wrote.
    package func drain(
        _ chain: inout DescriptorChain,
        idle: () throws(VirtqueueError) -> Bool = { () throws(VirtqueueError) in false },
        _ body: (DescriptorChain) throws(VirtqueueError) -> Int
    ) throws(VirtqueueError) {
        repeat {
            try disarm()
            repeat {
                while try next(&chain) { try complete(chain, writtenByteCount: try body(chain)) }
                try publish()
            } while try idle()
        } while try arm()
    }

    /// Whether the driver has made a chain available that ``next(_:)`` would take.
    package func hasNext() throws(VirtqueueError) -> Bool {
        do throws(VirtqueueError) { return try ring.hasNext(port) } catch { throw noting(error) }
    }

    /// Reads up to `count` bytes of a chain's readable part into an array.
    package func read(_ chain: DescriptorChain, from offset: Int, count: Int)
        throws(VirtqueueError) -> [UInt8]
    {
        var bytes = [UInt8](repeating: 0, count: max(0, min(count, chain.readableByteCount - offset)))
        let ranges = chain.readable
        var fault: DMAFault?
        bytes.withUnsafeMutableBytes { buffer in
            do throws(DMAFault) {
                _ = try port.gather(ranges, from: offset, into: buffer)
            } catch {
                fault = error
            }
        }
        if let fault { throw failed(fault) }
        return bytes
    }

    /// Reads the first 16 bytes of a chain's readable part as two little-endian words.
    func readWords(_ chain: DescriptorChain) throws(VirtqueueError) -> (UInt64, UInt64) {
        var words: (UInt64, UInt64) = (0, 0)
        var fault: DMAFault?
        withUnsafeMutableBytes(of: &words) { buffer in
            do throws(DMAFault) {
                _ = try port.gather(chain.readable, into: buffer)
            } catch {
                fault = error
            }
        }
        if let fault { throw failed(fault) }
        return (UInt64(littleEndian: words.0), UInt64(littleEndian: words.1))
    }

    /// Writes bytes to a chain's writable part; returns how many fitted.
    package func write(_ bytes: UnsafeRawBufferPointer, to chain: DescriptorChain, from offset: Int)
        throws(VirtqueueError) -> Int
    {
        do throws(DMAFault) {
            return try port.scatter(bytes, to: chain.writable, from: offset)
        } catch {
            throw failed(error)
        }
    }
}
