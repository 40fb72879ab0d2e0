// The daemon's own IOMMU driver: what it maps for whom.

extension Methods {
    /// Maps memory for an endpoint.
    package enum IOMMUMap: ControlMethod {
        package static let name = "iommu.map"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases.
            package var device: String
            /// Where the device is to see it; the driver chooses unless given.
            package var iova: Hex?
            /// Physical; memory is allocated unless given, and freed when it is unmapped.
            package var address: Hex?
            /// In bytes; rounded up to whole pages of the domain.
            package var length: Size
            /// `rw` unless given.
            package var permissions: Permissions?
            /// A SubstreamID of the device; none unless given.
            package var substream: Hex?

            package init(
                device: String,
                iova: Hex? = nil,
                address: Hex? = nil,
                length: Size,
                permissions: Permissions? = nil,
                substream: Hex? = nil
            ) {
                self.device = device
                self.iova = iova
                self.address = address
                self.length = length
                self.permissions = permissions
                self.substream = substream
            }
        }
        package typealias Result = MappingInfo
    }

    /// Unmaps memory.
    ///
    /// When this is answered, the device does not reach it any more.
    package enum IOMMUUnmap: ControlMethod {
        package static let name = "iommu.unmap"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases.
            package var device: String
            package var iova: Hex
            /// In bytes; the whole mapping that starts at `iova` unless given.
            package var length: Size?
            package var substream: Hex?

            package init(device: String, iova: Hex, length: Size? = nil, substream: Hex? = nil) {
                self.device = device
                self.iova = iova
                self.length = length
                self.substream = substream
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// In bytes.
            package var unmapped: Size

            package init(unmapped: Size) {
                self.unmapped = unmapped
            }
        }
    }

    /// Lists what is mapped for an endpoint.
    package enum IOMMUMappings: ControlMethod {
        package static let name = "iommu.mappings"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases; all endpoints unless given.
            package var device: String?

            package init(device: String? = nil) {
                self.device = device
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// By device, then by address.
            package var mappings: [MappingInfo]

            package init(mappings: [MappingInfo]) {
                self.mappings = mappings
            }
        }
    }

    /// Puts an endpoint, and its group, into another domain.
    package enum IOMMUAttach: ControlMethod {
        package static let name = "iommu.attach"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases.
            package var device: String
            package var domain: DomainName

            package init(device: String, domain: DomainName) {
                self.device = device
                self.domain = domain
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// The endpoint's name.
            package var device: String
            package var domain: DomainName
            /// Everyone who came along, because the hardware cannot tell them apart: the endpoint's group.
            package var group: [String]

            package init(device: String, domain: DomainName, group: [String] = []) {
                self.device = device
                self.domain = domain
                self.group = group
            }
        }
    }
}

/// Which domain: `dma`, `identity`, `blocked`, or the name of one that somebody made.
package struct DomainName: RawRepresentable, Hashable, Sendable, Codable {
    package let rawValue: String

    package init(rawValue: String) { self.rawValue = rawValue }

    /// The group's own.
    package static let dma = Self(rawValue: DomainKind.dma.rawValue)
    /// Physical memory, untranslated.
    package static let identity = Self(rawValue: DomainKind.identity.rawValue)
    /// Nothing.
    package static let blocked = Self(rawValue: DomainKind.blocked.rawValue)

    /// What kind it is; nil for a domain with a name of its own.
    package var kind: DomainKind? {
        switch self {
        case .dma: .dma
        case .identity: .identity
        case .blocked: .blocked
        default: nil
        }
    }
}

/// What a mapping permits: letters of `rwx`, and `p` for privileged transactions alone.
package struct Permissions: Hashable, Sendable, Codable {
    package var read: Bool
    package var write: Bool
    package var execute: Bool
    package var privileged: Bool

    package init(read: Bool, write: Bool, execute: Bool = false, privileged: Bool = false) {
        (self.read, self.write, self.execute, self.privileged) = (read, write, execute, privileged)
    }

    package static let readWrite = Self(read: true, write: true)

    /// `rw`, `r`, `wx`, `rwp`; nil where another letter is in it, or one twice, or neither of `rwx`.
    package init?(_ text: String) {
        let letters = Set(text)
        guard letters.count == text.count, letters.isSubset(of: "rwxp"), letters != ["p"], !letters.isEmpty
        else {
            return nil
        }
        self.init(
            read: letters.contains("r"),
            write: letters.contains("w"),
            execute: letters.contains("x"),
            privileged: letters.contains("p")
        )
    }

    package init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        guard let permissions = Self(try container.decode(String.self)) else {
            throw DecodingError.dataCorruptedError(
                in: container,
                debugDescription: "expected letters of \"rwx\", and \"p\" for privileged only, such as \"rw\""
            )
        }
        self = permissions
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

extension Permissions: CustomStringConvertible {
    package var description: String {
        (read ? "r" : "") + (write ? "w" : "") + (execute ? "x" : "") + (privileged ? "p" : "")
    }
}

/// Memory that an endpoint sees.
package struct MappingInfo: Codable, Sendable, Equatable {
    /// The endpoint's name.
    package var device: String
    /// Where the device sees it.
    package var iova: Hex
    /// Where it is in physical memory.
    package var address: Hex
    /// In bytes.
    package var length: Size
    package var permissions: Permissions
    package var substream: Hex?
    /// Whether the memory was allocated for it and goes with it.
    package var allocated: Bool

    package init(
        device: String,
        iova: Hex,
        address: Hex,
        length: Size,
        permissions: Permissions,
        substream: Hex? = nil,
        allocated: Bool = false
    ) {
        self.device = device
        self.iova = iova
        self.address = address
        self.length = length
        self.permissions = permissions
        self.substream = substream
        self.allocated = allocated
    }
}
