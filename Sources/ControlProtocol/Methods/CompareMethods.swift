// Strict beside lazy: the same buffers unmapped in both ways.

extension Methods {
    /// Maps buffers for a device, has it reach them, unmaps them: in a strict domain, and again in a lazy one.
    package enum IOMMUCompare: ControlMethod {
        package static let name = "iommu.compare"
        package struct Parameters: Codable, Sendable, Equatable {
            /// An endpoint's name or one of its aliases; nobody may use its group meanwhile.
            package var device: String
            /// How many buffers, 1 to 4096; 64 unless given.
            package var buffers: Int?
            /// Bytes of each, up to 1 MiB; 4096 unless given.
            package var length: Size?

            package init(device: String, buffers: Int? = nil, length: Size? = nil) {
                self.device = device
                self.buffers = buffers
                self.length = length
            }
        }
        package struct Result: Codable, Sendable, Equatable {
            /// The endpoint's name.
            package var device: String
            package var smmu: String
            package var buffers: Int
            /// Bytes of each.
            package var length: Size
            package var strict: UnmapModeInfo
            package var lazy: UnmapModeInfo

            package init(
                device: String,
                smmu: String,
                buffers: Int,
                length: Size,
                strict: UnmapModeInfo,
                lazy: UnmapModeInfo
            ) {
                self.device = device
                self.smmu = smmu
                self.buffers = buffers
                self.length = length
                self.strict = strict
                self.lazy = lazy
            }
        }
    }
}

/// What unmapping in one way took, and what it left open.
package struct UnmapModeInfo: Codable, Sendable, Equatable {
    /// `DMA` or `DMA-FQ`.
    package var type: String
    /// What the SMMU was sent from the first map to the last unmap, by opcode, by anybody.
    package var commands: [OpcodeCount]
    package var total: UInt64
    /// What the flush sent that closed the window; nothing where none was needed.
    package var flush: [OpcodeCount]
    /// How often DMA to the buffer that was unmapped last still came through.
    package var hits: UInt64
    /// From the return of that unmap to the DMA that faulted first, in nanoseconds; left out where none did in time.
    package var windowNanoseconds: Size?
    /// The event with which it faulted: `F_TRANSLATION`.
    package var fault: String?

    package init(
        type: String,
        commands: [OpcodeCount],
        total: UInt64,
        flush: [OpcodeCount],
        hits: UInt64,
        windowNanoseconds: Size? = nil,
        fault: String? = nil
    ) {
        self.type = type
        self.commands = commands
        self.total = total
        self.flush = flush
        self.hits = hits
        self.windowNanoseconds = windowNanoseconds
        self.fault = fault
    }
}
