// Memory that is reached by asking whoever has it.

/// Memory that a peer keeps to itself: each access is a question and an answer.
///
/// Accesses come from any thread but the one that serves the peer's own requests: that one would wait for itself.
public protocol RemoteMemory: AnyObject, Sendable {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// - Returns: Whether the peer gave them.
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool
    /// Writes `buffer` from `offset` on.
    ///
    /// - Returns: Whether the peer took it all.
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) -> Bool
}
