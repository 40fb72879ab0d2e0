// sva.*: devices that work in clients' own address spaces.

/// A device that is bound to a client's address space.
package struct SVABondInfo: Codable, Sendable, Equatable {
    /// The client's number.
    package var process: Int
    /// The endpoint's name.
    package var device: String
    /// The SubstreamID that reaches the address space: its PASID.
    package var substream: Hex
    /// The ASID of its translations.
    package var asid: Hex

    package init(process: Int, device: String, substream: Hex, asid: Hex) {
        self.process = process
        self.device = device
        self.substream = substream
        self.asid = asid
    }
}

/// Part of a client's address space.
package struct SVAAreaInfo: Codable, Sendable, Equatable {
    /// The client's virtual address.
    package var address: Hex
    /// In bytes.
    package var length: Size
    /// What devices may do.
    package var permissions: Permissions

    package init(address: Hex, length: Size, permissions: Permissions) {
        self.address = address
        self.length = length
        self.permissions = permissions
    }
}

/// A client's address space.
package struct SVAProcessInfo: Codable, Sendable, Equatable {
    /// The client's number.
    package var process: Int
    /// By address.
    package var areas: [SVAAreaInfo]
    /// How many pages of 4 KiB devices reach now.
    package var residentPages: Size
    /// How many pages faults brought in.
    package var broughtIn: Size
    /// How many faults were on pages that were there already.
    package var spurious: Size
    /// How many faults were refused.
    package var refused: Size

    package init(
        process: Int,
        areas: [SVAAreaInfo],
        residentPages: Size,
        broughtIn: Size,
        spurious: Size,
        refused: Size
    ) {
        self.process = process
        self.areas = areas
        self.residentPages = residentPages
        self.broughtIn = broughtIn
        self.spurious = spurious
        self.refused = refused
    }
}

/// What became of the faults of one SMMU's devices.
package struct PageFaultInfo: Codable, Sendable, Equatable {
    /// The SMMU's path.
    package var smmu: String
    /// Stalled transactions and page requests that came.
    package var reported: Size
    /// Groups of them that were answered with success.
    package var succeeded: Size
    /// Groups that a handler refused.
    package var refused: Size
    /// Groups that nobody handles.
    package var unhandled: Size
    /// Page requests of groups that never became complete.
    package var discarded: Size

    package init(
        smmu: String,
        reported: Size,
        succeeded: Size,
        refused: Size,
        unhandled: Size,
        discarded: Size
    ) {
        self.smmu = smmu
        self.reported = reported
        self.succeeded = succeeded
        self.refused = refused
        self.unhandled = unhandled
        self.discarded = discarded
    }
}

extension Methods {
    /// Lists clients' address spaces, the devices that are bound to them, and what became of faults.
    package enum SVAList: ControlMethod {
        package static let name = "sva.list"
        package typealias Parameters = Nothing
        package struct Result: Codable, Sendable, Equatable {
            /// By number.
            package var processes: [SVAProcessInfo]
            package var bonds: [SVABondInfo]
            /// One for each SMMU that the own driver runs.
            package var faults: [PageFaultInfo]

            package init(processes: [SVAProcessInfo], bonds: [SVABondInfo], faults: [PageFaultInfo]) {
                self.processes = processes
                self.bonds = bonds
                self.faults = faults
            }
        }
    }

    /// Has a device work in a client's address space.
    package enum SVABind: ControlMethod {
        package static let name = "sva.bind"
        package struct Parameters: Codable, Sendable, Equatable {
            /// The client's number.
            package var process: Int
            /// An endpoint's name or one of its aliases.
            package var device: String

            package init(process: Int, device: String) {
                self.process = process
                self.device = device
            }
        }
        package typealias Result = SVABondInfo
    }

    /// The reverse: when this is answered the device reaches the address space no more, if it was bound once.
    package enum SVAUnbind: ControlMethod {
        package static let name = "sva.unbind"
        package typealias Parameters = SVABind.Parameters
        package typealias Result = Nothing
    }
}
