// Memory and registers as a CPU or a driver reaches them.

public import AddressSpace
import CLinux
public import DeviceModel
import Glibc

extension SystemBus: PhysicalAccess {
    public func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        let map = enter()
        defer { leave() }
        if let record = map.pointee.window(containing: address.rawValue) {
            return try record.pointee.read(width, at: address.rawValue) & width.allOnes
        }
        if map.pointee.isRemote(address) { return try map.pointee.loadRemote(width.rawValue, at: address) }
        let (host, record) = try map.pointee.locate(
            UInt64(width.rawValue),
            at: address,
            alignment: UInt64(width.rawValue)
        )
        let value =
            switch width {
            case .byte: UInt64(smmud_load_u8(host))
            case .halfword: UInt64(smmud_load_u16(host))
            case .word: UInt64(smmud_load_u32(host))
            case .doubleword: smmud_load_u64(host)
            }
        guard !record.pointee.isLost else { throw .lost(address) }
        return value
    }

    public func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
        let map = enter()
        defer { leave() }
        if let record = map.pointee.window(containing: address.rawValue) {
            return try record.pointee.write(value & width.allOnes, width, at: address.rawValue)
        }
        if map.pointee.isRemote(address) {
            return try map.pointee.storeRemote(value, width.rawValue, at: address)
        }
        let (host, record) = try map.pointee.locateForStore(
            UInt64(width.rawValue),
            at: address,
            alignment: UInt64(width.rawValue)
        )
        switch width {
        case .byte: smmud_store_u8(host, UInt8(truncatingIfNeeded: value))
        case .halfword: smmud_store_u16(host, UInt16(truncatingIfNeeded: value))
        case .word: smmud_store_u32(host, UInt32(truncatingIfNeeded: value))
        case .doubleword: smmud_store_u64(host, value)
        }
        guard !record.pointee.isLostByNow else { throw .lost(address) }
    }

    /// Reads bytes of RAM; a negative count reads none.
    ///
    /// The result is as long as asked for where RAM is: a caller that passes on a stranger's count bounds it first.
    public func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
        guard byteCount > 0 else { return [] }
        let map = enter()
        defer { leave() }
        // Before the array is made: a count beyond what is there costs nothing.
        try map.pointee.checkRAM(byteCount: UInt64(byteCount), at: address, isWrite: false)
        var failure: BusError?
        let bytes = [UInt8](unsafeUninitializedCapacity: byteCount) { buffer, count in
            do throws(BusError) {
                try Self.copyOut(at: address, into: UnsafeMutableRawBufferPointer(buffer), in: map)
                count = byteCount
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return bytes
    }

    public func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
        let map = enter()
        defer { leave() }
        try map.pointee.checkRAM(byteCount: UInt64(bytes.count), at: address, isWrite: true)
        let failure: BusError? = bytes.withUnsafeBytes { buffer in
            do throws(BusError) {
                try Self.copyIn(buffer, at: address, in: map)
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw failure }
    }

    public func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
        let map = enter()
        defer { leave() }
        try map.pointee.checkRAM(byteCount: byteCount, at: address, isWrite: true)
        var remaining = byteCount
        var next = address.rawValue
        while remaining > 0 {
            guard let record = map.pointee.ram(containing: next) else {
                next = try map.pointee.fillRemote(byte, &remaining, at: next)
                continue
            }
            let count = chunkOf(remaining, from: next, upTo: record.pointee.last)
            memset(record.pointee.hostPointer(to: next), CInt(byte), Int(count))
            guard !record.pointee.isLostByNow else { throw .lost(PhysicalAddress(next)) }
            remaining &-= count
            next &+= count
        }
    }

    public func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress)
        throws(BusError) -> UInt64
    {
        let map = enter()
        defer { leave() }
        // A peer's memory cannot be exchanged atomically: better no answer than one that loses a store.
        guard !map.pointee.isRemote(address) else { throw .refused(address, .unsupportedWidth) }
        let (host, record) = try map.pointee.locateForStore(8, at: address, alignment: 8)
        let held = smmud_compare_exchange_u64(host, expected, desired)
        guard !record.pointee.isLostByNow else { throw .lost(address) }
        return held
    }
}

extension SystemBus {
    /// Whether a window of registers answers at an address.
    public func isRegisterWindow(at address: PhysicalAddress) -> Bool {
        let map = enter()
        defer { leave() }
        return map.pointee.window(containing: address.rawValue) != nil
    }
}

extension BusSnapshot {
    /// Whether RAM that can be used so is at every byte, before the first of them changes.
    fileprivate func checkRAM(byteCount: UInt64, at address: PhysicalAddress, isWrite: Bool) throws(BusError)
    {
        var remaining = byteCount
        var next = address.rawValue
        while remaining > 0 {
            guard let record = ram(containing: next) else {
                guard let record = remote(containing: next) else { throw .unassigned(PhysicalAddress(next)) }
                guard !isWrite || record.box.takeUnretainedValue().isWritable else {
                    throw .readOnly(PhysicalAddress(next))
                }
                let count = chunkOf(remaining, from: next, upTo: record.last)
                remaining &-= count
                next = try Self.step(from: next, by: count, isLast: remaining == 0)
                continue
            }
            guard !isWrite || record.pointee.isWritable else { throw .readOnly(PhysicalAddress(next)) }
            guard !record.pointee.isLost else { throw .lost(PhysicalAddress(next)) }
            let count = chunkOf(remaining, from: next, upTo: record.pointee.last)
            remaining &-= count
            next = try Self.step(from: next, by: count, isLast: remaining == 0)
        }
    }

    /// Fills a peer's memory with `byte`, to the end of the range at most.
    ///
    /// - Returns: The address after the last byte.
    fileprivate func fillRemote(_ byte: UInt8, _ remaining: inout UInt64, at address: UInt64) throws(BusError)
        -> UInt64
    {
        guard let record = remote(containing: address) else { throw .unassigned(PhysicalAddress(address)) }
        let piece = [UInt8](repeating: byte, count: 4096)
        var next = address
        while remaining > 0, next >= address, next <= record.last {
            let count = min(chunkOf(remaining, from: next, upTo: record.last), UInt64(piece.count))
            var failure: BusError?
            piece.withUnsafeBytes { bytes in
                do throws(BusError) {
                    try record.write(UnsafeRawBufferPointer(rebasing: bytes[..<Int(count)]), at: next)
                } catch {
                    failure = error
                }
            }
            if let failure { throw failure }
            remaining &-= count
            next = try Self.step(from: next, by: count, isLast: remaining == 0)
        }
        return next
    }
}
