// Coherent memory of one endpoint, by the DMA API.

import AddressSpace
import ControlProtocol
import IOMMU
import Synchronization

/// What the control socket allocated for one endpoint in its group's default domain.
///
/// Lock: `state`, before a domain's own locks.
final class CoherentMemory: Sendable {
    private struct State {
        /// Made for the default domain that the group had then; without buffers it is made again.
        var device: DMADevice?
        var buffers: [UInt64: DMACoherentBuffer] = [:]
    }
    private let name: String
    private let memory: DMAMemory
    private let traits: DMADevice.Traits
    private let log: @Sendable (String) -> Void
    private let state = Mutex(State())

    init(
        _ name: String,
        _ memory: DMAMemory,
        _ traits: DMADevice.Traits,
        log: @escaping @Sendable (String) -> Void
    ) {
        self.name = name
        self.memory = memory
        self.traits = traits
        self.log = log
    }

    var isEmpty: Bool { state.withLock { $0.buffers.isEmpty } }

    /// Every buffer, by its address.
    var buffers: [DMACoherentBuffer] {
        state.withLock { $0.buffers.sorted { $0.key < $1.key }.map(\.value) }
    }

    var byteCount: UInt64 {
        buffers.reduce(0) { $0 &+ $1.pieces.reduce(0) { $0 &+ $1.byteCount } }
    }

    /// dma_alloc_coherent, in `domain`.
    func allocate(_ byteCount: UInt64, mask: UInt64, in domain: IOMMUDomain) throws(ControlError)
        -> DMACoherentBuffer
    {
        guard mask & (mask &+ 1) == 0, mask >= 0xFFF else {
            throw .invalidParameter("mask", "a mask is all ones in a row, 12 bits or more")
        }
        return try state.withLock { (state) throws(ControlError) in
            let device = state.buffers.isEmpty ? makeDevice(domain) : state.device ?? makeDevice(domain)
            state.device = device
            do throws(DMAError) {
                try device.setCoherentMask(mask)
                let buffer = try device.allocateCoherent(byteCount: byteCount)
                state.buffers[buffer.address.rawValue] = buffer
                return buffer
            } catch { throw ControlError(error) }
        }
    }

    private func makeDevice(_ domain: IOMMUDomain) -> DMADevice {
        let log = log
        return DMADevice(name, domain: domain, memory: memory, traits: traits) { _, text in log(text) }
    }

    /// dma_free_coherent.
    func free(_ iova: UInt64) throws(ControlError) {
        try state.withLock { (state) throws(ControlError) in
            guard let buffer = state.buffers[iova], let device = state.device else {
                throw .notMapped(at: iova, "no coherent memory of the device is at \(Hex(iova))")
            }
            state.buffers[iova] = nil
            do throws(DMAError) { try device.freeCoherent(buffer) } catch { throw ControlError(error) }
        }
    }

    /// The device has gone.
    func freeAll() {
        for buffer in buffers { try? free(buffer.address.rawValue) }
    }
}

extension ControlError {
    /// What the DMA API says, as an answer.
    init(_ error: DMAError) {
        switch error {
        case .noMemory(let error), .driver(let error): self.init(error)
        case .maskNotSupported: self = .invalidParameter("mask", "\(error) (\(error.errorName))")
        default: self = .failed("\(error) (\(error.errorName))")
        }
    }
}

extension DMACoherentBuffer {
    /// As the control socket says it.
    func info(_ device: String) -> CoherentBufferInfo {
        CoherentBufferInfo(
            device: device,
            iova: Hex(address.rawValue),
            length: Size(byteCount),
            pieces: pieces.map { RangeInfo(base: Hex($0.physical.rawValue), size: Hex($0.byteCount)) }
        )
    }
}
