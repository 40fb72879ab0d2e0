// What can go wrong between the operating-system side and an SMMU.

package import AddressSpace
package import DeviceModel
package import IOPageTable

/// Why the driver refused or failed.
package enum SMMUDriverError: Error, Equatable, Sendable {
    // MARK: Probe

    /// The register window is smaller than the SMMU's two pages.
    case registerWindowTooSmall(byteCount: UInt64, needed: UInt64)
    /// An identification register says something that this driver cannot work with.
    case unsupportedHardware(register: String, value: UInt32, reason: String)
    /// A granule was asked for that the SMMU does not have (IDR5).
    case unsupportedGranule(PageTableGranule)

    // MARK: Hardware

    /// A register did not take on the value that it was waited for within the time.
    case registerTimeout(register: String, expected: UInt32, found: UInt32)
    /// The command queue stayed full, or a CMD_SYNC was not consumed, within the time.
    case commandQueueTimeout(producer: UInt32, consumer: UInt32)
    /// The bus did not answer a register or memory access.
    case bus(BusError)
    /// The driver has been stopped: the SMMU is off.
    case stopped

    // MARK: Memory and numbers

    /// No memory for a table or a queue.
    case noMemory(purpose: String, PhysicalPageError)
    /// Every ASID is in use.
    case asidsExhausted(count: Int)
    /// Every VMID is in use; 0 is none.
    case vmidsExhausted(count: Int)
    /// No free range of IOVAs is that large.
    case iovasExhausted(byteCount: UInt64)
    /// The page table refused.
    case pageTable(IOPageTableError)
    /// Part of the range is reserved for firmware or the platform.
    case reservedRange(AddressRange)

    // MARK: Devices

    /// The stream table does not reach the StreamID.
    case streamOutOfRange(StreamID, count: UInt64)
    /// Another endpoint has the StreamID.
    case streamInUse(StreamID, endpoint: String)
    /// An endpoint needs at least one StreamID.
    case noStreams(endpoint: String)
    /// The endpoint was removed, or belongs to another driver.
    case unknownEndpoint(String)
    /// The endpoint has no such SubstreamID; its CD table has 2^bits entries.
    case substreamOutOfRange(SubstreamID, bits: Int)
    /// Something is attached to the SubstreamID already.
    case substreamInUse(SubstreamID)
    /// Nothing is attached to the SubstreamID.
    case substreamNotAttached(SubstreamID)

    // MARK: Domains

    /// The domain was made by another SMMU's driver.
    case domainOfAnotherSMMU
    /// The domain does not translate: it has nothing to map.
    case domainDoesNotTranslate(IOMMUDomainKind)
    /// A SubstreamID takes a translating domain, beside a stream whose own domain is of any kind.
    case substreamNeedsTranslation(IOMMUDomainKind)
    /// The SMMU, or its erratum, has no stage 1 on stage 2, so nothing can be a parent of nested domains.
    case noNesting
    /// SubstreamIDs translate by CDs, which a stage-2 domain has none of.
    case substreamNeedsStage1
    /// A stage-2 domain would take the CDs of these SubstreamIDs away.
    case substreamsInUse(endpoint: String)
    /// The SMMU does not note what is written (IDR0.HTTU), or the domain was not made for it.
    case noDirtyTracking
    /// The domain takes no MSI cookie, or has one.
    case invalidCookie(String)
    /// Firmware told that the endpoint accesses memory at any time (direct regions): it cannot be blocked.
    case endpointNeedsDirectRegions(String)
}

extension SMMUDriverError: CustomStringConvertible {
    package var description: String {
        switch self {
        case .registerWindowTooSmall(let byteCount, let needed):
            "MMIO region too small: 0x\(hex(byteCount)) bytes, 0x\(hex(needed)) are needed"
        case .unsupportedHardware(let register, let value, let reason):
            "\(reason) (\(register) = 0x\(hex(value, digits: 8)))"
        case .unsupportedGranule(let granule): "the SMMU has no granule of \(granule.byteCount >> 10) KiB"
        case .registerTimeout(let register, let expected, let found):
            "\(register) did not become 0x\(hex(expected)) in time, it is 0x\(hex(found))"
        case .commandQueueTimeout(let producer, let consumer):
            "the command queue does not move: producer 0x\(hex(producer)), consumer 0x\(hex(consumer))"
        case .bus(let error): "the bus refused an access: \(error)"
        case .stopped: "the SMMU's driver has been stopped"
        case .noMemory(let purpose, let error): "no memory for \(purpose): \(error)"
        case .asidsExhausted(let count): "all \(count) ASIDs are in use"
        case .vmidsExhausted(let count): "all \(count) VMIDs are in use"
        case .iovasExhausted(let byteCount): "no free range of 0x\(hex(byteCount)) bytes of IOVAs"
        case .pageTable(let error): "\(error)"
        case .reservedRange(let range): "\(range) is reserved"
        default: deviceDescription
        }
    }

    private var deviceDescription: String {
        switch self {
        case .streamOutOfRange(let stream, let count):
            "StreamID \(stream) is out of range: the stream table has \(count) entries"
        case .streamInUse(let stream, let endpoint): "StreamID \(stream) belongs to \(endpoint) already"
        case .noStreams(let endpoint): "\(endpoint) has no StreamID"
        case .unknownEndpoint(let endpoint): "\(endpoint) is no endpoint of this SMMU"
        case .substreamOutOfRange(let substream, let bits):
            "SubstreamID \(substream) is out of range: the endpoint has \(bits) bits of them"
        case .substreamInUse(let substream): "SubstreamID \(substream) is attached already"
        case .substreamNotAttached(let substream): "nothing is attached to SubstreamID \(substream)"
        case .domainOfAnotherSMMU: "the domain belongs to another SMMU"
        case .domainDoesNotTranslate(let kind): "a domain of kind \(kind) maps nothing"
        case .substreamNeedsTranslation(let kind):
            "a SubstreamID needs a translating domain, not one of kind \(kind)"
        case .noNesting: "nesting is not supported"
        case .substreamNeedsStage1: "a SubstreamID needs a stage-1 domain"
        case .substreamsInUse(let endpoint):
            "\(endpoint) has SubstreamIDs that are attached: detach them before it gets a stage-2 domain"
        case .noDirtyTracking: "dirty tracking is not supported"
        case .invalidCookie(let reason): reason
        case .endpointNeedsDirectRegions(let endpoint):
            "\(endpoint) has direct regions, so it cannot be blocked"
        default: "unknown error"
        }
    }
}

/// The number in hexadecimal, without a prefix, with leading zeros up to `digits`.
func hex(_ value: some FixedWidthInteger, digits: Int = 0) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
}
