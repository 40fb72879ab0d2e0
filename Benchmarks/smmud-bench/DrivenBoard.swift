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
                    smmu\(index): iommu@\(address(1, place)) {
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
                    dma@\(address(2, place)) {
                        compatible = "smmud,bench";
                        reg = <2 0x\(place) 0 0x1000>;
                        iommus = <&smmu\(index % smmuCount) \(Self.stream(of: index))>;
                        dma-coherent;
                    };

                """
        }
        return text + "};\n"
    }

    private func address(_ high: Int, _ low: String) -> String {
        "\(high)" + String(repeating: "0", count: 8 - low.count) + low
    }

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
    private let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)

    /// - Parameters:
    ///   - board: Its size.
    ///   - kinds: Each endpoint's domain; the last is for all that follow.
    ///   - pageCount: How many pages of 4 KiB are mapped in each domain, at most 2048.
    ///   - change: Changes the SMMUs.
    init(
        _ board: GeneratedBoard = GeneratedBoard(),
        _ kinds: [IOMMUDomainKind] = [.dma],
        pageCount: Int,
        _ change: (inout SMMUv3Options) -> Void = { _ in }
    ) throws {
        let scratch = try ScratchDirectory()
        var options = MachineOptions()
        options.driver = .none
        change(&options.smmu)
        let description = try BoardDescription.load(contentsOf: scratch.compile(board.source))
        machine = try Machine(board: description, options: options)
        frames = PhysicalFrameAllocator(memory: machine.bus, ranges: description.memory.map(\.range))
        buffer = try frames.allocate(byteCount: Self.bufferByteCount, alignment: Self.bufferByteCount)
        self.pageCount = pageCount
        let asids = ASIDAllocator()
        for smmu in machine.smmus {
            var options = SMMUv3DriverOptions(name: smmu.node.path, isCoherent: true)
            options.asids = asids
            options.interruptHandling = .inline
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
    func read(page: Int, by endpoint: Int = 0, byteCount: Int = 8) throws {
        try ports[endpoint].read(
            at: IOVirtualAddress(Self.pages + UInt64(page) << 12),
            into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount]),
            .plain
        )
    }

    /// Reads all pages of an endpoint in an order far from ascending, from where it stopped the last time.
    func readPages(_ count: Int) throws {
        for _ in 0..<count {
            place = (place + 619) % pageCount
            try read(page: place)
        }
    }
    private var place = 0

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
