// A network device (section 5.1): one pair of queues, frames without offloads.

import AddressSpace
import Glibc
import Synchronization

extension VirtioFeatures {
    /// VIRTIO_NET_F_MTU.
    package static let networkMTU = Self(bit: 3)
    /// VIRTIO_NET_F_MAC.
    package static let networkMAC = Self(bit: 5)
    /// VIRTIO_NET_F_MRG_RXBUF.
    package static let networkMergeableBuffers = Self(bit: 15)
    /// VIRTIO_NET_F_STATUS.
    package static let networkStatus = Self(bit: 16)
}

/// An Ethernet address.
package struct MACAddress: Hashable, Sendable {
    package let bytes: [UInt8]

    /// Nil unless there are 6 bytes and they are no group's address.
    package init?(_ bytes: [UInt8]) {
        guard bytes.count == 6, bytes[0] & 1 == 0 else { return nil }
        self.bytes = bytes
    }

    /// From `52:54:00:12:34:56`.
    package init?(_ text: String) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        let bytes = parts.compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
        guard bytes.count == parts.count else { return nil }
        self.init(bytes)
    }
}

/// A virtio network device.
///
/// It has the features MAC, MTU, STATUS and MRG_RXBUF: no checksum or segmentation offload, no control queue, one pair
/// of queues. Frames that the other side cannot take are dropped and counted.
package final class VirtioNet: VirtioDevice {
    package let type = VirtioDeviceType.network
    package let features: VirtioFeatures = [
        .networkMTU, .networkMAC, .networkMergeableBuffers, .networkStatus,
    ]
    /// receiveq1, then transmitq1.
    package let queueSizesMax: [UInt16] = [256, 256]
    package let threadQueues = [[0], [1]]
    package let statistics = VirtioStatistics()
    package let address: MACAddress
    /// The largest packet behind the Ethernet header, in bytes.
    package let mtu: UInt16
    let backend: any NetBackend

    private struct State {
        var isLinkUp = true
        var listener: (@Sendable () -> Void)?
    }
    private let state = Mutex(State())

    /// struct virtio_net_hdr with num_buffers, in bytes.
    static let headerByteCount = 12
    /// An Ethernet header with a VLAN tag, in bytes.
    static let ethernetByteCount = 18

    /// - Parameter mtu: 68 to 65517.
    package init(backend: any NetBackend, address: MACAddress, mtu: UInt16 = 1500) {
        precondition((68...65517).contains(mtu), "an MTU is 68 to 65517")
        self.backend = backend
        self.address = address
        self.mtu = mtu
    }

    /// struct virtio_net_config: mac (6), status (2), max_virtqueue_pairs (2), mtu (2).
    package var configuration: [UInt8] {
        address.bytes + [isLinkUp ? 1 : 0, 0, 1, 0, UInt8(truncatingIfNeeded: mtu), UInt8(mtu >> 8)]
    }

    package var isLinkUp: Bool { state.withLock { $0.isLinkUp } }

    /// Plugs the cable in or pulls it; the driver is told.
    package func setLink(isUp: Bool) {
        let listener = state.withLock { state -> (@Sendable () -> Void)? in
            guard state.isLinkUp != isUp else { return nil }
            state.isLinkUp = isUp
            return state.listener
        }
        listener?()
    }

    package func connect(_ listener: @escaping @Sendable () -> Void) {
        state.withLock { $0.listener = listener }
    }

    /// The longest frame that passes, in bytes.
    var frameByteCountMax: Int { Int(mtu) + Self.ethernetByteCount }

    package func makeWorker(_ thread: Int) -> any VirtioWorker {
        thread == 0 ? NetReceiver(self) : NetTransmitter(self)
    }
}
