// Short ways to say what a test expects.

import AddressSpace
import DeviceModel
import DeviceTree

/// A range from its first byte and its size.
func range(_ start: UInt64, _ byteCount: UInt64) -> AddressRange {
    guard let range = AddressRange(start: start, byteCount: byteCount) else {
        preconditionFailure("a test expects a range that cannot be")
    }
    return range
}

/// An SPI of a GIC with its INTID written out, so that nobody adds 32 but the code under test.
func spi(
    _ number: UInt32,
    id: UInt32,
    _ trigger: InterruptTrigger,
    of controller: String,
    moreCells: [UInt32] = []
) -> InterruptIdentity {
    let flags: UInt32 = trigger == .edgeRising ? 1 : 4
    return InterruptIdentity(
        controller: controller,
        specifier: [0, number, flags] + moreCells,
        interruptID: id,
        trigger: trigger
    )
}

extension SMMUv3Node {
    /// The identities by the names of the binding.
    var lines: [String: InterruptIdentity] {
        Dictionary(
            interrupts.map { ($0.role.rawValue, $0.identity) },
            uniquingKeysWith: { first, _ in first }
        )
    }
}

extension BoardDescription {
    /// The device at this path.
    func device(_ path: String) -> PlatformDevice? { devices.first { $0.path == path } }
}
