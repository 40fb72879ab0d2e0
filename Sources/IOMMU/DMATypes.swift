// The words of the DMA API: directions, attributes, what goes wrong, and what memory it works on.

package import AddressSpace
package import DeviceModel
package import IOPageTable

/// Which way the bytes of a mapping go.
///
/// Linux: enum dma_data_direction.
package enum DMADataDirection: String, Sendable, CaseIterable {
    /// DMA_BIDIRECTIONAL.
    case bidirectional
    /// DMA_TO_DEVICE: the device reads.
    case toDevice = "to-device"
    /// DMA_FROM_DEVICE: the device writes.
    case fromDevice = "from-device"

    /// As dma-debug prints it.
    var kernelName: String {
        switch self {
        case .bidirectional: "DMA_BIDIRECTIONAL"
        case .toDevice: "DMA_TO_DEVICE"
        case .fromDevice: "DMA_FROM_DEVICE"
        }
    }
}

/// Wishes beside the direction; the bits are those of Linux's `DMA_ATTR_*`.
///
/// Bits without a name here do nothing.
package struct DMAAttributes: OptionSet, Hashable, Sendable {
    package let rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// DMA_ATTR_SKIP_CPU_SYNC: the caller synchronises itself, so an unmap copies nothing back.
    package static let skipCPUSync = Self(rawValue: 1 << 5)
    /// DMA_ATTR_FORCE_CONTIGUOUS: coherent memory is contiguous in physical addresses too.
    package static let forceContiguous = Self(rawValue: 1 << 6)
    /// DMA_ATTR_ALLOC_SINGLE_PAGES: coherent memory is made of the smallest pages.
    package static let allocateSinglePages = Self(rawValue: 1 << 7)
    /// DMA_ATTR_NO_WARN: a refusal is no line of the log.
    package static let noWarn = Self(rawValue: 1 << 8)
    /// DMA_ATTR_PRIVILEGED: the device accesses it with privileged transactions alone.
    package static let privileged = Self(rawValue: 1 << 9)
    /// DMA_ATTR_MMIO: registers are mapped, not memory (dma_map_resource).
    package static let mmio = Self(rawValue: 1 << 10)
}

/// Why the DMA API refused; the kernel's DMA_MAPPING_ERROR, or its error number.
package enum DMAError: Error, Equatable, Sendable {
    /// `-EIO`: no memory lies within the mask.
    case maskNotSupported(mask: UInt64, needed: UInt64)
    /// `-EINVAL`: a request that makes no sense.
    case invalid(String)
    /// The device cannot drive the address, nothing translates, and there is no bounce buffer that it could reach.
    case addressOverflow(PhysicalAddress, byteCount: UInt64, mask: UInt64, busLimit: UInt64)
    /// Every bounce slot in a row of that size is in use (swiotlb).
    case bounceBuffersFull(byteCount: UInt64, slotCount: Int, usedCount: Int)
    /// The device is not trusted, the buffer is no whole pages, and there are no bounce buffers.
    case bounceBuffersInactive
    /// `-ENOMEM`: no IOVAs or no memory.
    case noMemory(SMMUDriverError)
    /// The page table or the command queue refused.
    case driver(SMMUDriverError)
    /// What is unmapped or synchronised is not what was mapped; the words are dma-debug's.
    case misuse(String)
    /// The bus did not answer where a bounce buffer is copied.
    case bus(BusError)

    /// The name of the kernel's error number.
    package var errorName: String {
        switch self {
        case .maskNotSupported, .addressOverflow, .bounceBuffersFull, .bounceBuffersInactive, .bus: "EIO"
        case .invalid, .misuse: "EINVAL"
        case .noMemory: "ENOMEM"
        case .driver(let error): error.errorName
        }
    }
}

extension DMAError {
    /// Whether a map that failed so may have left translations in the TLB: the memory behind them is lost then.
    var leavesTranslations: Bool {
        switch self {
        case .driver(.pageTable): false
        case .driver: true
        default: false
        }
    }
}

extension DMAError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .maskNotSupported(let mask, let needed):
            "DMA mask 0x\(hex(mask)) does not reach memory, which takes 0x\(hex(needed))"
        case .invalid(let reason), .misuse(let reason): reason
        case .addressOverflow(let address, let byteCount, let mask, let limit):
            "DMA addr 0x\(hex(address.rawValue, digits: 16))+\(byteCount) overflow "
                + "(mask \(hex(mask)), bus limit \(hex(limit)))."
        case .bounceBuffersFull(let byteCount, let slots, let used):
            "swiotlb buffer is full (sz: \(byteCount) bytes), total \(slots) (slots), used \(used) (slots)"
        case .bounceBuffersInactive:
            "DMA bounce buffers are inactive, unable to map unaligned transaction."
        case .noMemory(let error), .driver(let error): "\(error)"
        case .bus(let error): "the bus refused an access: \(error)"
        }
    }
}

extension SMMUDriverError {
    /// The name of the error number that the kernel has for this.
    package var errorName: String {
        switch self {
        case .registerWindowTooSmall, .domainOfAnotherSMMU, .unsupportedGranule, .domainDoesNotTranslate,
            .substreamNeedsTranslation, .substreamNeedsStage1, .noStreams, .endpointNeedsDirectRegions,
            .invalidCookie,
            .reservedRange:
            "EINVAL"
        case .unsupportedHardware: "ENXIO"
        case .registerTimeout, .commandQueueTimeout: "ETIMEDOUT"
        case .bus: "EIO"
        case .stopped, .unknownEndpoint: "ENODEV"
        case .noMemory, .iovasExhausted: "ENOMEM"
        case .noDirtyTracking, .noNesting: "EOPNOTSUPP"
        case .asidsExhausted, .substreamsInUse: "EBUSY"
        case .vmidsExhausted: "ENOSPC"
        case .streamOutOfRange, .substreamOutOfRange: "ERANGE"
        case .streamInUse: "ENODEV"
        case .substreamInUse: "EBUSY"
        case .substreamNotAttached: "ENOENT"
        case .pageTable(let error): error.errorName
        }
    }
}

extension IOPageTableError {
    /// The name of the error number that the kernel has for this.
    package var errorName: String {
        switch self {
        case .unsupportedInputSize, .unsupportedOutputSize, .unaligned, .noPermissions, .partOfBlock: "EINVAL"
        case .iovaOutOfRange, .physicalOutOfRange: "ERANGE"
        case .alreadyMapped: "EEXIST"
        case .notMapped: "ENOENT"
        case .noMemory: "ENOMEM"
        case .memory, .corrupted: "EIO"
        }
    }
}

/// The memory that a device's DMA API allocates from and copies with.
package struct DMAMemory: Sendable {
    /// Where coherent memory comes from.
    package let frames: any PhysicalPageAllocator
    /// How bounce buffers are copied, and how a driver looks at coherent memory.
    package let access: any PhysicalAccess
    /// The last address of RAM: a mask of less than 32 bits that does not reach it is refused where nothing
    /// translates.
    package let lastAddress: UInt64

    package init(frames: any PhysicalPageAllocator, access: any PhysicalAccess, lastAddress: UInt64) {
        self.frames = frames
        self.access = access
        self.lastAddress = lastAddress
    }

    package init(frames: PhysicalFrameAllocator, access: any PhysicalAccess) {
        self.init(frames: frames, access: access, lastAddress: frames.lastAddress)
    }
}

/// A piece of physical memory: one entry of a scatterlist.
package struct DMABuffer: Hashable, Sendable {
    package var physical: PhysicalAddress
    package var byteCount: UInt64

    package init(_ physical: PhysicalAddress, byteCount: UInt64) {
        self.physical = physical
        self.byteCount = byteCount
    }
}

/// Addresses in a row, as the device is told them.
package struct DMASegment: Hashable, Sendable {
    package var address: IOVirtualAddress
    package var byteCount: UInt64

    package init(_ address: IOVirtualAddress, byteCount: UInt64) {
        self.address = address
        self.byteCount = byteCount
    }
}
