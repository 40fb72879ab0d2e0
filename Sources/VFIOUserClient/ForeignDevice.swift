// A device of another program as a PCIe function of ours.

package import AddressSpace
package import DeviceModel
package import PCIFunction
import Synchronization

/// Takes the device of a vfio-user server in: as the model of a ``PCIFunction``, which whoever carries functions
/// carries as any other.
///
/// The function keeps the header, MSI and MSI-X here, as VFIO does, and asks the server for all else. BARs are the
/// server's: by message, and where it shares them by memory. Interrupts come by eventfds and go as the function's own.
/// The device's DMA goes through a port of the function, translated: see ``Window``.
///
/// Accesses to registers wait for the server, at most as long as its client does; a server that is gone reads as
/// all 1s.
///
/// Locks, in order: `wiring`, held while the server is asked to bind interrupts; `pin`; the function's; then leaves.
package final class ForeignDevice: PCIFunctionModel, PCIForeignConfiguration {
    /// How the device reaches memory.
    package enum Window: Sendable {
        /// By asking for each access, within these addresses: all of it is translated, and faults are seen.
        ///
        /// Some servers take no range of more than 8 TiB.
        case messages([AddressRange])
        /// By memory that is shared as long as the machine says that it is mapped. What is not, the server refuses
        /// by itself, and no SMMU sees it.
        case mapped
    }

    package struct Options: Sendable {
        package var window: Window
        /// Whether to use what the server shares of its BARs, instead of asking for each access.
        package var mapsBARs = true
        /// Hears of what goes wrong, for a log; called on any thread.
        package var report: @Sendable (String) -> Void

        package init(
            window: Window = .messages([AddressRange(first: 0, last: (8 << 40) - 1)].compactMap { $0 }),
            report: @escaping @Sendable (String) -> Void = { _ in }
        ) {
            self.window = window
            self.report = report
        }
    }

    /// What the server said of its interrupts.
    struct VectorCounts: Sendable {
        var intx = 0
        var msi = 0
        var msix = 0
        var error = 0
    }

    package let client: VFIOUserClient
    let options: Options
    let vectorCounts: VectorCounts
    let canReset: Bool
    let wiring = Mutex(Wiring())
    let thread: EventThread
    /// What events mean, by what the thread calls them: a leaf, so that a signal never waits for the wiring.
    let signals = Mutex<[UInt64: Signal]>([:])
    /// Held while the pin's level changes, with the function's lock inside: a signal and a look at the device at once
    /// must not leave a level that nobody takes away.
    let pin = Mutex(())
    /// Set when INTx came, until the guest has looked at the device.
    let isINTxPending = Atomic(false)
    private let areas: [Int: [VFIOUserRegionMapping]]
    private let owner = Mutex(Owner())
    private let window = Mutex<MappedWindow?>(nil)
    private let dma: any ForeignDMA

    private struct Owner { weak var function: PCIFunction? }

    /// Takes the device of a server in.
    ///
    /// The client is the device's from now on, and closed where this throws.
    ///
    /// - Parameters:
    ///   - name: What people call the function.
    ///   - dma: The memory that the device sees.
    /// - Returns: The function, whose model is a ``ForeignDevice``; call ``detach()`` of it when it is done with.
    /// - Throws: ``VFIOUserClientError``, also where it is no PCI function that can be carried.
    package static func attach(
        _ client: VFIOUserClient,
        name: String,
        dma: any ForeignDMA,
        options: Options = Options()
    ) throws(VFIOUserClientError) -> PCIFunction {
        let info = try client.deviceInfo()
        guard info.isPCI, info.regionCount > VFIOUserClient.RegionIndex.configuration.rawValue else {
            throw .unsupported("a PCI function")
        }
        let device = try ForeignDevice(client, info, dma, options)
        do throws(VFIOUserClientError) {
            let function = try device.makeFunction(name)
            device.owner.withLock { $0.function = function }
            try device.openWindow(function)
            device.updateWiring()
            return function
        } catch {
            device.detach()
            throw error
        }
    }

    private init(
        _ client: VFIOUserClient,
        _ info: VFIOUserClient.DeviceInfo,
        _ dma: any ForeignDMA,
        _ options: Options
    ) throws(VFIOUserClientError) {
        self.client = client
        self.dma = dma
        self.options = options
        canReset = info.canReset
        var counts = VectorCounts()
        if info.interruptKindCount > 0 { counts.intx = try client.interrupts(.intx).vectorCount }
        if info.interruptKindCount > 1 { counts.msi = try client.interrupts(.msi).vectorCount }
        if info.interruptKindCount > 2 { counts.msix = try client.interrupts(.msix).vectorCount }
        if info.interruptKindCount > 3 { counts.error = try client.interrupts(.error).vectorCount }
        vectorCounts = counts
        var areas: [Int: [VFIOUserRegionMapping]] = [:]
        if options.mapsBARs {
            for bar in 0..<6 {
                do throws(VFIOUserClientError) {
                    areas[bar] = try client.mapRegion(.bar(bar))
                } catch {
                    // The same goes by message: slower, and no less right.
                    guard client.ending == nil else { throw error }
                    options.report("BAR \(bar) is not mapped: \(error)")
                }
            }
        }
        self.areas = areas.filter { !$0.value.isEmpty }
        // The thread outlives a device that is let go of without a word, and must not hold it.
        let relay = Relay()
        thread = try EventThread { key in relay.device.withLock { $0.device }?.signalled(key) }
        relay.device.withLock { $0.device = self }
    }

    private final class Relay: Sendable {
        struct Weak { weak var device: ForeignDevice? }
        let device = Mutex(Weak())
    }

    private func makeFunction(_ name: String) throws(VFIOUserClientError) -> PCIFunction {
        var barByteCounts: [UInt64] = []
        for bar in 0..<6 { barByteCounts.append(try client.region(.bar(bar)).byteCount) }
        let space = try client.region(.configuration)
        let byteCount = space.byteCount >= 4096 ? 4096 : 256
        let bytes = try client.read(byteCount, of: .configuration, at: 0)
        let image: PCIFunctionImage
        do throws(PCIImageError) {
            // A kind without eventfds is the server's own to deliver, by DMA.
            image = try PCIFunctionImage(
                bytes,
                barByteCounts: barByteCounts,
                keepsMSI: vectorCounts.msi > 0,
                keepsMSIX: vectorCounts.msix > 0,
                resetsHere: canReset
            )
        } catch {
            throw .unsupported("a function that can be carried: \(error)")
        }
        return PCIFunction(name: name, image: image, model: self, configuration: self) { [dma] in
            dma.makePort()
        }
    }

    private func openWindow(_ function: PCIFunction) throws(VFIOUserClientError) {
        let handler = TranslatedMemory(function.makePort())
        switch options.window {
        case .messages(let ranges):
            for range in ranges { try client.map(handler, byteCount: range.byteCount, at: range.first) }
        case .mapped:
            let mapped = MappedWindow(client, servedBy: handler, report: options.report)
            window.withLock { $0 = mapped }
            dma.follow(mapped)
        }
    }

    /// Ends the connection and all threads; the function answers with all 1s from then on.
    package func detach() {
        if let mapped = window.withLock({ $0.take() }) { dma.unfollow(mapped) }
        client.close()
        thread.stop()
    }

    deinit {
        if let mapped = window.withLock({ $0.take() }) { dma.unfollow(mapped) }
        client.abandon(reason: "its device is gone")
        thread.stop()
    }

    var function: PCIFunction? { owner.withLock { $0.function } }

    // MARK: Registers

    package func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
        -> UInt64
    {
        defer { guestLooked() }
        do throws(VFIOUserClientError) {
            if let (area, place) = mappedArea(index, offset, width) {
                let value = try area.load(width, at: place)
                guard !area.isLost else { throw .local("BAR \(index) is lost") }
                return value
            }
            switch width {
            case .byte: return UInt64(try client.read(UInt8.self, of: .bar(index), at: offset))
            case .halfword: return UInt64(try client.read(UInt16.self, of: .bar(index), at: offset))
            case .word: return UInt64(try client.read(UInt32.self, of: .bar(index), at: offset))
            case .doubleword: return try client.read(UInt64.self, of: .bar(index), at: offset)
            }
        } catch {
            throw .noSuchRegister
        }
    }

    package func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        defer { guestLooked() }
        do throws(VFIOUserClientError) {
            if let (area, place) = mappedArea(index, offset, width) {
                return try area.store(value, width, at: place)
            }
            let bytes = withUnsafeBytes(of: value.littleEndian) { Array($0.prefix(width.rawValue)) }
            // Posted, as writes to PCIe memory are; but not where a later one could overtake it through memory.
            try client.write(bytes, to: .bar(index), at: offset, isPosted: areas.isEmpty)
        } catch {
            throw .noSuchRegister
        }
    }

    /// The mapped area that an access lies in, and where; nil where it is to go by message.
    private func mappedArea(_ index: Int, _ offset: UInt64, _ width: AccessWidth)
        -> (VFIOUserRegionMapping, UInt64)?
    {
        guard let areas = areas[index] else { return nil }
        let count = UInt64(width.rawValue)
        for area in areas where offset >= area.area.offset && offset - area.area.offset < area.byteCount {
            let place = offset - area.area.offset
            guard area.byteCount - place >= count, (area.area.offset | offset) % count == 0 else {
                return nil
            }
            return (area, place)
        }
        return nil
    }

    // MARK: Configuration space

    package func readForeignConfiguration(at offset: Int, byteCount: Int) -> UInt32? {
        guard let bytes = try? client.read(byteCount, of: .configuration, at: UInt64(offset)) else {
            return nil
        }
        return bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }

    package func writeForeignConfiguration(_ value: UInt32, at offset: Int, byteCount: Int) {
        let bytes = withUnsafeBytes(of: value.littleEndian) { Array($0.prefix(byteCount)) }
        do throws(VFIOUserClientError) {
            try client.write(bytes, to: .configuration, at: UInt64(offset))
        } catch {
            // Some servers refuse writes to what is read-only: hardware ignores them, and so do we.
            guard case .failed = error else { return options.report("configuration space: \(error)") }
        }
    }

    // MARK: Reset

    package func reset() {
        wiring.withLock { unwire(&$0) }
        do throws(VFIOUserClientError) {
            // Bus mastering off, before anything else: also for a device that cannot be reset.
            try client.write(UInt16(0), to: .configuration, at: 4)
            if canReset { try client.reset() }
        } catch {
            options.report("reset: \(error)")
        }
        guard let function, function.isInterruptModeOverridden else {
            // The function forgets MSI and MSI-X when this returns: what is left is the pin.
            return wiring.withLock { wire(to: .intx, &$0) }
        }
        updateWiring()
    }
}

extension VFIOUserRegionMapping {
    fileprivate func load(_ width: AccessWidth, at offset: UInt64) throws(VFIOUserClientError) -> UInt64 {
        switch width {
        case .byte: UInt64(try load(at: offset, as: UInt8.self))
        case .halfword: UInt64(try load(at: offset, as: UInt16.self))
        case .word: UInt64(try load(at: offset, as: UInt32.self))
        case .doubleword: try load(at: offset, as: UInt64.self)
        }
    }

    fileprivate func store(_ value: UInt64, _ width: AccessWidth, at offset: UInt64)
        throws(VFIOUserClientError)
    {
        switch width {
        case .byte: try store(UInt8(truncatingIfNeeded: value), at: offset)
        case .halfword: try store(UInt16(truncatingIfNeeded: value), at: offset)
        case .word: try store(UInt32(truncatingIfNeeded: value), at: offset)
        case .doubleword: try store(value, at: offset)
        }
    }
}
