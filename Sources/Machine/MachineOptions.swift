// How a machine is built beyond what its device tree says.

package import SMMUv3
import SMMUv3Spec

/// Choices of whoever runs a machine.
package struct MachineOptions: Sendable {
    /// Who drives the SMMUs.
    package enum Driver: String, Sendable, CaseIterable {
        /// The machine's own driver, ``IOMMU``.
        case own
        /// Nobody here: they stay as reset leaves them, for a driver outside.
        case none
    }

    /// Where RAM is.
    package enum Memory: String, Sendable, CaseIterable {
        /// The machine's own, at the device tree's `memory` nodes.
        case own
        /// What vfio-user clients lend, at the physical addresses that they name: a guest's.
        case client
    }

    /// What every SMMU says it can do.
    package enum SMMUProfile: String, Sendable, CaseIterable {
        /// SMMUv3.2 with stage 1 alone.
        case stage1
        /// SMMUv3.3 with stage 2 alone.
        case stage2
        /// SMMUv3.3 with all that the model implements: both stages, nested, EL2, HTTU.
        case full
        /// The same with 52-bit addresses.
        case full52

        /// The identification registers.
        func identification(streamIDBits: UInt8, isCoherent: Bool) -> Identification {
            switch self {
            case .stage1: return .stage1(streamIDBits: streamIDBits, isCoherent: isCoherent)
            case .stage2:
                var result = Identification.full(streamIDBits: streamIDBits, isCoherent: isCoherent)
                result.idr0.s1P = false
                // What stage 1 alone has.
                result.idr0.cd2L = false
                result.idr0.hyp = false
                result.idr1.ssidsize = 0
                result.idr3.had = false
                result.idr3.e0pd = false
                return result
            case .full: return .full(streamIDBits: streamIDBits, isCoherent: isCoherent)
            case .full52:
                return .full(streamIDBits: streamIDBits, isCoherent: isCoherent, outputAddressBits: 52)
            }
        }
    }

    package var driver = Driver.own
    package var smmuProfile = SMMUProfile.stage1
    package var memory = Memory.own
    /// Whether PCIe functions are offered to vfio-user clients, instead of standing on the machine's own buses.
    package var offersFunctions = false
    /// Devices beside those that the device tree names itself.
    package var devices: [DeviceSpecification] = []
    /// Cache sizes and choices of every SMMU.
    package var smmu = SMMUv3Options()
    /// How many translations the ATC of each function with ATS holds; with 0 it asks for none.
    package var atcEntries = 64
    /// The smallest pages that the own driver maps, in bytes: 4096, 16384 or 65536.
    package var pageBytes = 4096
    /// Hears of what goes wrong with a device while it runs, for a log: on any thread, and not endlessly of any device.
    package var report: @Sendable (String) -> Void = { _ in }

    package init() {}
}

/// Why no machine could be built from a device tree that is all right in itself.
package struct MachineError: Error, CustomStringConvertible, Sendable {
    package let description: String

    package init(_ description: String) { self.description = description }
}
