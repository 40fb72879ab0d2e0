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
/// translated.
///
/// QEMU keeps an MSI-X capability that it finds to itself, table and all, and the function would never see the guest's
/// messages. It looks for it in one read of the whole configuration space, at its start; what it does not know it
/// leaves to the function, byte by byte. So with messages by memory a read of more than 4 bytes shows a vendor's
/// capability in that place, and the guest's own reads show what is there.
///
/// Lock order: the function's own, which it holds when it sets the pin's level, then this one's, then the
/// connection's interrupts.
package final class PCIFunctionDevice: VFIOUserDevice, PCIFunctionHost {
    package let description: VFIOUserDeviceDescription
    private let function: PCIFunction
    private let messagesByMemory: Bool
    /// Where in configuration space the MSI-X capability is that VMMs are not to know; nil where they may.
    private let disguised: Int?

    private struct State: Sendable {
        var interrupts: (any VFIOUserInterrupts)?
        var isINTxAsserted = false
        /// The vectors that the client bound of MSI and of MSI-X.
        var boundMSI = 0
        var boundMSIX = 0
    }
    private let state = Mutex(State())

    /// The number of ``VFIOUserRegionIndex/configuration``.
    private static var configuration: UInt32 { 7 }

    /// Takes the function on; nobody else carries it.
    ///
    /// - Parameter messagesByMemory: Whether messages are DMA writes, whatever eventfds the client binds.
    package init(_ function: PCIFunction, messagesByMemory: Bool = false) {
        self.function = function
        self.messagesByMemory = messagesByMemory
        disguised = messagesByMemory ? Self.capability(0x11, of: function) : nil
        description = Self.describe(function, offersMSIX: !messagesByMemory)
        function.connect(self)
    }

    private static func describe(_ function: PCIFunction, offersMSIX: Bool) -> VFIOUserDeviceDescription {
        var regions: [VFIOUserRegionIndex: VFIOUserRegionDescription] = [
            .configuration: VFIOUserRegionDescription(size: UInt64(function.configurationByteCount))
        ]
        for bar in function.description.bars {
            regions[.bar(UInt32(bar.index))] = VFIOUserRegionDescription(
                size: bar.byteCount,
                ioEvents: ioEvents(function, bar: bar.index)
            )
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

    /// An eventfd for each address at which writes need no value.
    private static func ioEvents(_ function: PCIFunction, bar: Int) -> [VFIOUserIOEvent] {
        let addresses = function.description.notificationAddresses.filter { $0.barIndex == bar }
        return addresses.enumerated().map { index, address in
            VFIOUserIOEvent(
                offset: address.offset,
                size: UInt64(address.byteCount),
                descriptorIndex: UInt32(index)
            )
        }
    }

    /// Where a capability stands; nil where there is none.
    private static func capability(_ id: UInt8, of function: PCIFunction) -> Int? {
        var link = 0x34
        // No list is longer than there are places for capabilities in it.
        for _ in 0..<48 {
            let place = Int(function.readConfiguration(at: link, byteCount: 1))
            guard place >= 0x40 else { return nil }
            if function.readConfiguration(at: place, byteCount: 1) == UInt32(id) { return place }
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
        guard region.rawValue == Self.configuration else { return false }
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
        // By its number: comparing what is of another module is a call.
        if region.rawValue == Self.configuration { return readConfiguration(at: offset, into: buffer) }
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
        let isConfiguration = region.rawValue == Self.configuration
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
        guard buffer.count > 4, let disguised else { return }
        // Vendor Specific, and the length that such a capability has behind its header.
        for (place, byte) in [(disguised, 0x09), (disguised + 2, 12)] as [(Int, UInt8)]
        where UInt64(place) >= offset && UInt64(place) - offset < UInt64(buffer.count) {
            buffer[place - Int(offset)] = byte
        }
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
