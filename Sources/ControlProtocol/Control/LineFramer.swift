// Lines out of a stream of bytes, each of bounded length.

/// Cuts a stream of bytes into lines that end with a newline.
///
/// Holds at most one line that is not complete.
package struct LineFramer: Sendable {
    /// What comes out of the stream.
    package enum Line: Equatable, Sendable {
        /// A line without its newline and without a carriage return before it.
        case complete([UInt8])
        /// A line was longer than the limit. It is skipped to its end, and the next one is good again.
        case tooLong
    }

    /// How long a line may be, in bytes, without its newline.
    package let byteCountMax: Int
    private var pending: [UInt8] = []
    private var isSkipping = false

    /// - Parameter byteCountMax: How long a line may be; 16 MiB unless told.
    package init(byteCountMax: Int = 16 << 20) { self.byteCountMax = byteCountMax }

    /// Takes the next bytes of the stream.
    ///
    /// - Returns: The lines that they complete, in order. A line that is too long is reported once, as soon as
    ///   it is.
    package mutating func receive(_ bytes: UnsafeRawBufferPointer) -> [Line] {
        var lines: [Line] = []
        var rest = bytes[...]
        while let newline = rest.firstIndex(of: UInt8(ascii: "\n")) {
            append(rest[rest.startIndex..<newline], to: &lines)
            endLine(to: &lines)
            rest = rest[(newline + 1)...]
        }
        append(rest, to: &lines)
        return lines
    }

    private mutating func append(_ bytes: Slice<UnsafeRawBufferPointer>, to lines: inout [Line]) {
        guard !isSkipping else { return }
        guard bytes.count <= byteCountMax - pending.count else {
            isSkipping = true
            pending = []
            lines.append(.tooLong)
            return
        }
        pending.append(contentsOf: bytes)
    }

    private mutating func endLine(to lines: inout [Line]) {
        defer { isSkipping = false }
        guard !isSkipping else { return }
        if pending.last == UInt8(ascii: "\r") { pending.removeLast() }
        lines.append(.complete(pending))
        pending = []
    }
}
