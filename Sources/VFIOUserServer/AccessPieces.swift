// A client's accesses, of any place and size, as the accesses that registers know.

import DeviceModel

enum AccessPieces {
    /// Calls `body` for each aligned piece of an access, in order.
    ///
    /// An access of a register's size at its alignment is one piece: a guest's access is what the guest made it.
    /// Others are a copy of memory-like ranges, and come in words and less, which every register knows.
    ///
    /// - Parameter wholeByteCountMax: How wide a piece may be: 4 or 8 bytes.
    @inline(__always)
    static func forEach(
        at offset: UInt64,
        byteCount: Int,
        wholeByteCountMax: Int,
        _ body: (_ place: UInt64, _ range: Range<Int>, _ width: AccessWidth) -> Void
    ) {
        if byteCount <= wholeByteCountMax, let width = AccessWidth(rawValue: byteCount),
            offset & UInt64(byteCount - 1) == 0
        {
            return body(offset, 0..<byteCount, width)
        }
        var done = 0
        while done < byteCount {
            let place = offset &+ UInt64(done)
            let left = byteCount - done
            let width: AccessWidth =
                if place & 1 != 0 || left < 2 { .byte } else if place & 2 != 0 || left < 4 {
                    .halfword
                } else { .word }
            body(place, done..<done + width.rawValue, width)
            done += width.rawValue
        }
    }
}

extension UnsafeRawBufferPointer {
    /// Up to 8 bytes, the first in the lowest bits.
    func value(_ range: Range<Int>) -> UInt64 {
        // Most accesses are whole registers.
        if range.count == 4 {
            let word = loadUnaligned(fromByteOffset: range.lowerBound, as: UInt32.self)
            return UInt64(UInt32(littleEndian: word))
        }
        var value: UInt64 = 0
        for index in range.reversed() { value = value &<< 8 | UInt64(self[index]) }
        return value
    }
}

extension UnsafeMutableRawBufferPointer {
    /// Writes up to 8 bytes, the lowest bits first.
    func set(_ range: Range<Int>, to value: UInt64) {
        if range.count == 4 {
            let word = UInt32(truncatingIfNeeded: value).littleEndian
            return storeBytes(of: word, toByteOffset: range.lowerBound, as: UInt32.self)
        }
        var rest = value
        for index in range {
            self[index] = UInt8(truncatingIfNeeded: rest)
            rest = rest &>> 8
        }
    }
}
