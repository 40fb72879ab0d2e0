// One command of the test engine: what a frame says, checked, and carried out.

import AddressSpace
import DeviceModel

/// What a frame asks for, read once when its command is written.
struct TestEngineTransfer: Equatable {
    var command: TestEngineCommand
    var begin: UInt64
    var byteCount: UInt64
    /// 1 is every byte, a multiple of 8 is a doubleword at each.
    var stride: UInt64
    var destination: UInt64
    var seed: UInt32
    var stream: UInt32
    var attributes: TransactionAttributes

    /// Larger ones are refused, so that a frame does not keep the others waiting for days.
    static let byteCountMax: UInt64 = 1 << 32

    /// - Returns: Nil where the frame is misconfigured.
    init?(_ frames: TestEngineFrames, frame: Int, _ command: TestEngineCommand) {
        guard command.isTransfer else { return nil }
        self.command = command
        begin = frames.user64(TestEngineFrame.begin, of: frame)
        let end = frames.user64(TestEngineFrame.end, of: frame)
        guard end >= begin, end - begin < Self.byteCountMax else { return nil }
        byteCount = end - begin + 1
        stride = frames.user64(TestEngineFrame.stride, of: frame)
        guard stride == 1 || stride > 0 && stride.isMultiple(of: 8) else { return nil }
        destination = frames.user64(TestEngineFrame.data0, of: frame)
        // A command that moves doublewords has whole ones; so has a sum.
        if stride != 1 || command == .sum {
            guard begin & 7 == 0, byteCount.isMultiple(of: 8) else { return nil }
            if command == .copy, destination & 7 != 0 { return nil }
        }
        seed = frames.user32(TestEngineFrame.seed, of: frame)
        stream = frames.privileged32(TestEngineFrame.stream, of: frame)
        attributes = .plain
        let substream = frames.privileged32(TestEngineFrame.substream, of: frame)
        if substream != TestEngineFrame.noSubstream {
            guard substream <= TestEngineFrame.substreamMax else { return nil }
            attributes.substreamID = SubstreamID(substream)
        }
    }

    /// Carries it out, piece by piece.
    ///
    /// - Parameter isCancelled: Looked at before each piece.
    /// - Returns: The sum, for that command.
    /// - Throws: The fault that ended it.
    func run(_ port: any DMAPort, isCancelled: () -> Bool) throws(DMAFault) -> UInt64 {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 64)
        defer { buffer.deallocate() }
        var random = TestEngineRandom(seed: seed)
        var sum: UInt64 = 0
        var done: UInt64 = 0
        while done < byteCount, !isCancelled() {
            let address = begin &+ done
            // No piece crosses a page, so that a fault names the page that it is of.
            let inPage = 4096 - address & 4095
            let count = stride == 1 ? min(inPage, byteCount - done) : 8
            let piece = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(count)])
            switch command {
            case .copy:
                try port.read(at: IOVirtualAddress(address), into: piece, attributes)
                let target = IOVirtualAddress(destination &+ done)
                try port.write(UnsafeRawBufferPointer(piece), at: target, attributes)
            case .random:
                random.fill(piece, at: address, isFirst: done == 0)
                try port.write(UnsafeRawBufferPointer(piece), at: IOVirtualAddress(address), attributes)
            default:
                try port.read(at: IOVirtualAddress(address), into: piece, attributes)
                for place in Swift.stride(from: 0, to: piece.count, by: 8) {
                    sum &+= UInt64(littleEndian: piece.load(fromByteOffset: place, as: UInt64.self))
                }
            }
            let (next, overflow) = done.addingReportingOverflow(stride == 1 ? count : stride)
            guard !overflow else { break }
            done = next
        }
        return sum
    }
}

/// The engine's pseudo-random bytes: `lrand48`, with a seed that each page mixes its address into.
struct TestEngineRandom {
    private let seed: UInt32
    private var state: UInt64 = 0

    init(seed: UInt32) { self.seed = seed }

    mutating func fill(_ piece: UnsafeMutableRawBufferPointer, at address: UInt64, isFirst: Bool) {
        for index in piece.indices {
            let place = address &+ UInt64(index)
            if isFirst && index == 0 || place & 4095 == 0 {
                let mixed = seed ^ UInt32(truncatingIfNeeded: place) ^ UInt32(truncatingIfNeeded: place >> 32)
                // Shifted as a word of 32 bits: the upper half of it does not count.
                state = UInt64(mixed &<< 16 | 0x330E)
            }
            step()
            piece[index] = UInt8(truncatingIfNeeded: state &>> 17)
            // The model draws twice for 32 bits, of which these are the low 8.
            step()
        }
    }

    private mutating func step() { state = (state &* 0x5_DEEC_E66D &+ 0xB) & 0xFFFF_FFFF_FFFF }
}
