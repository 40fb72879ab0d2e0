// A BAR, or as much of it as the windows above let through, on the physical bus.

import DeviceModel
import PCIFunction

/// Answers a CPU's accesses to one BAR.
final class BARWindow: RegisterTarget {
    private let function: PCIFunction
    private let bar: Int
    /// Where in the BAR the window begins.
    private let start: UInt64

    init(_ function: PCIFunction, bar: Int, start: UInt64) {
        self.function = function
        self.bar = bar
        self.start = start
    }

    // What the function does not support ends in an Unsupported Request: the root complex reads 1s then, and
    // nobody hears of a write. What is not aligned no CPU sends to device memory.

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard offset.isMultiple(of: UInt64(width.rawValue)) else { throw .misaligned }
        do throws(RegisterAccessError) {
            return try function.readBAR(bar, at: start &+ offset, width: width)
        } catch {
            return width.allOnes
        }
    }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard offset.isMultiple(of: UInt64(width.rawValue)) else { throw .misaligned }
        try? function.writeBAR(bar, value, at: start &+ offset, width: width)
    }
}
