// A PCIe function of ours as a vfio-user device.

import DeviceModel
package import PCIFunction
import Synchronization
package import VFIOUserProtocol

/// Offers a ``PCIFunction`` to vfio-user clients: its configuration space, its BARs and its interrupts.
///
/// A client that binds eventfds to MSI or MSI-X vectors decides by that how the function interrupts, as a VMM does
/// that shows its guest capabilities of its own. Where messages go by memory instead, it is the configuration space
/// that decides, and messages are DMA writes: then a guest with an SMMU of ours before the function gets them
/// translated. A VMM keeps the MSI-X table to itself, and the function would never see the guest's messages in it: so
/// that capability is hidden then.
///
/// Lock order: the function's own, which it holds when it sets the pin's level, then this one's, then the
/// connection's interrupts.
package final class PCIFunctionDevice: VFIOUserDevice, PCIFunctionHost {
    package let description: VFIOUserDeviceDescription
    private let function: PCIFunction
    private let messagesByMemory: Bool
    /// Where in configuration space another byte is shown than the function's, to leave a capability out.
    private let hidden: (offset: Int, value: UInt8)?

    private struct State: Sendable {
        var interrupts: (any VFIOUserInterrupts)?
        var isINTxAsserted = false
        /// The vectors that the client bound of MSI and of MSI-X.
        var boundMSI = 0
        var boundMSIX = 0
    }
    private let state = Mutex(State())

    /// Takes the function on; nobody else carries it.
    ///
    /// - Parameter messagesByMemory: Whether messages are DMA writes, whatever eventfds the client binds.
    package init(_ function: PCIFunction, messagesByMemory: Bool = false) {
        self.function = function
        self.messagesByMemory = messagesByMemory
        hidden = messagesByMemory ? Self.linkAround(0x11, in: function) : nil
        description = Self.describe(function, offersMSIX: !messagesByMemory)
        function.connect(self)
    }

    private static func describe(_ function: PCIFunction, offersMSIX: Bool) -> VFIOUserDeviceDescription {
        var regions: [VFIOUserRegionIndex: VFIOUserRegionDescription] = [
            .configuration: VFIOUserRegionDescription(size: UInt64(function.configurationByteCount))
        ]
        for bar in function.description.bars {
            regions[.bar(UInt32(bar.index))] = VFIOUserRegionDescription(size: bar.byteCount)
        }
        var interrupts: [VFIOUserInterruptIndex: VFIOUserInterruptDescription] = [
            .error: VFIOUserInterruptDescription(count: 1), .request: VFIOUserInterruptDescription(count: 1),
        ]
        if function.description.interruptPin != 0 { interrupts[.intx] = .intx }
        for capability in function.description.capabilities {
            switch capability {
            case .msi(let count): interrupts[.msi] = VFIOUserInterruptDescription(count: UInt32(count))
            case .msix(let layout) where offersMSIX:
                interrupts[.msix] = VFIOUserInterruptDescription(count: UInt32(layout.vectorCount))
            default: break
            }
        }
        return .pci(regions: regions, interrupts: interrupts)
    }

    /// Where the pointer to a capability stands, and where the capability points to; nil where there is none.
    private static func linkAround(_ id: UInt8, in function: PCIFunction) -> (offset: Int, value: UInt8)? {
        var link = 0x34
        // No list is longer than there are places for capabilities in it.
        for _ in 0..<48 {
            let place = Int(function.readConfiguration(at: link, byteCount: 1))
            guard place >= 0x40 else { return nil }
            let header = function.readConfiguration(at: place, byteCount: 2)
            if UInt8(truncatingIfNeeded: header) == id {
                return (link, UInt8(truncatingIfNeeded: header >> 8))
            }
            link = place + 1
        }
        return nil
    }

    // MARK: The client's side

    package func clientAttached(_ interrupts: any VFIOUserInterrupts) {
        state.withLock { state in
            state.interrupts = interrupts
            interrupts.setINTx(state.isINTxAsserted)
        }
    }

    package func clientDetached() {
        state.withLock { state in
            state.interrupts = nil
            state.boundMSI = 0
            state.boundMSIX = 0
        }
        if !messagesByMemory { function.setInterruptModeOverride(nil) }
    }

    package func interruptsChanged(_ index: VFIOUserInterruptIndex, boundVectors: Int) {
        guard !messagesByMemory, index == .msi || index == .msix else { return }
        let mode: PCIInterruptMode? = state.withLock { state in
            if index == .msi { state.boundMSI = boundVectors } else { state.boundMSIX = boundVectors }
            if state.boundMSIX > 0 { return .msix }
            return state.boundMSI > 0 ? .msi(vectorCount: state.boundMSI) : nil
        }
        function.setInterruptModeOverride(mode)
    }

    package func reset() { function.reset() }

    package func stopsDMA(
        byWriting buffer: UnsafeRawBufferPointer,
        to region: VFIOUserRegionIndex,
        at offset: UInt64
    ) -> Bool {
        guard region == .configuration else { return false }
        var stops = false
        AccessPieces.forEach(at: offset, byteCount: buffer.count, wholeByteCountMax: 4) {
            place,
            range,
            width in
            let value = UInt32(truncatingIfNeeded: buffer.value(range))
            stops =
                stops || function.initiatesReset(value, at: Int(clamping: place), byteCount: width.rawValue)
        }
        return stops
    }

    // MARK: Accesses

    package func readRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        into buffer: UnsafeMutableRawBufferPointer
    ) throws(VFIOUserError) {
        if region == .configuration { return readConfiguration(at: offset, into: buffer) }
        let bar = Int(region.rawValue)
        AccessPieces.forEach(at: offset, byteCount: buffer.count, wholeByteCountMax: 8) {
            place,
            range,
            width in
            // Who answers nothing is read as a bus reads where nobody is.
            let value = (try? function.readBAR(bar, at: place, width: width)) ?? width.allOnes
            buffer.set(range, to: value)
        }
    }

    package func writeRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        _ buffer: UnsafeRawBufferPointer
    ) throws(VFIOUserError) {
        let isConfiguration = region == .configuration
        AccessPieces.forEach(
            at: offset,
            byteCount: buffer.count,
            wholeByteCountMax: isConfiguration ? 4 : 8
        ) { place, range, width in
            let value = buffer.value(range)
            if isConfiguration {
                function.writeConfiguration(
                    UInt32(truncatingIfNeeded: value),
                    at: Int(clamping: place),
                    byteCount: width.rawValue
                )
            } else {
                // What the register refuses changes nothing, as on a bus.
                try? function.writeBAR(Int(region.rawValue), value, at: place, width: width)
            }
        }
    }

    private func readConfiguration(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        AccessPieces.forEach(at: offset, byteCount: buffer.count, wholeByteCountMax: 4) {
            place,
            range,
            width in
            let value = function.readConfiguration(at: Int(clamping: place), byteCount: width.rawValue)
            buffer.set(range, to: UInt64(value))
        }
        guard let hidden, UInt64(hidden.offset) >= offset,
            UInt64(hidden.offset) - offset < UInt64(buffer.count)
        else { return }
        buffer[hidden.offset - Int(offset)] = hidden.value
    }

    // MARK: The function's side

    package func setINTx(_ isAsserted: Bool, of function: PCIFunction) {
        state.withLock { state in
            state.isINTxAsserted = isAsserted
            state.interrupts?.setINTx(isAsserted)
        }
    }

    package func signal(vector: Int, _ mode: PCIInterruptMode, of function: PCIFunction) {
        let index: VFIOUserInterruptIndex
        switch mode {
        case .intx: return
        case .msi: index = .msi
        case .msix: index = .msix
        }
        state.withLock { $0.interrupts }?.signal(index, vector: vector)
    }

    package func configurationChanged(of function: PCIFunction) {}
}
