// A board of any size, with smmud's driver on its SMMUs: its devices have domains, and their mappings are the driver's.

import AddressSpace
import DeviceModel
import DeviceTree
import IOMMU
import IOPageTable
import Machine
import SMMUv3
import SystemBus

/// A device tree of so many SMMUs, and endpoints dealt out to them in turn.
struct GeneratedBoard {
    var smmuCount = 1
    var endpointCount = 1
    /// Whether there is a PCIe host bridge behind the first SMMU, whose functions have StreamIDs from 0x800 on.
    var hasHostBridge = false

    var source: String {
        var text = """
            /dts-v1/;
            / {
                #address-cells = <2>;
                #size-cells = <2>;
                interrupt-parent = <&gic>;
                memory@80000000 { device_type = "memory"; reg = <0 0x80000000 0 0x20000000>; };
                gic: interrupt-controller@8000000 {
                    compatible = "arm,gic-v3";
                    reg = <0 0x08000000 0 0x10000>, <0 0x080a0000 0 0x40000>;
                    interrupt-controller;
                    #interrupt-cells = <3>;
                };

            """
        for index in 0..<smmuCount {
            let place = String(index << 18, radix: 16)
            text += """
                    smmu\(index): iommu@\(Self.address(1, place)) {
                        compatible = "arm,smmu-v3";
                        reg = <1 0x\(place) 0 0x20000>;
                        interrupts = <0 \(2 * index) 1>, <0 \(2 * index + 1) 1>;
                        interrupt-names = "eventq", "gerror";
                        #iommu-cells = <1>;
                        dma-coherent;
                    };

                """
        }
        for index in 0..<endpointCount {
            let place = String(index << 12, radix: 16)
            text += """
                    \(Self.name(of: index)) {
                        compatible = "smmud,bench";
                        reg = <2 0x\(place) 0 0x1000>;
                        iommus = <&smmu\(index % smmuCount) \(Self.stream(of: index))>;
                        dma-coherent;
                    };

                """
        }
        return text + (hasHostBridge ? Self.hostBridge : "") + "};\n"
    }

    private static let hostBridge = """
            pcie@4010000000 {
                compatible = "pci-host-ecam-generic";
                device_type = "pci";
                reg = <0x40 0x10000000 0 0x100000>;
                bus-range = <0 0>;
                #address-cells = <3>;
                #size-cells = <2>;
                ranges = <0x02000000 0 0x10000000 0 0x10000000 0 0x10000000>;
                iommu-map = <0 &smmu0 0x800 0x100>;
                dma-coherent;
            };

        """

    private static func address(_ high: Int, _ low: String) -> String {
        "\(high)" + String(repeating: "0", count: 8 - low.count) + low
    }

    /// An endpoint's name, which is its node's.
    static func name(of endpoint: Int) -> String { "dma@" + address(2, String(endpoint << 12, radix: 16)) }

    /// The StreamID of an endpoint.
    static func stream(of endpoint: Int) -> UInt32 { UInt32(endpoint) + 0x40 }
}

/// A machine of a generated board with a driver on each SMMU, and a domain of each endpoint in which pages are mapped.
final class DrivenBoard {
    /// Where each endpoint's pages are; no block of 2 MiB fits there.
    static let pages: UInt64 = 0x1000_1000
    private static let bufferByteCount: UInt64 = 8 << 20

    let machine: Machine
    let frames: PhysicalFrameAllocator
    private var drivers: [SMMUv3Driver] = []
    private(set) var domains: [IOMMUDomain] = []
    private(set) var ports: [StreamPort] = []
    /// The memory behind all of the pages.
    let buffer: PhysicalAddress
    let pageCount: Int
    let smmuCount: Int
    /// Where endpoint 0 sees ``wideByteCount`` bytes of memory by pages of 4 KiB, after ``mapWide()``.
    static let wide: UInt64 = 0x4000_1000
    static let wideByteCount = 64 << 20
    private var widePlace = 0
    private let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    private let neighbourBytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)

    /// - Parameters:
    ///   - board: Its size.
    ///   - kinds: Each endpoint's domain; the last is for all that follow.
    ///   - profile: What the SMMUs can do.
    ///   - prefetches: Whether the driver has them fetch STEs early: CMD_PREFETCH_CONFIG.
    ///   - pageCount: How many pages of 4 KiB are mapped in each domain, at most 2048.
    ///   - change: Changes the SMMUs.
    init(
        _ board: GeneratedBoard = GeneratedBoard(),
        _ kinds: [IOMMUDomainKind] = [.dma],
        profile: MachineOptions.SMMUProfile = .stage1,
        prefetches: Bool = true,
        pageCount: Int,
        _ change: (inout SMMUv3Options) -> Void = { _ in }
    ) throws {
        let scratch = try ScratchDirectory()
        var options = MachineOptions()
        options.driver = .none
        options.smmuProfile = profile
        change(&options.smmu)
        let description = try BoardDescription.load(contentsOf: scratch.compile(board.source))
        machine = try Machine(board: description, options: options)
        frames = PhysicalFrameAllocator(memory: machine.bus, ranges: description.memory.map(\.range))
        buffer = try frames.allocate(byteCount: Self.bufferByteCount, alignment: Self.bufferByteCount)
        self.pageCount = pageCount
        smmuCount = board.smmuCount
        let asids = ASIDAllocator()
        for smmu in machine.smmus {
            var options = SMMUv3DriverOptions(name: smmu.node.path, isCoherent: true)
            options.asids = asids
            options.interruptHandling = .inline
            options.hasBrokenPrefetch = !prefetches
            let lines = machine.interrupts.filter { $0.device == smmu.node.path }.map(\.line)
            drivers.append(
                try SMMUv3Driver(
                    access: machine.bus,
                    registerBase: PhysicalAddress(smmu.node.registers.first),
                    registerByteCount: smmu.node.registers.byteCount,
                    frames: frames,
                    interrupts: .named(eventq: lines[0], gerror: lines[1], priq: nil),
                    options: options
                )
            )
        }
        for index in 0..<board.endpointCount {
            try attach(index, kinds[min(index, kinds.count - 1)], to: index % board.smmuCount)
        }
    }

    private func attach(_ index: Int, _ kind: IOMMUDomainKind, to smmuIndex: Int) throws {
        let driver = drivers[smmuIndex]
        let stream = StreamID(GeneratedBoard.stream(of: index))
        let domain = try driver.makeDomain(kind)
        try driver.attach(driver.addEndpoint("dma\(index)", streams: [stream]), to: domain)
        if pageCount > 0 { try map(pages: pageCount, in: domain) }
        domains.append(domain)
        ports.append(machine.smmus[smmuIndex].model.makePort(for: stream))
    }

    deinit {
        for driver in drivers { driver.stop() }
        machine.stop()
        bytes.deallocate()
        neighbourBytes.deallocate()
    }

    private func map(pages count: Int, in domain: IOMMUDomain) throws {
        try domain.map(
            IOVirtualAddress(Self.pages),
            to: buffer,
            byteCount: UInt64(count) << 12,
            permissions: [.read, .write, .cacheable]
        )
    }

    /// Reads 8 bytes of a page.
    func read(page: Int, by endpoint: Int = 0) throws {
        try ports[endpoint].read(
            at: IOVirtualAddress(Self.pages + UInt64(page) << 12),
            into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<8]),
            .plain
        )
    }

    /// Reads so many bytes of endpoint 0's first page again and again.
    func hits(_ count: Int, byteCount: Int = 8) throws {
        // Taken out of their properties once: what that costs is not to be measured.
        let (port, target) = (ports[0], UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount]))
        for _ in 0..<count { try port.read(at: IOVirtualAddress(Self.pages), into: target, .plain) }
    }

    /// Another endpoint of endpoint 0's SMMU.
    var neighbour: Int { smmuCount }

    /// Reads the neighbour's first bytes again and again, into a buffer of its own: what another thread does meanwhile.
    func readByNeighbour(_ count: Int, byteCount: Int) throws {
        let port = ports[neighbour]
        let target = UnsafeMutableRawBufferPointer(rebasing: neighbourBytes[..<byteCount])
        for _ in 0..<count { try port.read(at: IOVirtualAddress(Self.pages), into: target, .plain) }
    }

    /// Unmaps the last page of an endpoint by the driver, and maps it again.
    func remap(_ endpoint: Int) throws {
        let page = UInt64(pageCount - 1) << 12
        _ = try domains[endpoint].unmap(IOVirtualAddress(Self.pages + page), byteCount: 4096)
        try domains[endpoint].map(
            IOVirtualAddress(Self.pages + page),
            to: PhysicalAddress(buffer.rawValue + page),
            byteCount: 4096,
            permissions: [.read, .write, .cacheable]
        )
    }

    /// Reads all pages of an endpoint in an order far from ascending, from where it stopped the last time.
    func readPages(_ count: Int) throws {
        let (port, target) = (ports[0], UnsafeMutableRawBufferPointer(rebasing: bytes[..<8]))
        var page = place
        for _ in 0..<count {
            page = (page + 619) % pageCount
            try port.read(at: IOVirtualAddress(Self.pages + UInt64(page) << 12), into: target, .plain)
        }
        place = page
    }
    private var place = 0

    /// Maps 64 MiB for endpoint 0.
    func mapWide() throws {
        let memory = try frames.allocate(byteCount: UInt64(Self.wideByteCount), alignment: 2 << 20)
        try machine.bus.fill(0x5A, byteCount: UInt64(Self.wideByteCount), at: memory)
        try domains[0].map(
            IOVirtualAddress(Self.wide),
            to: memory,
            byteCount: UInt64(Self.wideByteCount),
            permissions: [.read, .write, .cacheable]
        )
    }

    /// Reads pieces of the 64 MiB in turn, from where it stopped the last time.
    func readWide(_ count: Int, pieceByteCount: Int) throws {
        let (port, piece) = (ports[0], UnsafeMutableRawBufferPointer(rebasing: bytes[..<pieceByteCount]))
        for _ in 0..<count {
            try port.read(at: IOVirtualAddress(Self.wide + UInt64(widePlace)), into: piece, .plain)
            widePlace = (widePlace + pieceByteCount) % Self.wideByteCount
        }
    }

    /// Nanoseconds of the unmap of a page by the driver, which is CMD_TLBI_NH_VA and CMD_SYNC.
    func unmapTime(_ count: Int) throws -> Double {
        var (done, time) = (0, 0.0)
        while done < count {
            let batch = min(count - done, pageCount)
            let start = nanosecondsNow()
            for page in 0..<batch {
                _ = try domains[0].unmap(IOVirtualAddress(Self.pages + UInt64(page) << 12), byteCount: 4096)
            }
            time += Double(nanosecondsNow() &- start)
            // Beside the clock: mapped and resident again.
            try map(pages: batch, in: domains[0])
            for page in 0..<batch { try read(page: page) }
            done += batch
        }
        return time / Double(count)
    }

    /// The DMA API of an endpoint.
    func device(_ endpoint: Int) -> DMADevice {
        var traits = DMADevice.Traits()
        traits.isCoherent = true
        return DMADevice(
            "dma\(endpoint)",
            domain: domains[endpoint],
            memory: DMAMemory(frames: frames, access: machine.bus),
            traits: traits
        )
    }
}
