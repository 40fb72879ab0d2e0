// What a device of another program sees of the machine's memory.

import AddressSpace
import DeviceModel
import GuestMemory
import Synchronization
import SystemBus
import VFIOUserClient

/// A foreign device's view of memory: by message through the endpoint's port, or as shared memory that follows what
/// the machine's own driver maps for the endpoint.
///
/// For the driver such a device is what a device with a translation cache of its own (ATS) is: an unmap invalidates
/// the SMMU's TLB, waits for the CMD_SYNC, and then has the device let go of what it holds, before it returns.
///
/// Lock: `state`, after the endpoint's book and before the bus's, held while the device's server is asked. No
/// translation and no register access takes it.
final class ForeignMemory: ForeignDMA {
    /// Addresses of the device that lead to physical addresses, whatever is there.
    struct Translation: Sendable {
        /// As the device addresses them.
        var range: AddressRange
        /// Where the first byte leads.
        var physical: UInt64
        var isWritable: Bool
    }

    private struct State {
        var translations = AddressMap<Translation>()
        var follower: (any ForeignDMAFollower)?
    }

    private let maker: @Sendable () -> any DMAPort
    private let bus: SystemBus
    /// What a stream that bypasses translation reaches: all that the SMMU before it can put out.
    private let reach: AddressRange
    private let state: Mutex<State>

    /// - Parameters:
    ///   - bypasses: Whether no SMMU stands before the device, so that its addresses are physical addresses for good.
    ///   - reach: What the device reaches where it is not translated.
    ///   - makePort: A new view of memory with the endpoint's identity.
    init(
        on bus: SystemBus,
        bypasses: Bool,
        reach: AddressRange,
        makePort: @escaping @Sendable () -> any DMAPort
    ) {
        self.bus = bus
        self.reach = reach
        maker = makePort
        var state = State()
        if bypasses { Self.insert(Self.identity(reach), &state) }
        self.state = Mutex(state)
    }

    private static func identity(_ range: AddressRange) -> Translation {
        Translation(range: range, physical: range.first, isWritable: true)
    }

    // MARK: The device's side

    func makePort() -> any DMAPort { maker() }

    func follow(_ follower: any ForeignDMAFollower) {
        state.withLock { state in
            state.follower = follower
            for entry in state.translations.entries { tell(entry.value, follower) }
        }
    }

    func unfollow(_ follower: any ForeignDMAFollower) {
        state.withLock { state in if state.follower === follower { state.follower = nil } }
    }

    // MARK: The driver's side

    /// The device's addresses are translated so from now on.
    func mapped(_ translation: Translation) {
        state.withLock { state in
            // The page table refuses a mapping over another, so what would be there was not told of as gone.
            remove(translation.range, &state)
            Self.insert(translation, &state)
            tell(translation, state.follower)
        }
    }

    /// The device is let through untranslated from now on.
    func bypassed() { mapped(Self.identity(reach)) }

    /// The driver's unmap is done, its CMD_SYNC included: when this returns the device's server has let go too.
    func unmapped(_ range: AddressRange) { state.withLock { remove(range, &$0) } }

    /// Nothing of before is translated any more.
    func unmappedAll() {
        state.withLock { state in
            state.translations = AddressMap()
            if let all = AddressRange(first: 0, last: .max) { state.follower?.invalidated(all) }
        }
    }

    /// RAM came to these physical addresses, or went from them: what the device has of them follows.
    func memoryChanged(at physical: AddressRange) {
        state.withLock { state in
            for entry in state.translations.entries {
                guard let part = entry.value.part(leadingTo: physical) else { continue }
                state.follower?.invalidated(part.range)
                tell(part, state.follower)
            }
        }
    }

    /// Shares what of a translation leads to RAM.
    ///
    /// Registers, and memory that clients keep to themselves, have no descriptor that could be passed.
    private func tell(_ translation: Translation, _ follower: (any ForeignDMAFollower)?) {
        guard let follower else { return }
        for slice in bus.ramSlices(in: translation.target) {
            let first = translation.range.first &+ (slice.range.first - translation.physical)
            guard let range = AddressRange(start: first, byteCount: slice.range.byteCount) else { continue }
            follower.mapped(
                ForeignDMAMapping(
                    range: range,
                    region: slice.region,
                    offset: slice.offset,
                    isReadable: true,
                    isWritable: translation.isWritable && slice.region.isWritable
                )
            )
        }
    }

    private func remove(_ range: AddressRange, _ state: inout State) {
        for entry in state.translations.entries where entry.range.overlaps(range) {
            state.translations.remove(entry.range)
            if entry.range.first < range.first {
                Self.insert(entry.value.part(entry.range.first, range.first - 1), &state)
            }
            if entry.range.last > range.last {
                Self.insert(entry.value.part(range.last + 1, entry.range.last), &state)
            }
        }
        state.follower?.invalidated(range)
    }

    private static func insert(_ translation: Translation?, _ state: inout State) {
        guard let translation else { return }
        // Cannot conflict: what overlaps was removed.
        try? state.translations.insert(translation, at: translation.range)
    }
}

extension ForeignMemory.Translation {
    /// Where it leads; up to the end of 64 bits, which no page table and no bypass leaves.
    fileprivate var target: AddressRange {
        let (last, overflow) = physical.addingReportingOverflow(range.last - range.first)
        guard let target = AddressRange(first: physical, last: overflow ? .max : last) else { return range }
        return target
    }

    /// What of it leads into a range of physical addresses.
    fileprivate func part(leadingTo wanted: AddressRange) -> Self? {
        let target = target
        guard target.overlaps(wanted) else { return nil }
        let first = max(target.first, wanted.first) - physical
        let last = min(target.last, wanted.last) - physical
        return part(range.first &+ first, range.first &+ last)
    }

    /// What of it is between two of the device's addresses, both included and both in it.
    fileprivate func part(_ first: UInt64, _ last: UInt64) -> Self? {
        guard let part = AddressRange(first: first, last: last) else { return nil }
        return Self(range: part, physical: physical &+ (first &- range.first), isWritable: isWritable)
    }
}

/// Passes on what a device has to complain of, up to a number: software can provoke the same again and again.
final class LimitedReports: Sendable {
    private static let countMax = 100
    private let count = Atomic(0)
    private let name: String
    private let report: @Sendable (String) -> Void

    /// - Parameter name: Whose they are.
    init(of name: String, to report: @escaping @Sendable (String) -> Void) {
        self.name = name
        self.report = report
    }

    func add(_ text: String) {
        // Not past the limit, so that it never wraps.
        guard count.load(ordering: .relaxed) <= Self.countMax else { return }
        let number = count.wrappingAdd(1, ordering: .relaxed).newValue
        guard number <= Self.countMax else { return }
        report("\(name): \(text)" + (number == Self.countMax ? "; no more is said of it" : ""))
    }
}
