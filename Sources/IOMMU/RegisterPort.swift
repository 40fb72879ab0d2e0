// The SMMU's registers as the driver reads and writes them.

import AddressSpace
import DeviceModel
import SMMUv3Spec

/// One SMMU's register window, reached through the bus.
struct RegisterPort: Sendable {
    let access: any PhysicalAccess
    let base: PhysicalAddress
    /// Where page 1 is: 0x10000 on, or page 0 itself (`cavium,cn9900-broken-page1-regspace`).
    let page1: UInt64
    let trace: DriverTrace?
    let clock: any DriverClock

    func read32(_ offset: UInt64) throws(SMMUDriverError) -> UInt32 {
        do {
            let value = try access.load(.word, at: address(offset))
            trace?.note(.read(offset, value))
            return UInt32(truncatingIfNeeded: value)
        } catch { throw .bus(error) }
    }

    func write32(_ offset: UInt64, _ value: UInt32) throws(SMMUDriverError) {
        trace?.note(.write32(offset, value))
        do { try access.store(UInt64(value), .word, at: address(offset)) } catch { throw .bus(error) }
    }

    func write64(_ offset: UInt64, _ value: UInt64) throws(SMMUDriverError) {
        trace?.note(.write64(offset, value))
        do { try access.store(value, .doubleword, at: address(offset)) } catch { throw .bus(error) }
    }

    /// Writes a register and waits until its acknowledgement says the same.
    func write32(_ offset: UInt64, _ value: UInt32, acknowledgedBy ack: UInt64, named name: String)
        throws(SMMUDriverError)
    {
        try write32(offset, value)
        _ = try wait(for: name, at: ack, until: value)
    }

    /// Waits until the masked register has this value.
    ///
    /// - Returns: The whole register as it was then.
    func wait(for name: String, at offset: UInt64, mask: UInt32 = .max, until value: UInt32)
        throws(SMMUDriverError) -> UInt32
    {
        var deadline = Deadline(clock)
        while true {
            let isLast = !deadline.wait()
            let found = try read32(offset)
            if found & mask == value { return found }
            if isLast { throw .registerTimeout(register: name, expected: value, found: found) }
        }
    }

    /// The window lies within the physical address space, which probe has checked.
    private func address(_ offset: UInt64) -> PhysicalAddress {
        let isPage1 = offset >= RegisterOffset.page1
        return PhysicalAddress(base.rawValue &+ (isPage1 ? offset &- RegisterOffset.page1 &+ page1 : offset))
    }
}
