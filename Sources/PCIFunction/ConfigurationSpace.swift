// Bytes of configuration space, and which of their bits software can change.

/// A function's configuration space: values, and how each bit answers a write.
struct ConfigurationSpace: Sendable {
    private(set) var bytes: [UInt8]
    /// Bits that take what is written.
    private var writable: [UInt8]
    /// Bits that a 1 clears (RW1C).
    private var clearable: [UInt8]

    /// - Parameter byteCount: 256 for a conventional function, 4096 for one of PCI Express.
    init(byteCount: Int) {
        bytes = Array(repeating: 0, count: byteCount)
        writable = bytes
        clearable = bytes
    }

    /// Up to 4 bytes, little-endian; bytes beyond the end read as 1s, as those of no function do.
    func read(at offset: Int, byteCount: Int) -> UInt32 {
        var value: UInt32 = 0
        for index in 0..<max(0, min(byteCount, 4)) {
            let place = offset &+ index
            let byte = bytes.indices.contains(place) ? bytes[place] : 0xFF
            value |= UInt32(byte) &<< UInt32(8 * index)
        }
        return value
    }

    /// A write of software: up to 4 bytes, little-endian.
    ///
    /// Bits that are read-only stay as they are.
    mutating func write(_ value: UInt32, at offset: Int, byteCount: Int) {
        for index in 0..<max(0, min(byteCount, 4)) {
            let place = offset &+ index
            guard bytes.indices.contains(place) else { return }
            let byte = UInt8(truncatingIfNeeded: value &>> UInt32(8 * index))
            let taken = bytes[place] & ~writable[place] | byte & writable[place]
            bytes[place] = taken & ~(byte & clearable[place])
        }
    }

    // MARK: The function's own side

    /// Sets what a register holds, read-only bits too.
    mutating func set(_ value: UInt64, at offset: Int, byteCount: Int) {
        for index in 0..<byteCount {
            bytes[offset + index] = UInt8(truncatingIfNeeded: value &>> UInt64(8 * index))
        }
    }

    /// Says which bits of a register software can write.
    mutating func permit(_ mask: UInt64, at offset: Int, byteCount: Int) {
        for index in 0..<byteCount {
            writable[offset + index] = UInt8(truncatingIfNeeded: mask &>> UInt64(8 * index))
        }
    }

    /// Says which bits of a register a written 1 clears.
    mutating func permitClearing(_ mask: UInt64, at offset: Int, byteCount: Int) {
        for index in 0..<byteCount {
            clearable[offset + index] = UInt8(truncatingIfNeeded: mask &>> UInt64(8 * index))
        }
    }

    /// Sets or clears one bit.
    mutating func setBit(_ bit: Int, at offset: Int, to isSet: Bool) {
        let mask = UInt8(1) &<< UInt8(bit & 7)
        let place = offset + bit / 8
        if isSet { bytes[place] |= mask } else { bytes[place] &= ~mask }
    }

    func bit(_ bit: Int, at offset: Int) -> Bool {
        bytes[offset + bit / 8] & (1 &<< UInt8(bit & 7)) != 0
    }

    func read16(at offset: Int) -> UInt16 { UInt16(truncatingIfNeeded: read(at: offset, byteCount: 2)) }
    func read32(at offset: Int) -> UInt32 { read(at: offset, byteCount: 4) }
}

// MARK: Power management

extension ConfigurationSpace {
    /// PMCSR.PowerState is D0, or there is no such capability.
    ///
    /// - Parameter capability: Where the power management capability stands.
    func isInD0(_ capability: Int?) -> Bool { capability.map { bytes[$0 + 4] & 3 == 0 } ?? true }

    /// A write of software, of which PMCSR.PowerState takes D0 and D3hot only.
    ///
    /// A state that a function does not have is discarded (PCI Bus Power Management Interface Specification, PMCSR).
    mutating func write(_ value: UInt32, at offset: Int, byteCount: Int, powerManagement: Int?) {
        let before = powerManagement.map { bytes[$0 + 4] & 3 }
        write(value, at: offset, byteCount: byteCount)
        guard let powerManagement, let before, [1, 2].contains(bytes[powerManagement + 4] & 3) else { return }
        set(UInt64(bytes[powerManagement + 4] & ~3 | before), at: powerManagement + 4, byteCount: 1)
    }
}
