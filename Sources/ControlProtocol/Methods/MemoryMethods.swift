// RAM as a CPU sees it.

extension Methods {
    /// Reads RAM.
    package enum MemoryRead: ControlMethod {
        package static let name = "memory.read"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Physical.
            package var address: Hex
            /// In bytes.
            package var length: Size

            package init(address: Hex, length: Size) {
                self.address = address
                self.length = length
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            package var data: ByteString

            package init(data: ByteString) {
                self.data = data
            }
        }
    }

    /// Writes RAM.
    package enum MemoryWrite: ControlMethod {
        package static let name = "memory.write"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Physical.
            package var address: Hex
            package var data: ByteString

            package init(address: Hex, data: ByteString) {
                self.address = address
                self.data = data
            }
        }
        package typealias Result = Nothing
    }

    /// Fills RAM with one byte.
    package enum MemoryFill: ControlMethod {
        package static let name = "memory.fill"
        package struct Parameters: Codable, Sendable, Equatable {
            /// Physical.
            package var address: Hex
            /// In bytes.
            package var length: Size
            /// 0 unless given.
            package var byte: UInt8?

            package init(address: Hex, length: Size, byte: UInt8? = nil) {
                self.address = address
                self.length = length
                self.byte = byte
            }
        }
        package typealias Result = Nothing
    }

    /// Takes RAM that nobody uses.
    package enum MemoryAllocate: ControlMethod {
        package static let name = "memory.allocate"
        package struct Parameters: Codable, Sendable, Equatable {
            /// In bytes; rounded up to whole pages of 4 KiB.
            package var length: Size
            /// A power of two; 4096 unless given.
            package var alignment: Size?

            package init(length: Size, alignment: Size? = nil) {
                self.length = length
                self.alignment = alignment
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// Physical.
            package var address: Hex
            /// In bytes, as rounded up.
            package var length: Size

            package init(address: Hex, length: Size) {
                self.address = address
                self.length = length
            }
        }
    }

    /// Gives RAM back.
    package enum MemoryFree: ControlMethod {
        package static let name = "memory.free"
        package struct Parameters: Codable, Sendable, Equatable {
            /// What ``MemoryAllocate`` answered.
            package var address: Hex

            package init(address: Hex) {
                self.address = address
            }
        }
        package typealias Result = Nothing
    }
}
