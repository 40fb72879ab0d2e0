// What a window of registers is, seen from the bus.

/// How wide one access of a CPU or of a bus master to a register window is, in bytes.
public enum AccessWidth: Int, Sendable, CaseIterable {
    case byte = 1
    case halfword = 2
    case word = 4
    case doubleword = 8

    /// A value with all bits of this width set: what a bus returns where nobody answers.
    public var allOnes: UInt64 { UInt64.max &>> UInt64(64 - rawValue * 8) }
}

/// The access did not suit the window.
///
/// What the initiator sees of it is the bus's affair.
public enum RegisterAccessError: Error, Equatable, Sendable {
    /// The window has no register of this kind there and answers with an abort.
    case noSuchRegister
    /// The window does not take accesses of this width.
    case unsupportedWidth
    /// The access is not aligned to its width.
    case misaligned
}

/// Answers register accesses.
///
/// Offsets are relative to the window; a model never learns where it stands.
///
/// Accesses come from any thread. An answer never waits for DMA, a walk or a peer.
public protocol RegisterTarget: AnyObject, Sendable {
    /// Reads `width` bytes at `offset`, little-endian, in the low bits of the result.
    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64
    /// Writes the low `width` bytes of `value` at `offset`.
    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError)
}
