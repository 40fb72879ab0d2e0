// How a machine is built beyond what its device tree says.

package import IOMMU
package import SMMUv3

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
    package typealias SMMUProfile = IdentificationProfile

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
    /// The own driver's kernel command line, as `iommu.strict=0`; docs/iommu.md has what it may say.
    package var append = ""
    /// Time as the own driver sees it; a test brings its own.
    package var driverClock: any DriverClock = MonotonicClock()
    /// Hears of what goes wrong with a device while it runs, for a log: on any thread, and not endlessly of any device.
    package var report: @Sendable (String) -> Void = { _ in }

    package init() {}
}

/// Why no machine could be built from a device tree that is all right in itself.
package struct MachineError: Error, CustomStringConvertible, Sendable {
    package let description: String

    package init(_ description: String) { self.description = description }
}
