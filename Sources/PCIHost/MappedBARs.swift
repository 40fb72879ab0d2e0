// Which BARs, or parts of them, stand on the physical bus.

import AddressSpace
import PCIFunction
import SystemBus

/// A part of a BAR where a CPU reaches it.
struct VisibleBAR: Sendable {
    let function: PCIFunction
    let bar: Int
    /// Where in the BAR the part begins.
    let start: UInt64
    let cpuRange: AddressRange
}

extension VisibleBAR: Hashable {
    static func == (left: Self, right: Self) -> Bool {
        left.function === right.function && left.bar == right.bar && left.start == right.start
            && left.cpuRange == right.cpuRange
    }

    func hash(into hasher: inout Hasher) {
        hasher.combine(ObjectIdentifier(function))
        hasher.combine(bar)
        hasher.combine(cpuRange)
    }
}

/// What of the BARs is on the bus, and what had to stay out.
struct MappedBARs: Sendable {
    private var mapped: Set<VisibleBAR> = []
    /// Those that overlap what was there before.
    private var shut: Set<VisibleBAR> = []
    private var remarkCount = 0

    /// Software can let BARs overlap as often as it likes: people hear of the first times.
    private static let remarksMax = 64

    /// Changes the bus to what is to be seen.
    ///
    /// Where two overlap, the one that is there stays, else the one that comes first in `wanted`; the other comes in
    /// when that goes.
    ///
    /// - Returns: Whether the bus changed, and what is worth telling.
    mutating func update(to wanted: [VisibleBAR], on bus: SystemBus) -> (hasChanged: Bool, remarks: [String])
    {
        let isWanted = Set(wanted)
        var hasChanged = false
        for part in mapped where !isWanted.contains(part) {
            bus.removeWindow(at: part.cpuRange)
            hasChanged = true
        }
        mapped.formIntersection(isWanted)
        shut.formIntersection(isWanted)
        var remarks: [String] = []
        for part in wanted where !mapped.contains(part) {
            let name = "\(part.function.name) BAR \(part.bar)"
            do throws(AddressConflict) {
                let window = BARWindow(part.function, bar: part.bar, start: part.start)
                try bus.addWindow(window, at: part.cpuRange, name: name)
                mapped.insert(part)
                shut.remove(part)
                hasChanged = true
            } catch {
                guard shut.insert(part).inserted, remarkCount < Self.remarksMax else { continue }
                remarkCount += 1
                remarks.append("\(name) at \(part.cpuRange) is not reached: it overlaps \(error.existing)")
            }
        }
        return (hasChanged, remarks)
    }

    /// Takes all of them off the bus.
    mutating func removeAll(from bus: SystemBus) { _ = update(to: [], on: bus) }
}

extension PCIHostBridge {
    /// What software has made visible: Memory Space Enable of the function, the windows of the root port above it, the
    /// bridge's own.
    func visibleBARs(_ state: State) -> [VisibleBAR] {
        var parts: [VisibleBAR] = []
        for slot in state.slots where !slot.isResetting && slot.function.isMemoryEnabled {
            // Two windows of a port may overlap, and what both let through is there once.
            let above = slot.place.port.map { disjoint($0.forwarding.memory) }
            for bar in slot.function.description.bars {
                let address = slot.function.address(ofBAR: bar.index)
                guard let range = AddressRange(start: address, byteCount: bar.byteCount) else { continue }
                for window in windows {
                    for passed in above ?? [range] {
                        guard let seen = range.intersection(passed)?.intersection(window.pciRange) else {
                            continue
                        }
                        let cpuFirst = seen.first - window.pciAddress + window.cpuRange.first
                        let cpuLast = seen.last - window.pciAddress + window.cpuRange.first
                        guard let cpuRange = AddressRange(first: cpuFirst, last: cpuLast) else { continue }
                        parts.append(
                            VisibleBAR(
                                function: slot.function,
                                bar: bar.index,
                                start: seen.first - address,
                                cpuRange: cpuRange
                            )
                        )
                    }
                }
            }
        }
        return parts
    }

    /// The same addresses as one or two ranges that do not overlap.
    private func disjoint(_ ranges: [AddressRange]) -> [AddressRange] {
        guard ranges.count == 2, ranges[0].overlaps(ranges[1]) else { return ranges }
        let first = min(ranges[0].first, ranges[1].first)
        let last = max(ranges[0].last, ranges[1].last)
        return AddressRange(first: first, last: last).map { [$0] } ?? ranges
    }
}

extension PCIHostWindow {
    /// The PCI addresses, as far as they stay in 64 bits.
    var pciRange: AddressRange {
        let length = cpuRange.last - cpuRange.first
        let (last, isBeyond) = pciAddress.addingReportingOverflow(length)
        return AddressRange(first: pciAddress, last: isBeyond ? .max : last) ?? cpuRange
    }
}

extension AddressRange {
    fileprivate func intersection(_ other: AddressRange) -> AddressRange? {
        AddressRange(first: max(first, other.first), last: min(last, other.last))
    }
}
