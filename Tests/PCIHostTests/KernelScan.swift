// Finds and sets up what stands below a host bridge, with Linux's register accesses in Linux's order
// (drivers/pci/probe.c and setup-bus.c): another author's idea of what the registers mean.

import DeviceModel
import PCIHost

/// A BAR as its sizing shows it.
struct FoundBAR: Equatable {
    var index: Int
    var byteCount: UInt64
    var is64 = false
    var isPrefetchable = false
    /// On the PCI side; 0 before it is assigned.
    var address: UInt64 = 0
}

/// A function that answered.
struct FoundFunction {
    var bus: UInt8
    var device: UInt8
    var function: UInt8
    /// Device ID and Vendor ID.
    var id: UInt32
    var isBridge: Bool
    var pin: UInt8
    var bars: [FoundBAR]
    var secondary: UInt8 = 0
    var subordinate: UInt8 = 0
    /// Whether a bridge's windows are there as a kernel tries them.
    var hasIO = false
    var hasPrefetchable64 = false
}

struct KernelScan {
    let cpu: CPU
    let ecam: UInt64
    let firstBus: UInt8
    private(set) var found: [FoundFunction] = []

    init(_ board: Board) {
        cpu = board.cpu
        ecam = Board.ecam
        firstBus = board.bridge.buses.lowerBound
        _ = scan(bus: firstBus)
    }

    private func place(_ bus: UInt8, _ device: UInt8, _ function: UInt8) -> UInt64 {
        ecam + UInt64(bus &- firstBus) << 20 + UInt64(device) << 15 + UInt64(function) << 12
    }

    func read(_ width: AccessWidth, _ offset: UInt64, _ it: FoundFunction) -> UInt32 {
        UInt32(truncatingIfNeeded: cpu.read(width, at: place(it.bus, it.device, it.function) + offset))
    }

    func write(_ value: UInt32, _ width: AccessWidth, _ offset: UInt64, _ it: FoundFunction) {
        cpu.write(UInt64(value), width, at: place(it.bus, it.device, it.function) + offset)
    }

    // MARK: Scanning

    /// pci_scan_child_bus: the highest bus number below.
    private mutating func scan(bus: UInt8) -> UInt8 {
        let start = found.count
        for device in 0..<32 as Range<UInt8> { scanSlot(bus, device) }
        let indices = (start..<found.count).filter { found[$0].isBridge && found[$0].bus == bus }
        // Pass 0: what firmware left is not believed; forwarding is off while numbers are given out.
        for index in indices {
            let buses = read(.word, 0x18, found[index])
            write(buses & ~0xFF_FFFF, .word, 0x18, found[index])
        }
        var last = bus
        for index in indices { last = scanBridge(index, last) }
        return last
    }

    /// pci_scan_slot.
    private mutating func scanSlot(_ bus: UInt8, _ device: UInt8) {
        for function in 0..<8 as Range<UInt8> {
            let base = place(bus, device, function)
            let id = UInt32(truncatingIfNeeded: cpu.read(.word, at: base))
            guard ![0xFFFF_FFFF, 0, 0x0000_FFFF, 0xFFFF_0000].contains(id) else {
                if function == 0 { return }
                continue
            }
            let headerType = cpu.read(.byte, at: base + 0x0E)
            var it = FoundFunction(
                bus: bus,
                device: device,
                function: function,
                id: id,
                isBridge: headerType & 0x7F == 1,
                pin: UInt8(cpu.read(.byte, at: base + 0x3D)),
                bars: []
            )
            it.bars = sizeBARs(it)
            found.append(it)
            if function == 0, headerType & 0x80 == 0 { return }
        }
    }

    /// __pci_read_base for each.
    private func sizeBARs(_ it: FoundFunction) -> [FoundBAR] {
        let command = read(.halfword, 0x04, it)
        if command & 3 != 0 { write(command & ~3, .halfword, 0x04, it) }
        defer { if command & 3 != 0 { write(command, .halfword, 0x04, it) } }
        var bars: [FoundBAR] = []
        var index = 0
        func size(_ offset: UInt64) -> UInt32 {
            let old = read(.word, offset, it)
            write(0xFFFF_FFFF, .word, offset, it)
            defer { write(old, .word, offset, it) }
            return read(.word, offset, it)
        }
        while index < (it.isBridge ? 2 : 6) {
            let offset = UInt64(0x10 + 4 * index)
            let low = size(offset)
            defer { index += 1 }
            guard low != 0 else { continue }
            var bar = FoundBAR(index: index, byteCount: 0, isPrefetchable: low & 8 != 0)
            var mask = UInt64(low & ~0xF) | 0xFFFF_FFFF_0000_0000
            if low & 6 == 4 {
                bar.is64 = true
                mask = UInt64(low & ~0xF) | UInt64(size(offset + 4)) << 32
                index += 1
            }
            bar.byteCount = ~mask &+ 1
            bars.append(bar)
        }
        // The expansion ROM.
        if size(it.isBridge ? 0x38 : 0x30) != 0 { bars.append(FoundBAR(index: 6, byteCount: 0)) }
        return bars
    }

    /// pci_scan_bridge_extend, pass 1, and pci_read_bridge_windows.
    private mutating func scanBridge(_ index: Int, _ last: UInt8) -> UInt8 {
        write(0xFFFF, .halfword, 0x06, found[index])
        let old = read(.word, 0x18, found[index])
        let next = last + 1
        // Everything may be below until it is known better.
        let buses = UInt32(found[index].bus) | UInt32(next) << 8 | 0xFF << 16
        write(old & 0xFF00_0000 | buses, .word, 0x18, found[index])
        let highest = scan(bus: next)
        write(UInt32(highest), .byte, 0x1A, found[index])
        found[index].secondary = next
        found[index].subordinate = highest
        write(0xE0F0, .halfword, 0x1C, found[index])
        found[index].hasIO = read(.halfword, 0x1C, found[index]) != 0
        write(0, .halfword, 0x1C, found[index])
        let prefetchable = read(.word, 0x24, found[index])
        if prefetchable & 0xF == 1 {
            let upper = read(.word, 0x28, found[index])
            write(0xFFFF_FFFF, .word, 0x28, found[index])
            found[index].hasPrefetchable64 = read(.word, 0x28, found[index]) == 0xFFFF_FFFF
            write(upper, .word, 0x28, found[index])
        }
        return highest
    }

    // MARK: Resources

    private struct Allocator {
        var next: UInt64
        mutating func take(_ byteCount: UInt64) -> UInt64 {
            align(byteCount)
            defer { next += byteCount }
            return next
        }
        mutating func align(_ byteCount: UInt64) { next = (next + byteCount - 1) & ~(byteCount - 1) }
    }

    /// Gives every BAR an address and every bridge its windows, then enables all (pci_assign_unassigned_bus_resources,
    /// pci_enable_device, pci_set_master).
    mutating func assign() {
        var low = Allocator(next: Board.low.pci)
        var high = Allocator(next: Board.high.pci)
        for index in found.indices where found[index].bus == firstBus {
            guard found[index].isBridge else {
                assign(index, isHigh: false, &low)
                assign(index, isHigh: true, &high)
                continue
            }
            let below = found.indices.filter { found[$0].bus == found[index].secondary }
            low.align(1 << 20)
            high.align(1 << 20)
            let (lowStart, highStart) = (low.next, high.next)
            for child in below { assign(child, isHigh: false, &low) }
            for child in below { assign(child, isHigh: true, &high) }
            low.align(1 << 20)
            high.align(1 << 20)
            setUpBridge(index, lowStart, low.next, highStart, high.next)
        }
        for it in found {
            let command = read(.halfword, 0x04, it)
            write(command | 0x0006, .halfword, 0x04, it)
        }
    }

    /// BARs of a kind; only prefetchable ones may stand in a bridge's 64-bit window.
    private mutating func assign(_ index: Int, isHigh: Bool, _ allocator: inout Allocator) {
        let isBelow = found[index].bus != firstBus
        for place in found[index].bars.indices {
            let bar = found[index].bars[place]
            guard (bar.is64 && (bar.isPrefetchable || !isBelow)) == isHigh else { continue }
            let address = allocator.take(bar.byteCount)
            found[index].bars[place].address = address
            let offset = UInt64(0x10 + 4 * bar.index)
            write(UInt32(truncatingIfNeeded: address), .word, offset, found[index])
            if bar.is64 { write(UInt32(address >> 32), .word, offset + 4, found[index]) }
        }
    }

    /// pci_setup_bridge_mmio and pci_setup_bridge_mmio_pref; limits are exclusive here.
    private func setUpBridge(_ index: Int, _ low: UInt64, _ lowEnd: UInt64, _ high: UInt64, _ highEnd: UInt64)
    {
        func word(_ first: UInt64, _ end: UInt64) -> UInt32 {
            guard first < end else { return 0x0000_FFF0 }
            return UInt32(truncatingIfNeeded: first >> 16 & 0xFFF0)
                | UInt32(truncatingIfNeeded: (end - 1) & 0xFFF0_0000)
        }
        let it = found[index]
        write(word(low, lowEnd), .word, 0x20, it)
        write(0, .word, 0x2C, it)
        write(word(high, highEnd), .word, 0x24, it)
        write(high < highEnd ? UInt32(high >> 32) : 0, .word, 0x28, it)
        write(high < highEnd ? UInt32((highEnd - 1) >> 32) : 0, .word, 0x2C, it)
    }

    func function(_ bus: UInt8, _ device: UInt8, _ function: UInt8) -> FoundFunction? {
        found.first { $0.bus == bus && $0.device == device && $0.function == function }
    }

    /// Where the CPU sees a PCI address.
    static func cpuAddress(_ pci: UInt64) -> UInt64 {
        pci >= Board.high.pci ? pci - Board.high.pci + Board.high.cpu : pci - Board.low.pci + Board.low.cpu
    }
}
