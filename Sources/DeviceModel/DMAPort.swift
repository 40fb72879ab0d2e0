// A device's whole view of memory.

public import AddressSpace
public import Glibc

/// What a transaction says of itself beside its address, as the device drives it.
public struct TransactionAttributes: Hashable, Sendable {
    /// All of them in one word, which is quick to compare.
    ///
    /// | bits | what |
    /// | --- | --- |
    /// | [31:0], [32] | SubstreamID; whether there is one (SSV) |
    /// | [33] | ``isTranslated`` |
    /// | [34], [35] | ``isPrivileged``; ``isInstruction`` |
    /// | [36] | ``isMessage`` |
    @inlinable public var bits: UInt64 { word }
    @usableFromInline var word: UInt64 = 0

    // Computed: a stored one is behind a function that sees to its initialisation.
    @inlinable static var substreamValid: UInt64 { 1 << 32 }
    @inlinable static var translated: UInt64 { 1 << 33 }
    @inlinable static var privileged: UInt64 { 1 << 34 }
    @inlinable static var instruction: UInt64 { 1 << 35 }
    @inlinable static var message: UInt64 { 1 << 36 }

    @inlinable public init(
        substreamID: SubstreamID? = nil,
        isPrivileged: Bool = false,
        isInstruction: Bool = false,
        isTranslated: Bool = false,
        isMessage: Bool = false
    ) {
        self.substreamID = substreamID
        self.isPrivileged = isPrivileged
        self.isInstruction = isInstruction
        self.isTranslated = isTranslated
        self.isMessage = isMessage
    }

    /// The SubstreamID (PASID); nil is a transaction without one (SSV = 0).
    @inlinable public var substreamID: SubstreamID? {
        get { has(Self.substreamValid) ? SubstreamID(UInt32(truncatingIfNeeded: word)) : nil }
        set {
            word &= ~(Self.substreamValid | 0xFFFF_FFFF)
            if let newValue { word |= Self.substreamValid | UInt64(newValue.rawValue) }
        }
    }
    /// Privileged (PnU = 1).
    @inlinable public var isPrivileged: Bool {
        get { has(Self.privileged) }
        set { set(Self.privileged, newValue) }
    }
    /// An instruction fetch (InD = 1); of no meaning on writes, which are always data.
    @inlinable public var isInstruction: Bool {
        get { has(Self.instruction) }
        set { set(Self.instruction, newValue) }
    }
    /// Translated by the device itself (PCIe: AT = 0b10): its address is what an ATS translation completion gave.
    @inlinable public var isTranslated: Bool {
        get { has(Self.translated) }
        set { set(Self.translated, newValue) }
    }
    /// An interrupt message: whoever signals may hold up others, so it waits for no page, and a device does not
    /// translate its address itself.
    @inlinable public var isMessage: Bool {
        get { has(Self.message) }
        set { set(Self.message, newValue) }
    }

    @inline(__always)  // Asked for each transaction.
    @usableFromInline func has(_ bit: UInt64) -> Bool { word & bit != 0 }

    @inline(__always)  // Likewise.
    @usableFromInline mutating func set(_ bit: UInt64, _ value: Bool) {
        if value { word |= bit } else { word &= ~bit }
    }

    /// Data, unprivileged, without a SubstreamID: what a PCIe function without PASID drives.
    //
    // Computed: a stored one is behind a function that sees to its initialisation.
    @inlinable public static var plain: TransactionAttributes { TransactionAttributes() }
}

/// Why a DMA did not take place, or not all of it.
///
/// Whatever the architecture wants recorded has been recorded already; this is what the device itself sees,
/// and what a person who debugs it wants to know beside.
public struct DMAFault: Error, Equatable, Sendable {
    public enum Cause: Equatable, Sendable {
        /// The SMMU terminated the transaction and this event number says why: 0x10 is F_TRANSLATION. The
        /// event is in the queue if the architecture records it and the queue could take it.
        case event(UInt8)
        /// The SMMU aborted it without an event: GBPA.ABORT, or STE.Config = 0b0xx.
        case aborted
        /// It was translated, or bypassed, to an address at which nobody answers.
        case bus(BusError)
    }

    public let cause: Cause
    /// The first byte that was not transferred.
    public let address: IOVirtualAddress
    /// How many bytes before it were transferred.
    public let bytesTransferred: UInt64

    public init(cause: Cause, address: IOVirtualAddress, bytesTransferred: UInt64) {
        self.cause = cause
        self.address = address
        self.bytesTransferred = bytesTransferred
    }
}

/// Which way the bytes of a DMA go.
public enum DMADirection: Hashable, Sendable {
    /// The device reads memory.
    case read
    /// The device writes memory.
    case write
}

/// Bytes in a row, as the device addresses them.
public struct DMARange: Hashable, Sendable {
    public var address: IOVirtualAddress
    public var byteCount: Int

    public init(address: IOVirtualAddress, byteCount: Int) {
        self.address = address
        self.byteCount = byteCount
    }
}

/// A device's whole view of memory, bound to one requester identity when the machine is wired: a device cannot
/// tell whether an SMMU stands before it.
///
/// A port has one user at a time. A device with several threads takes a port for each: ports are cheap, and what
/// a port publishes of its transactions in flight is written by its one user without a lock.
public protocol DMAPort: AnyObject {
    /// Reads `buffer.count` bytes at `address`.
    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault)
    /// Writes all of `buffer` at `address`.
    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault)
    /// Lends the memory behind `ranges` to `body`, in their order, for a system call that fills or drains it.
    ///
    /// The loan is one transaction in flight: a CMD_SYNC waits for its end, as it would for outstanding beats. So
    /// `body` makes one call that moves bytes and returns; it uses no port. A call to memory that a peer has
    /// truncated fails with `EFAULT`.
    ///
    /// - Returns: Whether there was memory to lend. Where not (a register window, a peer's own memory, an
    ///   answer of zeros) `body` was not called: copy instead, with ``read(at:into:_:)`` and ``write(_:at:_:)``.
    /// - Throws: ``DMAFault`` where a transaction was terminated; `body` was not called.
    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool
    /// The port's user is about to sleep, between two transactions.
    ///
    /// Until a thread is seen to be idle, whoever invalidates translations has to make sure of it, which interrupts
    /// other processors. One that says so itself spares them that. A port before another port passes it on; one that
    /// nobody waits for does nothing.
    func rest()
}

extension DMAPort {
    /// Reads one aligned word of `width` bytes, little-endian: single-copy atomic, and before every access to
    /// memory that follows.
    public func load(
        _ width: AccessWidth,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes = .plain
    ) throws(DMAFault) -> UInt64 {
        var value: UInt64 = 0
        var fault: DMAFault?
        withUnsafeMutableBytes(of: &value) { bytes in
            do throws(DMAFault) {
                try read(
                    at: address,
                    into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<width.rawValue]),
                    attributes
                )
            } catch {
                fault = error
            }
        }
        if let fault { throw fault }
        return UInt64(littleEndian: value)
    }

    /// Writes one aligned word of `width` bytes, little-endian: single-copy atomic, and after every access to
    /// memory that came before.
    public func store(
        _ value: UInt64,
        _ width: AccessWidth,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes = .plain
    ) throws(DMAFault) {
        var fault: DMAFault?
        withUnsafeBytes(of: value.littleEndian) { bytes in
            do throws(DMAFault) {
                try write(
                    UnsafeRawBufferPointer(rebasing: bytes[..<width.rawValue]),
                    at: address,
                    attributes
                )
            } catch {
                fault = error
            }
        }
        if let fault { throw fault }
    }
}
