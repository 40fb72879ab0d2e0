// Memory that a device and its driver share for long: dma_alloc_coherent.

extension Methods {
    /// Allocates zeroed memory and maps it for a device, as a driver of the device would have it.
    package enum IOMMUAllocate: ControlMethod {
        package static let name = "iommu.allocate"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases; its group is in its default domain.
            package var device: String
            /// In bytes; rounded up to whole pages.
            package var length: Size
            /// The coherent mask: the last address that the device can drive, all ones; 32 bits unless given.
            package var mask: Hex?

            package init(device: String, length: Size, mask: Hex? = nil) {
                self.device = device
                self.length = length
                self.mask = mask
            }
        }
        package typealias Result = CoherentBufferInfo
    }

    /// Gives memory of ``IOMMUAllocate`` back.
    package enum IOMMUFree: ControlMethod {
        package static let name = "iommu.free"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases.
            package var device: String
            /// Where the device sees it.
            package var iova: Hex

            package init(device: String, iova: Hex) {
                self.device = device
                self.iova = iova
            }
        }
        package typealias Result = Nothing
    }
}

/// Coherent memory of a device.
package struct CoherentBufferInfo: Codable, Sendable, Equatable {
    /// The endpoint's name.
    package var device: String
    /// Where the device sees all of it in one piece.
    package var iova: Hex
    /// In bytes, as it was asked for.
    package var length: Size
    /// Where it is in physical memory, in the order of the device's addresses.
    package var pieces: [RangeInfo]

    package init(device: String, iova: Hex, length: Size, pieces: [RangeInfo]) {
        self.device = device
        self.iova = iova
        self.length = length
        self.pieces = pieces
    }
}
