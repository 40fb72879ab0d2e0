// What the SMMU does to memory at every transaction: no lock, no allocation, no reference count.

public import AddressSpace
import CLinux
public import DeviceModel
public import GuestMemory

// An access that the kernel cannot back (a peer truncated the file) reads zeroes and sets the record's flag before
// it returns, so the flag is looked at after the access. Before a store it is looked at too: what a peer sends to
// memory that is lost must not fill pages of our own.

extension RAMRecord {
    @inline(__always)
    var isLost: Bool { smmud_load_u32(lostFlag) != 0 }

    /// The same, after a copy or a store: keeps the compiler from looking first.
    @inline(__always)
    var isLostByNow: Bool {
        smmud_compiler_barrier()
        return smmud_load_u32(lostFlag) != 0
    }
}

extension BusSnapshot {
    /// Where in the host `byteCount` bytes at `address` are, which is aligned to `alignment` in both.
    @inline(__always)
    func locate(_ byteCount: UInt64, at address: PhysicalAddress, alignment: UInt64) throws(BusError)
        -> (host: UnsafeMutableRawPointer, record: UnsafeMutablePointer<RAMRecord>)
    {
        let first = address.rawValue
        guard let record = ram(containing: first), record.pointee.last &- first >= byteCount &- 1
        else { throw .unassigned(address) }
        let host = record.pointee.host + Int(truncatingIfNeeded: first &- record.pointee.first)
        // The host's address matters too: a peer's file need not be shared from an aligned offset on, and across
        // two cache lines nothing is atomic.
        guard (first | UInt64(UInt(bitPattern: host))) & (alignment &- 1) == 0 else {
            throw .refused(address, .misaligned)
        }
        return (host, record)
    }

    @inline(__always)
    func locateForStore(_ byteCount: UInt64, at address: PhysicalAddress, alignment: UInt64) throws(BusError)
        -> (host: UnsafeMutableRawPointer, record: UnsafeMutablePointer<RAMRecord>)
    {
        let place = try locate(byteCount, at: address, alignment: alignment)
        guard place.record.pointee.isWritable else { throw .readOnly(address) }
        guard !place.record.pointee.isLost else { throw .lost(address) }
        return place
    }
}

extension SystemBus {
    /// Reads an aligned 64-bit word of RAM, single-copy atomic, with acquire ordering.
    ///
    /// - Throws: ``BusError``: `.unassigned` where no RAM is (a register window included), `.refused` where the
    ///   address is not a multiple of 8, `.lost`.
    public func loadRAM64(at address: PhysicalAddress) throws(BusError) -> UInt64 {
        let map = snapshot
        guard !map.pointee.isRemote(address) else { return try map.pointee.loadRemote(8, at: address) }
        let (host, record) = try map.pointee.locate(8, at: address, alignment: 8)
        let value = smmud_load_u64(host)
        guard !record.pointee.isLost else { throw .lost(address) }
        return value
    }

    /// Reads two consecutive words, each as ``loadRAM64(at:)`` does, in no particular order.
    public func loadRAM64x2(at address: PhysicalAddress) throws(BusError) -> SIMD2<UInt64> {
        let map = snapshot
        guard !map.pointee.isRemote(address) else {
            var words = SIMD2<UInt64>()
            for index in 0..<2 { words[index] = try map.pointee.loadRemoteWord(index, after: address) }
            return words
        }
        let (host, record) = try map.pointee.locate(16, at: address, alignment: 8)
        let value = SIMD2(smmud_load_u64(host), smmud_load_u64(host + 8))
        guard !record.pointee.isLost else { throw .lost(address) }
        return value
    }

    /// Reads eight consecutive words, each as ``loadRAM64(at:)`` does, in no particular order.
    public func loadRAM64x8(at address: PhysicalAddress) throws(BusError) -> SIMD8<UInt64> {
        let map = snapshot
        guard !map.pointee.isRemote(address) else {
            var words = SIMD8<UInt64>()
            for index in 0..<8 { words[index] = try map.pointee.loadRemoteWord(index, after: address) }
            return words
        }
        let (host, record) = try map.pointee.locate(64, at: address, alignment: 8)
        let value = SIMD8(
            smmud_load_u64(host),
            smmud_load_u64(host + 8),
            smmud_load_u64(host + 16),
            smmud_load_u64(host + 24),
            smmud_load_u64(host + 32),
            smmud_load_u64(host + 40),
            smmud_load_u64(host + 48),
            smmud_load_u64(host + 56)
        )
        guard !record.pointee.isLost else { throw .lost(address) }
        return value
    }

    /// Writes an aligned 64-bit word of RAM, single-copy atomic, with release ordering.
    ///
    /// - Throws: ``BusError``: `.unassigned` where no RAM is (a register window included), `.refused` where the
    ///   address is not a multiple of 8, `.readOnly`, `.lost`.
    public func storeRAM64(_ value: UInt64, at address: PhysicalAddress) throws(BusError) {
        let map = snapshot
        guard !map.pointee.isRemote(address) else {
            return try map.pointee.storeRemote(value, 8, at: address)
        }
        let (host, record) = try map.pointee.locateForStore(8, at: address, alignment: 8)
        smmud_store_u64(host, value)
        guard !record.pointee.isLostByNow else { throw .lost(address) }
    }

    /// Writes an aligned 32-bit word of RAM, as ``storeRAM64(_:at:)`` does.
    public func storeRAM32(_ value: UInt32, at address: PhysicalAddress) throws(BusError) {
        let map = snapshot
        guard !map.pointee.isRemote(address) else {
            return try map.pointee.storeRemote(UInt64(value), 4, at: address)
        }
        let (host, record) = try map.pointee.locateForStore(4, at: address, alignment: 4)
        smmud_store_u32(host, value)
        guard !record.pointee.isLostByNow else { throw .lost(address) }
    }

    /// Writes four consecutive words, each as ``storeRAM64(_:at:)`` does, in ascending order.
    public func storeRAM64x4(_ value: SIMD4<UInt64>, at address: PhysicalAddress) throws(BusError) {
        let map = snapshot
        guard !map.pointee.isRemote(address) else {
            for index in 0..<4 { try map.pointee.storeRemoteWord(value[index], index, after: address) }
            return
        }
        let (host, record) = try map.pointee.locateForStore(32, at: address, alignment: 8)
        smmud_store_u64(host, value[0])
        smmud_store_u64(host + 8, value[1])
        smmud_store_u64(host + 16, value[2])
        smmud_store_u64(host + 24, value[3])
        guard !record.pointee.isLostByNow else { throw .lost(address) }
    }

    /// The host's pointer to `count` bytes of RAM in one piece.
    ///
    /// The caller is an access under way for as long as it uses the pointer. An access through it to memory that a
    /// peer has truncated reads zeroes: `ramSlice(containing:)?.region.isLost` tells afterwards.
    ///
    /// - Returns: Nil where the bytes are not all in one entry of RAM, it is lost, or is not writable and `access`
    ///   is ``MemoryAccess/write``.
    public func hostPointer(at address: PhysicalAddress, count: Int, for access: MemoryAccess = .write)
        -> UnsafeMutableRawPointer?
    {
        let first = address.rawValue
        guard count >= 0, let record = snapshot.pointee.ram(containing: first),
            count == 0 || record.pointee.last &- first >= UInt64(count) &- 1,
            access == .read || record.pointee.isWritable, !record.pointee.isLost
        else { return nil }
        return record.pointee.host + Int(truncatingIfNeeded: first &- record.pointee.first)
    }
}

// MARK: Bytes

/// How many of `remaining` bytes from `address` on lie no further than `last`.
@inline(__always)
func chunkOf(_ remaining: UInt64, from address: UInt64, upTo last: UInt64) -> UInt64 {
    // Without adding 1 to the distance where that is the whole space.
    let distance = last &- address
    return remaining &- 1 <= distance ? remaining : distance &+ 1
}

extension BusSnapshot {
    /// Where the bytes after `count` at `address` are; of no meaning where there are none.
    ///
    /// - Throws: ``BusError`` where bytes that follow would leave the 64-bit space, at the last address that there
    ///   is: the one that they need has no name.
    @inline(__always)
    static func step(from address: UInt64, by count: UInt64, isLast: Bool) throws(BusError) -> UInt64 {
        let (sum, overflow) = address.addingReportingOverflow(count)
        guard !overflow || isLast else { throw .unassigned(PhysicalAddress(.max)) }
        return sum
    }
}

extension SystemBus {
    /// Reads bytes of RAM, and of register windows in aligned accesses of at most 8 bytes, little-endian.
    ///
    /// The bytes may run over adjacent entries. An aligned piece of 1, 2, 4 or 8 bytes is single-copy atomic. Reading
    /// none always succeeds.
    ///
    /// - Throws: ``BusError`` with the address of the first byte that got no answer; the bytes before it may have
    ///   been read.
    public func copyOut(at address: PhysicalAddress, into buffer: UnsafeMutableRawBufferPointer)
        throws(BusError)
    {
        try Self.copyOut(at: address, into: buffer, in: snapshot)
    }

    /// The same in a map that the caller keeps alive.
    static func copyOut(
        at address: PhysicalAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        in map: UnsafeMutablePointer<BusSnapshot>
    ) throws(BusError) {
        guard var host = buffer.baseAddress else { return }
        var remaining = UInt64(buffer.count)
        var next = address.rawValue
        while remaining > 0 {
            let count: UInt64
            if let record = map.pointee.ram(containing: next) {
                count = chunkOf(remaining, from: next, upTo: record.pointee.last)
                smmud_copy_from_shared(host, record.pointee.hostPointer(to: next), Int(count))
                guard !record.pointee.isLostByNow else { throw .lost(PhysicalAddress(next)) }
            } else if let record = map.pointee.window(containing: next) {
                count = try record.pointee.copyOut(at: next, to: host, upTo: remaining)
            } else if let record = map.pointee.remote(containing: next) {
                count = chunkOf(remaining, from: next, upTo: record.last)
                try record.read(at: next, into: UnsafeMutableRawBufferPointer(start: host, count: Int(count)))
            } else {
                throw .unassigned(PhysicalAddress(next))
            }
            remaining &-= count
            host += Int(count)
            next = try BusSnapshot.step(from: next, by: count, isLast: remaining == 0)
        }
    }

    /// Writes bytes to RAM, and to register windows in aligned accesses of at most 8 bytes, little-endian.
    ///
    /// The bytes may run over adjacent entries. An aligned piece of 1, 2, 4 or 8 bytes is single-copy atomic. Writing
    /// none always succeeds.
    ///
    /// - Throws: ``BusError`` with the address of the first byte that was not taken; the bytes before it may have
    ///   been written.
    public func copyIn(_ buffer: UnsafeRawBufferPointer, at address: PhysicalAddress) throws(BusError) {
        try Self.copyIn(buffer, at: address, in: snapshot)
    }

    /// The same in a map that the caller keeps alive.
    static func copyIn(
        _ buffer: UnsafeRawBufferPointer,
        at address: PhysicalAddress,
        in map: UnsafeMutablePointer<BusSnapshot>
    ) throws(BusError) {
        guard var host = buffer.baseAddress else { return }
        var remaining = UInt64(buffer.count)
        var next = address.rawValue
        while remaining > 0 {
            let count: UInt64
            if let record = map.pointee.ram(containing: next) {
                guard record.pointee.isWritable else { throw .readOnly(PhysicalAddress(next)) }
                guard !record.pointee.isLost else { throw .lost(PhysicalAddress(next)) }
                count = chunkOf(remaining, from: next, upTo: record.pointee.last)
                smmud_copy_to_shared(record.pointee.hostPointer(to: next), host, Int(count))
                guard !record.pointee.isLostByNow else { throw .lost(PhysicalAddress(next)) }
            } else if let record = map.pointee.window(containing: next) {
                count = try record.pointee.copyIn(host, at: next, upTo: remaining)
            } else if let record = map.pointee.remote(containing: next) {
                count = chunkOf(remaining, from: next, upTo: record.last)
                try record.write(UnsafeRawBufferPointer(start: host, count: Int(count)), at: next)
            } else {
                throw .unassigned(PhysicalAddress(next))
            }
            remaining &-= count
            host += Int(count)
            next = try BusSnapshot.step(from: next, by: count, isLast: remaining == 0)
        }
    }
}

extension RAMRecord {
    @inline(__always)
    func hostPointer(to address: UInt64) -> UnsafeMutableRawPointer {
        host + Int(truncatingIfNeeded: address &- first)
    }
}

extension WindowRecord {
    /// Reads the widest piece that fits at `address`, which is in the window, and says how many bytes it was.
    func copyOut(at address: UInt64, to host: UnsafeMutableRawPointer, upTo limit: UInt64) throws(BusError)
        -> UInt64
    {
        let width = AccessWidth(widestAt: address, upTo: chunkOf(limit, from: address, upTo: last))
        let value = try read(width, at: address)
        withUnsafeBytes(of: value.littleEndian) { bytes in
            if let base = bytes.baseAddress { host.copyMemory(from: base, byteCount: width.rawValue) }
        }
        return UInt64(width.rawValue)
    }

    /// Writes the widest piece that fits at `address`, which is in the window, and says how many bytes it was.
    func copyIn(_ host: UnsafeRawPointer, at address: UInt64, upTo limit: UInt64) throws(BusError) -> UInt64 {
        let width = AccessWidth(widestAt: address, upTo: chunkOf(limit, from: address, upTo: last))
        var value: UInt64 = 0
        withUnsafeMutableBytes(of: &value) { bytes in
            bytes.baseAddress?.copyMemory(from: host, byteCount: width.rawValue)
        }
        try write(UInt64(littleEndian: value), width, at: address)
        return UInt64(width.rawValue)
    }

    /// Reads a register; `address` is in the window.
    func read(_ width: AccessWidth, at address: UInt64) throws(BusError) -> UInt64 {
        guard last &- address >= UInt64(width.rawValue) &- 1 else {
            throw .unassigned(PhysicalAddress(address))
        }
        var value: UInt64 = 0
        // The box and its target are not counted: the caller keeps the map.
        let failure: RegisterAccessError? = box._withUnsafeGuaranteedRef { box in
            do throws(RegisterAccessError) {
                value = try box.target.read(at: address &- first, width: width)
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw .refused(PhysicalAddress(address), failure) }
        return value
    }

    /// Writes a register; `address` is in the window.
    func write(_ value: UInt64, _ width: AccessWidth, at address: UInt64) throws(BusError) {
        guard last &- address >= UInt64(width.rawValue) &- 1 else {
            throw .unassigned(PhysicalAddress(address))
        }
        let failure: RegisterAccessError? = box._withUnsafeGuaranteedRef { box in
            do throws(RegisterAccessError) {
                try box.target.write(value, at: address &- first, width: width)
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw .refused(PhysicalAddress(address), failure) }
    }
}

extension AccessWidth {
    /// The widest access that is aligned at `address` and takes no more than `limit` bytes, of which there is one.
    init(widestAt address: UInt64, upTo limit: UInt64) {
        if address & 7 == 0, limit >= 8 {
            self = .doubleword
        } else if address & 3 == 0, limit >= 4 {
            self = .word
        } else if address & 1 == 0, limit >= 2 {
            self = .halfword
        } else {
            self = .byte
        }
    }
}
