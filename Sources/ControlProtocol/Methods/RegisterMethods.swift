// Registers by name, and loads and stores on the bus.

extension Methods {
    /// Reads one register of an SMMU.
    package enum RegisterRead: ControlMethod {
        package static let name = "register.read"
        package struct Parameters: Codable, Sendable, Equatable {
            /// May be left out on a board with one.
            package var smmu: SMMUSelector?
            /// A name with or without `SMMU_`, in any case of letters, or an offset from the SMMU's base.
            package var register: RegisterSelector
            /// 32 or 64 bits; the register's own width unless given, 32 for a bare offset.
            package var width: Int?

            package init(smmu: SMMUSelector? = nil, register: RegisterSelector, width: Int? = nil) {
                self.smmu = smmu
                self.register = register
                self.width = width
            }
        }
        package typealias Result = RegisterInfo
    }

    /// Writes one register of an SMMU, as a store on the bus would.
    package enum RegisterWrite: ControlMethod {
        package static let name = "register.write"
        package struct Parameters: Codable, Sendable, Equatable {
            /// May be left out on a board with one.
            package var smmu: SMMUSelector?
            /// A name with or without `SMMU_`, in any case of letters, or an offset from the SMMU's base.
            package var register: RegisterSelector
            /// 32 or 64 bits; the register's own width unless given, 32 for a bare offset.
            package var width: Int?
            package var value: Hex

            package init(
                smmu: SMMUSelector? = nil,
                register: RegisterSelector,
                width: Int? = nil,
                value: Hex
            ) {
                self.smmu = smmu
                self.register = register
                self.width = width
                self.value = value
            }
        }
        package typealias Result = Nothing
    }

    /// Reads all registers that have a name.
    package enum RegisterList: ControlMethod {
        package static let name = "register.list"
        package struct Parameters: Codable, Sendable, Equatable {
            /// May be left out on a board with one.
            package var smmu: SMMUSelector?

            package init(smmu: SMMUSelector? = nil) {
                self.smmu = smmu
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// The SMMU's path.
            package var smmu: String
            /// By offset.
            package var registers: [RegisterInfo]

            package init(smmu: String, registers: [RegisterInfo]) {
                self.smmu = smmu
                self.registers = registers
            }
        }
    }

    /// One load on the bus: a register's or RAM's, single-copy atomic.
    package enum BusLoad: ControlMethod {
        package static let name = "bus.load"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Physical, aligned to the width.
            package var address: Hex
            /// 8, 16, 32 or 64 bits; 32 unless given.
            package var width: Int?

            package init(address: Hex, width: Int? = nil) {
                self.address = address
                self.width = width
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            package var value: Hex

            package init(value: Hex) {
                self.value = value
            }
        }
    }

    /// One store on the bus: a register's or RAM's, single-copy atomic.
    package enum BusStore: ControlMethod {
        package static let name = "bus.store"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Physical, aligned to the width.
            package var address: Hex
            /// 8, 16, 32 or 64 bits; 32 unless given.
            package var width: Int?
            package var value: Hex

            package init(address: Hex, width: Int? = nil, value: Hex) {
                self.address = address
                self.width = width
                self.value = value
            }
        }
        package typealias Result = Nothing
    }
}

/// Which register: its name or its offset.
package enum RegisterSelector: Hashable, Sendable, Codable {
    case name(String)
    case offset(UInt64)

    /// A number is an offset; everything else is a name.
    package init(_ text: String) {
        if let offset = NumberText.value(of: text) { self = .offset(offset) } else { self = .name(text) }
    }

    package init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let offset = try? container.decode(UInt64.self) {
            self = .offset(offset)
        } else if let text = try? container.decode(String.self) {
            self.init(text)
        } else {
            throw DecodingError.dataCorruptedError(
                in: container,
                debugDescription: "expected a register's name or its offset"
            )
        }
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .name(let name): try container.encode(name)
        case .offset(let offset): try container.encode(Hex(offset))
        }
    }
}

/// A register and what it held.
package struct RegisterInfo: Codable, Sendable, Equatable {
    /// `SMMU_CR0`; nil where nothing is known at the offset.
    package var name: String?
    /// From the SMMU's base.
    package var offset: Hex
    /// 32 or 64 bits.
    package var width: Int
    package var value: Hex
    /// Its fields, highest first.
    package var fields: [FieldInfo]

    package init(name: String? = nil, offset: Hex, width: Int, value: Hex, fields: [FieldInfo] = []) {
        self.name = name
        self.offset = offset
        self.width = width
        self.value = value
        self.fields = fields
    }
}
