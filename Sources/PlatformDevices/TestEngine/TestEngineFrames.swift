// The test engine's frames: what their registers are, as drivers of it know them.

/// Commands, and what a frame's `cmd` says of them.
struct TestEngineCommand: RawRepresentable, Equatable, Sendable {
    var rawValue: UInt32

    /// There is no such frame.
    static let noFrame = Self(rawValue: 0)
    /// Idle, or done.
    static let halted = Self(rawValue: 1)
    /// Copies `begin` to `end_incl` to `udata[0]`.
    static let copy = Self(rawValue: 2)
    /// Writes pseudo-random bytes to `begin` to `end_incl`.
    static let random = Self(rawValue: 3)
    /// Adds the doublewords of `begin` to `end_incl` up, into `udata[1]`.
    static let sum = Self(rawValue: 4)
    /// A transaction was aborted; `udata[2]` is where.
    static let error = Self(rawValue: 0xFFFF_FFFF)
    /// What the frame says is impossible.
    static let misconfigured = Self(rawValue: 0xFFFF_FFFE)

    var isTransfer: Bool { (Self.copy.rawValue...Self.sum.rawValue).contains(rawValue) }
}

/// Offsets in a user frame, and in its privileged frame; both are 128 bytes.
enum TestEngineFrame {
    static let byteCount = 128
    /// Frames of one kind fill 64 KiB; then come as many of the other.
    static let pageByteCount = 65536
    static let countPerPage = pageByteCount / byteCount

    // User frames.
    static let command = 0x00
    /// Bit 0: the message was aborted.
    static let control = 0x04
    static let launched = 0x08
    static let returned = 0x0C
    /// Of a PCIe function: whether to send one.
    static let messageAddress = 0x10
    /// Of a PCIe function: the vector.
    static let messageData = 0x18
    static let seed = 0x24
    static let begin = 0x28
    static let end = 0x30
    static let stride = 0x38
    static let data0 = 0x40
    static let data1 = 0x48
    static let data2 = 0x50

    // Privileged frames.
    static let stream = 0x08
    static let substream = 0x0C

    static let noSubstream: UInt32 = 0xFFFF_FFFF
    /// The largest SubstreamID.
    static let substreamMax: UInt32 = 0xFFFFF
}

/// All frames of an engine, as bytes that registers show.
struct TestEngineFrames {
    private var words: [UInt64]
    /// How many pairs of a page of user frames and a page of privileged ones.
    let pairCount: Int
    private let defaultStream: UInt32

    /// - Parameter defaultStream: What `streamid` of each frame is after reset.
    init(pairCount: Int, defaultStream: UInt32) {
        self.pairCount = pairCount
        self.defaultStream = defaultStream
        words = Array(repeating: 0, count: pairCount * 2 * TestEngineFrame.pageByteCount / 8)
        for frame in 0..<frameCount {
            set(TestEngineCommand.halted.rawValue, TestEngineFrame.command, ofUser: frame)
            set(1, TestEngineFrame.stride, ofUser: frame)
            let privileged = place(ofPrivileged: frame)
            write(UInt64(defaultStream), at: privileged + TestEngineFrame.stream, byteCount: 4)
            write(
                UInt64(TestEngineFrame.noSubstream),
                at: privileged + TestEngineFrame.substream,
                byteCount: 4
            )
        }
    }

    mutating func reset() { self = Self(pairCount: pairCount, defaultStream: defaultStream) }

    var frameCount: Int { pairCount * TestEngineFrame.countPerPage }
    var byteCount: Int { words.count * 8 }

    /// The user frame that an offset is in, and how far; nil for privileged frames.
    func userFrame(at offset: Int) -> (frame: Int, offset: Int)? {
        let page = offset / TestEngineFrame.pageByteCount
        guard page % 2 == 0 else { return nil }
        let place = offset % TestEngineFrame.pageByteCount
        return (
            page / 2 * TestEngineFrame.countPerPage + place / TestEngineFrame.byteCount,
            place % TestEngineFrame.byteCount
        )
    }

    private func place(ofUser frame: Int) -> Int {
        frame / TestEngineFrame.countPerPage * 2 * TestEngineFrame.pageByteCount
            + frame % TestEngineFrame.countPerPage * TestEngineFrame.byteCount
    }

    private func place(ofPrivileged frame: Int) -> Int {
        place(ofUser: frame) + TestEngineFrame.pageByteCount
    }

    /// 1, 2, 4 or 8 bytes, naturally aligned and inside.
    func read(at offset: Int, byteCount: Int) -> UInt64 {
        let word = words[offset / 8] &>> UInt64(offset % 8 * 8)
        return byteCount == 8 ? word : word & ((1 &<< UInt64(byteCount * 8)) &- 1)
    }

    mutating func write(_ value: UInt64, at offset: Int, byteCount: Int) {
        let shift = UInt64(offset % 8 * 8)
        let mask = byteCount == 8 ? UInt64.max : ((1 &<< UInt64(byteCount * 8)) &- 1) &<< shift
        words[offset / 8] = words[offset / 8] & ~mask | (value &<< shift) & mask
    }

    func user32(_ offset: Int, of frame: Int) -> UInt32 {
        UInt32(truncatingIfNeeded: read(at: place(ofUser: frame) + offset, byteCount: 4))
    }
    func user64(_ offset: Int, of frame: Int) -> UInt64 {
        read(at: place(ofUser: frame) + offset, byteCount: 8)
    }
    func privileged32(_ offset: Int, of frame: Int) -> UInt32 {
        UInt32(truncatingIfNeeded: read(at: place(ofPrivileged: frame) + offset, byteCount: 4))
    }
    mutating func set(_ value: UInt32, _ offset: Int, ofUser frame: Int) {
        write(UInt64(value), at: place(ofUser: frame) + offset, byteCount: 4)
    }
    mutating func set64(_ value: UInt64, _ offset: Int, ofUser frame: Int) {
        write(value, at: place(ofUser: frame) + offset, byteCount: 8)
    }

    func command(of frame: Int) -> TestEngineCommand {
        TestEngineCommand(rawValue: user32(TestEngineFrame.command, of: frame))
    }
}
