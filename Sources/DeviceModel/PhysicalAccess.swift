// The physical address space as a CPU, a driver or an SMMU's own accesses see it.

public import AddressSpace

/// An access to physical memory got no answer.
public enum BusError: Error, Equatable, Sendable {
    /// Neither RAM nor a register window is there, or the access leaves the one in which it starts.
    case unassigned(PhysicalAddress)
    /// A register window is there and refused the access.
    case refused(PhysicalAddress, RegisterAccessError)
    /// RAM is there, but its backing has gone: a peer truncated the file that it shares with us.
    case lost(PhysicalAddress)
    /// RAM is there, but it is shared with us for reading only.
    case readOnly(PhysicalAddress)

    /// The address at which the access failed.
    public var address: PhysicalAddress {
        switch self {
        case .unassigned(let address), .refused(let address, _), .lost(let address), .readOnly(let address):
            address
        }
    }
}

/// Physical memory and register windows as their users reach them: the machine's bus, or another machine's
/// over a wire.
///
/// A driver that is written against this runs on either.
public protocol PhysicalAccess: AnyObject, Sendable {
    /// One register or memory read of `width` bytes, naturally aligned, single-copy atomic, little-endian.
    func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64
    /// One register or memory write of `width` bytes, naturally aligned, single-copy atomic. Everything that
    /// the calling thread wrote before is visible to others before it.
    func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError)
    /// Reads bytes of RAM, in no particular order or size of access.
    func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8]
    /// Writes bytes of RAM, in no particular order or size of access.
    func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError)
    /// Fills RAM with `byte`.
    func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError)
    /// Replaces an aligned 64-bit word of RAM if it still holds `expected`, atomically.
    ///
    /// - Returns: What the word held before: `expected` where the exchange took place.
    func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress) throws(BusError)
        -> UInt64
}
