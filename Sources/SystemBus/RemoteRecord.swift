// Memory of a peer, answered as RAM is, by asking.

import AddressSpace
import DeviceModel

extension BusSnapshot {
    /// Whether a peer keeps what is at `address`; most machines have no such memory, and find out at once.
    @inline(__always)
    func isRemote(_ address: PhysicalAddress) -> Bool {
        remotes.count > 0 && remote(containing: address.rawValue) != nil
    }

    /// Reads an aligned word of up to 8 bytes.
    func loadRemote(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        let record = try locateRemote(byteCount, at: address)
        var value: UInt64 = 0
        var failure: BusError?
        withUnsafeMutableBytes(of: &value) { bytes in
            do throws(BusError) {
                try record.read(
                    at: address.rawValue,
                    into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount])
                )
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        return UInt64(littleEndian: value)
    }

    /// Writes an aligned word of up to 8 bytes.
    func storeRemote(_ value: UInt64, _ byteCount: Int, at address: PhysicalAddress) throws(BusError) {
        let record = try locateRemote(byteCount, at: address)
        var failure: BusError?
        withUnsafeBytes(of: value.littleEndian) { bytes in
            do throws(BusError) {
                try record.write(UnsafeRawBufferPointer(rebasing: bytes[..<byteCount]), at: address.rawValue)
            } catch {
                failure = error
            }
        }
        if let failure { throw failure }
    }

    func loadRemoteWord(_ index: Int, after address: PhysicalAddress) throws(BusError) -> UInt64 {
        try loadRemote(8, at: PhysicalAddress(address.rawValue &+ UInt64(8 * index)))
    }

    func storeRemoteWord(_ value: UInt64, _ index: Int, after address: PhysicalAddress) throws(BusError) {
        try storeRemote(value, 8, at: PhysicalAddress(address.rawValue &+ UInt64(8 * index)))
    }

    private func locateRemote(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> RemoteRecord
    {
        let first = address.rawValue
        guard let record = remote(containing: first), record.last &- first >= UInt64(byteCount) &- 1 else {
            throw .unassigned(address)
        }
        guard first & UInt64(byteCount - 1) == 0 else { throw .refused(address, .misaligned) }
        return record
    }
}

extension RemoteRecord {
    /// Fills `buffer` from `address` on; the bytes are all in this range.
    func read(at address: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(BusError) {
        guard box.takeUnretainedValue().memory.read(at: address &- first, into: buffer) else {
            throw .lost(PhysicalAddress(address))
        }
    }

    /// Writes `buffer` from `address` on; the bytes are all in this range.
    func write(_ buffer: UnsafeRawBufferPointer, at address: UInt64) throws(BusError) {
        let box = box.takeUnretainedValue()
        guard box.isWritable else { throw .readOnly(PhysicalAddress(address)) }
        guard box.memory.write(buffer, at: address &- first) else { throw .lost(PhysicalAddress(address)) }
    }
}
