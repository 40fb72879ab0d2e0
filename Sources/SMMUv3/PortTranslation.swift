// What a port remembers: translations with the memory behind them, and the configuration that they come from.

import AddressSpace
import CLinux
import DeviceModel
import SMMUv3Spec
import SystemBus

/// A translation of one 4 KiB page of input addresses for transactions with the same attributes, and where in the host
/// its memory is.
///
/// One line of the host's first cache, and what a hit compares is as few words as can be.
struct PortTranslation {
    /// How many of them a port keeps.
    static let count = 64
    /// The translation permits them to read.
    static let reads: UInt64 = 1 << 0
    /// And to write.
    static let writes: UInt64 = 1 << 1
    /// How much further left ``answer`` has what the host's memory takes directly.
    static let hostShift: UInt64 = 2

    /// The input address of the page, and in its place within the page the region: which count of invalidations it
    /// goes by.
    private(set) var place: UInt64 = 0
    /// ``TransactionAttributes/bits``.
    private(set) var attributes: UInt64 = 0
    /// What the count was.
    ///
    /// No count is 0: nothing is found in an empty entry.
    private(set) var generation: UInt64 = 0
    /// ``BusView/version`` when `host` was found.
    private(set) var mapVersion: UInt64 = 0
    /// The page's first byte.
    private(set) var host: UnsafeMutableRawPointer?
    private(set) var lostFlag: UnsafePointer<UInt32>?
    /// The output address of the page's first byte, and in its place within the page what is permitted.
    private(set) var answer: UInt64 = 0
    /// How many bytes the translation covers from the page's first byte on; at most 4 GiB less a page.
    private(set) var byteCount: UInt32 = 0
    /// How many of them are at `host` in one piece, up to what one transaction moves; 0 where that is not known.
    private(set) var hostByteCount: UInt32 = 0

    init() {}

    /// What is known of an address by now.
    ///
    /// - Parameters:
    ///   - stamp: As it was before anything of this was looked up; likewise `mapVersion`.
    ///   - output: The output address of the page's first byte.
    ///   - last: How far from there the last byte is that the translation covers.
    ///   - directions: What the translation permits.
    ///   - memory: The memory from the page's first byte on; nil where that is no RAM, or nobody is to know.
    @inline(__always)  // Once for each page that misses in the port.
    init(
        _ input: UInt64,
        _ attributes: TransactionAttributes,
        _ stamp: InvalidationStamp,
        isOfRegion: Bool,
        output: UInt64,
        last: UInt64,
        _ directions: UInt64,
        _ mapVersion: UInt64,
        _ memory: HostSpan?
    ) {
        let region = isOfRegion ? stamp.region : InvalidationGeneration.anywhere
        place = input & ~0xFFF | UInt64(truncatingIfNeeded: region)
        self.attributes = attributes.bits
        generation = isOfRegion ? stamp.near : stamp.far
        self.mapVersion = mapVersion
        let covered = min(last, 0xFFFF_EFFF)
        byteCount = UInt32(truncatingIfNeeded: covered) &+ 1
        guard let memory else {
            answer = output | directions
            return
        }
        let hostDirections = memory.isWritable ? directions : directions & Self.reads
        answer = output | directions | hostDirections &<< Self.hostShift
        host = memory.start
        lostFlag = memory.lostFlag
        let most = min(memory.last, StreamPort.largestTransaction &- 1)
        hostByteCount = UInt32(truncatingIfNeeded: min(covered, most)) &+ 1
    }

    /// Whether it is of an address and of attributes.
    @inline(__always)  // On the hit path of every transaction.
    func isOf(_ input: UInt64, _ attributes: TransactionAttributes) -> Bool {
        place ^ input < 0x1000 && self.attributes == attributes.bits
    }

    /// Which count of invalidations it goes by.
    @inline(__always)  // Likewise.
    var region: Int { Int(truncatingIfNeeded: place & 0xFFF) }

    /// Where a port keeps the translation of an address.
    @inline(__always)  // Likewise.
    static func index(_ address: UInt64) -> Int {
        Int(truncatingIfNeeded: (address &>> 12) & UInt64(count - 1))
    }

    /// What permissions are for transactions with these attributes: ``reads``, ``writes``.
    @inline(__always)  // Once for each page that misses in the port.
    static func directions(_ permissions: Permissions, _ attributes: TransactionAttributes) -> UInt64 {
        // As a rule; the rest is not worked out then.
        guard attributes.isPrivileged || attributes.isInstruction else {
            return UInt64(permissions.rawValue) & (reads | writes)
        }
        let own = UInt64(permissions.rawValue) &>> (attributes.isPrivileged ? 3 : 0)
        return (own &>> (attributes.isInstruction ? 2 : 0)) & reads | own & writes
    }
}

/// RAM in one piece, in which a port found the last page that it did not remember.
struct KnownMemory {
    /// ``BusView/version`` before it was found; all ones where nothing is known.
    private var version = UInt64.max
    /// The physical address of its first byte, and how far from there its last one is.
    private var first: UInt64 = 0
    private var last: UInt64 = 0
    private var host: UnsafeMutableRawPointer?
    private var lostFlag: UnsafePointer<UInt32>?
    private var isWritable = false

    /// The RAM from an address on, as ``BusView/hostSpan(at:)`` has it.
    ///
    /// - Parameter version: The map's, read within the transaction.
    @inline(__always)  // Once for each page that misses in the port.
    mutating func span(at address: UInt64, _ version: UInt64, _ bus: BusView) -> HostSpan? {
        if address &- first > last || self.version != version {
            guard find(address, version, bus) else { return nil }
        }
        let offset = address &- first
        // Where something is known, both are there.
        return HostSpan(
            start: host.unsafelyUnwrapped + Int(truncatingIfNeeded: offset),
            last: last &- offset,
            lostFlag: lostFlag.unsafelyUnwrapped,
            isWritable: isWritable
        )
    }

    @inline(never)  // Keeps the way of what is known small.
    private mutating func find(_ address: UInt64, _ version: UInt64, _ bus: BusView) -> Bool {
        guard let (first, found) = bus.hostMemory(containing: PhysicalAddress(address)) else { return false }
        (self.version, self.first, last, host) = (version, first, found.last, found.start)
        (lostFlag, isWritable) = (found.lostFlag, found.isWritable)
        return true
    }
}

/// The configuration that a port used last.
struct KnownConfiguration {
    /// SSV and SubstreamID; all ones where there is no configuration.
    var context = UInt64.max
    /// The count of invalidations of configuration: no count is 0, where the next look-up looks it up again.
    var generation: UInt64 = 0
    var resolved: ResolvedStream?
    /// The plan of `resolved`.
    //
    // Apart from it: looking here counts no reference.
    var plan: UnsafePointer<StreamPlan>?
    /// Where the STE is, if nothing is cached, and it, its L1STD and the CD are all that decides.
    var entry: EntryLocation?
    /// The count of invalidations of configuration before the registers were read that `entry` comes from.
    var entryGeneration: UInt64 = 0
    /// Where the port found RAM last.
    var memory = KnownMemory()

    /// Whether it is of these transactions, and nothing of it was invalidated before the stamp was taken.
    @inline(__always)  // For each look-up that misses in the port.
    func isGood(_ context: UInt64, _ stamp: InvalidationStamp) -> Bool {
        self.context == context && generation == stamp.configuration
    }
}

/// An access within a page, in a configuration that is fit for short ways.
struct SmallAccess {
    let kind: TransactionKind
    let address: UInt64
    /// The device's buffer.
    let own: UnsafeMutableRawPointer
    /// The distance of the last byte from the first.
    let last: UInt64
    let attributes: TransactionAttributes
    let plan: UnsafePointer<StreamPlan>
    /// The canonical address.
    let input: UInt64

    @inline(__always)  // Once for each page that a port does not remember.
    init(
        _ kind: TransactionKind,
        _ address: UInt64,
        _ own: UnsafeMutableRawPointer,
        _ last: UInt64,
        _ attributes: TransactionAttributes,
        _ plan: UnsafePointer<StreamPlan>
    ) {
        (self.kind, self.address, self.own, self.last) = (kind, address, own, last)
        (self.attributes, self.plan) = (attributes, plan)
        input = plan.pointee.canonical(address)
    }

    @inline(__always)  // Likewise.
    var byteCount: Int { Int(truncatingIfNeeded: last &+ 1) }
}

/// What has become of a small access.
enum SmallAccessEnd {
    case done
    /// Neither the port nor the TLB has its translation: a walk may.
    case byWalk
    /// It takes the long way.
    case atLength
}

/// What the look-ups of one transaction have in common.
struct QuickLook {
    /// What has to be permitted.
    let needed: Permissions
    /// SSV and SubstreamID.
    let context: UInt64
    let plan: UnsafePointer<StreamPlan>
    /// Near the address that was looked up last.
    var stamp: InvalidationStamp
    /// What finding the configuration fetched, until the first walk reports it, or the end where the TLB answers all;
    /// nil where nothing was.
    //
    // Where nothing comes of it the long way fetches it again, and reports that.
    var structures: LookupAccesses?
    /// Walks that found what was sought.
    var walks: UInt64 = 0
}

/// Bytes that are gathered while they lie in a row in the host's memory, and then moved at once.
struct CopyRun {
    /// The device's buffer, and which way the bytes go.
    private let own: UnsafeMutableRawPointer
    private let isWrite: Bool
    /// The RAM that the last piece was in, and its first byte's physical address.
    private(set) var span: HostSpan?
    private(set) var spanStart: UInt64 = 0
    /// What is gathered and not yet moved.
    private var host: UnsafeMutableRawPointer?
    private var pending: UInt64 = 0
    /// What has been moved.
    private var moved: UInt64 = 0
    private var isLost = false

    init(own: UnsafeMutableRawPointer, isWrite: Bool) { (self.own, self.isWrite) = (own, isWrite) }

    /// How many bytes there are so far.
    @inline(__always)  // For each page.
    var byteCount: UInt64 { moved &+ pending }

    /// Adds bytes at a physical address.
    ///
    /// - Returns: Whether they are RAM in one piece that takes them.
    @inline(__always)  // Likewise.
    mutating func append(_ output: UInt64, _ count: UInt64, _ bus: BusView) -> Bool {
        if let span, output >= spanStart, span.last >= output &- spanStart,
            span.last &- (output &- spanStart) >= count &- 1
        {
            return append(span.start + Int(truncatingIfNeeded: output &- spanStart), count)
        }
        guard let found = bus.hostSpan(at: PhysicalAddress(output)), found.last >= count &- 1,
            found.isWritable || !isWrite
        else { return false }
        // Before the span is another: what is gathered is of this one.
        guard pending == 0 || flush() else { return false }
        (span, spanStart) = (found, output)
        return append(found.start, count)
    }

    @inline(__always)  // Likewise.
    private mutating func append(_ start: UnsafeMutableRawPointer, _ count: UInt64) -> Bool {
        if pending > 0 {
            if let host, host + Int(truncatingIfNeeded: pending) == start {
                pending &+= count
                return true
            }
            guard flush() else { return false }
        }
        (host, pending) = (start, count)
        return true
    }

    /// Moves what is gathered.
    ///
    /// - Returns: Whether the memory was there; where a peer has truncated it, what is gathered counts as not moved.
    private mutating func flush() -> Bool {
        guard !isLost, let host, let span else { return false }
        let buffer = own + Int(truncatingIfNeeded: moved)
        if isWrite {
            smmud_copy_to_shared(host, buffer, Int(truncatingIfNeeded: pending))
        } else {
            smmud_copy_from_shared(buffer, host, Int(truncatingIfNeeded: pending))
        }
        smmud_compiler_barrier()
        isLost = smmud_load_u32(span.lostFlag) != 0
        if !isLost { moved &+= pending }
        pending = 0
        return !isLost
    }

    /// Moves the rest.
    ///
    /// - Returns: How many bytes were moved in all.
    mutating func finish() -> UInt64 {
        if pending > 0 { _ = flush() }
        return moved
    }
}
