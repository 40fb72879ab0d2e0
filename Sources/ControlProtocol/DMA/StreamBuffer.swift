// The bytes of a stream that have come and are not consumed yet.

/// A buffer between a socket and a decoder: filled at its end, consumed from its start, never reallocated
/// unless a message does not fit.
public struct StreamBuffer: ~Copyable {
    private var storage: UnsafeMutableRawBufferPointer
    private var start = 0
    private var end = 0

    /// - Parameter capacity: In bytes, at least one.
    public init(capacity: Int) {
        storage = .allocate(byteCount: max(1, capacity), alignment: 64)
    }

    deinit { storage.deallocate() }

    /// What is there.
    ///
    /// Good until the next call that changes the buffer.
    @inline(__always)
    public var readable: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: storage[start..<end]) }

    /// Room for more at the end; never empty while less than the capacity is readable.
    ///
    /// Good until the next call that changes the buffer.
    public mutating func freeSpace() -> UnsafeMutableRawBufferPointer {
        if start == end { (start, end) = (0, 0) }
        if end == storage.count, start > 0 { moveToFront() }
        return UnsafeMutableRawBufferPointer(rebasing: storage[end...])
    }

    /// Notes that `byteCount` bytes were put into ``freeSpace()``.
    public mutating func filled(_ byteCount: Int) {
        precondition(byteCount >= 0 && byteCount <= storage.count - end, "filled beyond the free space")
        end += byteCount
    }

    /// Takes `byteCount` bytes off the start.
    @inline(__always)
    public mutating func consume(_ byteCount: Int) {
        precondition(byteCount >= 0 && byteCount <= end - start, "consumed beyond what is readable")
        start += byteCount
    }

    /// Sees to it that a message of `byteCount` bytes, which starts where ``readable`` does, can become
    /// readable as a whole.
    public mutating func makeRoom(for byteCount: Int) {
        guard byteCount > storage.count - start else { return }
        if byteCount > storage.count {
            let larger = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 64)
            larger.copyMemory(from: readable)
            storage.deallocate()
            storage = larger
            (start, end) = (0, end - start)
        } else {
            moveToFront()
        }
    }

    private mutating func moveToFront() {
        let byteCount = end - start
        UnsafeMutableRawBufferPointer(rebasing: storage[..<byteCount]).copyMemory(from: readable)
        (start, end) = (0, byteCount)
    }
}
