// Strict beside lazy: what unmapping costs in commands, and how long a device reaches what was unmapped.

import AddressSpace
import ControlProtocol
import DeviceModel
import DeviceTree
import IOMMU
import IOPageTable
import SMMUv3
import SMMUv3Spec
import Synchronization

/// Runs the same buffers through a domain of each kind.
struct UnmapComparison {
    /// More than a full ring of a flush queue several times over.
    static let bufferLimit = 4096
    static let lengthLimit: UInt64 = 1 << 20
    /// A window that is longer than this was left open: 100 times the flush queue's time.
    private static let patienceNanoseconds: UInt64 = 1_000_000_000

    private let driver: SMMUv3Driver
    private let group: ManagedGroup
    private let frames: PhysicalFrameAllocator
    private let port: any DMAPort
    private let clock: any DriverClock
    private let buffers: Int
    private let byteCount: UInt64

    /// Compares for a device whose group nobody uses; the group is where it was afterwards.
    ///
    /// No other request for groups and domains is carried out meanwhile.
    static func run(
        _ parameters: Methods.IOMMUCompare.Parameters,
        for endpoint: Endpoint,
        on machine: Machine
    )
        throws(ControlError) -> Methods.IOMMUCompare.Result
    {
        let buffers = parameters.buffers ?? 64
        guard (1...bufferLimit).contains(buffers) else {
            throw .invalidParameter("buffers", "it is 1 to \(bufferLimit)")
        }
        let byteCount = parameters.length?.value ?? 4096
        guard (1...lengthLimit).contains(byteCount) else {
            throw .invalidParameter("length", "it is 1 to \(lengthLimit)")
        }
        let system = try machine.system()
        return try system.registry.withLock { (registry) throws(ControlError) in
            let managed = try system.managed(endpoint, &registry)
            guard let index = endpoint.smmuIndex, let stream = endpoint.streams.first else {
                throw .noDriver("no SMMU stands before \(endpoint.name)")
            }
            let comparison = UnmapComparison(
                driver: try system.driver(index, for: endpoint.name),
                group: managed.group,
                frames: system.frames,
                port: machine.makePort(for: RequesterIdentity(smmuIndex: index, streamID: stream)),
                clock: machine.options.driverClock,
                buffers: buffers,
                byteCount: byteCount
            )
            return Methods.IOMMUCompare.Result(
                device: endpoint.name,
                smmu: machine.smmus[index].node.path,
                buffers: buffers,
                length: Size(byteCount),
                strict: try comparison.measure(.dma),
                lazy: try comparison.measure(.dmaFQ)
            )
        }
    }

    /// Puts the group into a new domain for as long as it takes.
    private func measure(_ kind: IOMMUDomainKind) throws(ControlError) -> UnmapModeInfo {
        let domain: IOMMUDomain
        let memory: PhysicalAddress
        do throws(SMMUDriverError) { domain = try driver.makeDomain(kind) } catch {
            throw ControlError(error)
        }
        let page = domain.configuration?.granule.byteCount ?? 4096
        let size = (byteCount + page - 1) & ~(page - 1)
        do { memory = try frames.allocate(byteCount: size, alignment: page) } catch {
            throw ControlError(error)
        }
        let before = group.current
        do throws(ControlError) {
            try group.attach(to: ManagedDomain(domain, of: driver, .named(kind.rawValue), frames))
            let info = try run(domain, memory)
            try giveBack(to: before)
            try? frames.free(memory)
            return info
        } catch {
            // Where the group cannot be put back its devices may reach the memory: it is lost.
            if (try? giveBack(to: before)) != nil { try? frames.free(memory) }
            throw error
        }
    }

    private func giveBack(to before: ManagedDomain) throws(ControlError) {
        if before === group.defaultDomain {
            try group.returnToDefault()
        } else {
            try group.attach(to: before)
        }
    }

    private func run(_ domain: IOMMUDomain, _ memory: PhysicalAddress) throws(ControlError) -> UnmapModeInfo {
        let start = driver.commandCounts
        var last = IOVirtualAddress(0)
        for _ in 0..<buffers {
            do throws(SMMUDriverError) {
                last = try domain.map(memory, byteCount: byteCount, permissions: [.read, .write, .noExecute])
            } catch { throw ControlError(error) }
            if let fault = touch(last, Int(truncatingIfNeeded: byteCount)) {
                throw .failed("DMA to a mapped buffer at \(last) faulted: \(Self.name(of: fault))")
            }
            do throws(SMMUDriverError) {
                _ = try domain.unmapDMA(IOVirtualAddress(last.rawValue), byteCount: size(in: domain))
            } catch { throw ControlError(error) }
        }
        let unmapped = clock.nanoseconds()
        let counts = driver.commandCounts - start
        var info = UnmapModeInfo(
            type: domain.kind.sysfsName,
            commands: counts.info,
            total: counts.total,
            flush: [],
            hits: 0
        )
        probe(last, since: unmapped, &info)
        info.flush = (driver.commandCounts - start - counts).info
        return info
    }

    private func size(in domain: IOMMUDomain) -> UInt64 {
        let page = domain.configuration?.granule.byteCount ?? 4096
        return (byteCount + page - 1) & ~(page - 1)
    }

    /// DMA to what was unmapped, until it faults.
    private func probe(_ iova: IOVirtualAddress, since unmapped: UInt64, _ info: inout UnmapModeInfo) {
        var attempt = 0
        while true {
            let fault = touch(iova, 1)
            let now = clock.nanoseconds()
            if let fault {
                info.windowNanoseconds = Size(now &- unmapped)
                info.fault = Self.name(of: fault)
                return
            }
            info.hits += 1
            guard now &- unmapped < Self.patienceNanoseconds else { return }
            clock.pause(attempt: attempt)
            attempt += 1
            // Where no thread runs the flush queue's timer.
            driver.pollTimers()
        }
    }

    private func touch(_ iova: IOVirtualAddress, _ count: Int) -> DMAFault? {
        var bytes = [UInt8](repeating: 0, count: count)
        var fault: DMAFault?
        bytes.withUnsafeMutableBytes { buffer in
            do throws(DMAFault) { try port.read(at: iova, into: buffer, TransactionAttributes()) } catch {
                fault = error
            }
        }
        return fault
    }

    private static func name(of fault: DMAFault) -> String {
        switch fault.cause {
        case .event(let number): EventNumber(rawValue: number).description
        case .aborted: "aborted"
        case .bus(let error): "\(error)"
        }
    }
}
