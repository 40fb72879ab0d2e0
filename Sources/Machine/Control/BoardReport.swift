// The machine in the control socket's words.

import AddressSpace
package import ControlProtocol
import DeviceModel
import DeviceTree
import GuestMemory
import SMMUv3
import SMMUv3Spec

extension ControlService {
    /// The whole machine.
    package func describe() -> BoardInfo {
        let board = machine.board
        let interrupts = interruptInfos()
        return BoardInfo(
            model: board.model ?? "",
            compatible: board.compatible,
            source: information.source,
            smmus: board.smmus.enumerated().map { smmuInfo($1, at: $0, interrupts) },
            memory: machine.memory.map { ram in
                MemoryRegionInfo(
                    path: ram.path,
                    range: Self.range(ram.range),
                    resident: Size(ram.region.residentBytes)
                )
            },
            reservedMemory: board.reservedMemory.map(Self.reservedInfo),
            pmcgs: machine.pmcgs.map { pmcg in
                PMCGInfo(
                    path: pmcg.node.path,
                    smmu: pmcg.smmuIndex.map { machine.smmus[$0].node.path },
                    registers: ([pmcg.node.page0] + (pmcg.node.page1.map { [$0] } ?? [])).map(Self.range),
                    interrupts: interrupts.filter { $0.device == pmcg.node.path }
                )
            },
            pcieHosts: board.pcieHosts.enumerated().map { Self.hostInfo($1, at: $0) },
            endpoints: machine.endpoints.map(endpointInfo),
            interrupts: interrupts,
            warnings: board.warnings.map { BoardWarning(path: $0.path ?? "/", message: Self.message($0)) }
        )
    }

    private static func range(_ range: AddressRange) -> RangeInfo {
        RangeInfo(base: Hex(range.first), size: Hex(range.byteCount))
    }

    /// A diagnostic without the path, which stands beside it.
    private static func message(_ diagnostic: DeviceTreeDiagnostic) -> String {
        (diagnostic.property.map { $0 + ": " } ?? "") + diagnostic.problem
            + (diagnostic.remedy.map { "; " + $0 } ?? "")
    }

    // MARK: SMMUs

    private func smmuInfo(_ node: SMMUv3Node, at index: Int, _ interrupts: [InterruptInfo]) -> SMMUInfo {
        let built = machine.smmus.firstIndex { $0.node.path == node.path }
        let driver = built.map { machine.driverState(ofSMMU: $0) }
        return SMMUInfo(
            index: index,
            path: node.path,
            compatible: node.compatible,
            status: node.isEnabled ? "okay" : "disabled",
            registers: Self.range(node.registers),
            coherent: node.isDMACoherent,
            quirks: (node.hasBrokenPrefetchCommand ? ["hisilicon,broken-prefetch-cmd"] : [])
                + (node.hasBrokenPage1RegisterSpace ? ["cavium,cn9900-broken-page1-regspace"] : []),
            msiParent: node.msiParent?.controllerPath,
            driver: driver?.state ?? .none,
            driverMessage: driver?.message,
            features: built.map { Self.features(machine.smmus[$0].model.identification) },
            interrupts: interrupts.filter { $0.device == node.path }
        )
    }

    private static func features(_ identification: Identification) -> ControlProtocol.SMMUFeatures {
        let (idr0, idr5) = (identification.idr0, identification.idr5)
        var granules: [Int] = []
        if idr5.gran4K { granules.append(4 << 10) }
        if idr5.gran16K { granules.append(16 << 10) }
        if idr5.gran64K { granules.append(64 << 10) }
        let flags = [
            (idr0.cohacc, "COHACC"), (idr0.cd2L, "CD2L"), (idr0.stLevel != 0, "ST_LEVEL"),
            (idr0.asid16, "ASID16"),
            (idr0.ats, "ATS"), (idr0.pri, "PRI"), (idr0.msi, "MSI"), (idr0.sev, "SEV"), (idr0.hyp, "Hyp"),
            (idr0.stallModel != 1, "STALL"), (idr0.httu != 0, "HTTU"), (identification.idr3.ril, "RIL"),
            (identification.idr3.had, "HAD"), (identification.idr1.attrPermsOvr, "ATTR_PERMS_OVR"),
        ]
        return ControlProtocol.SMMUFeatures(
            version: "3.\(identification.aidr.archMinorRev)",
            sidBits: Int(identification.idr1.sidsize),
            ssidBits: Int(identification.idr1.ssidsize),
            oasBits: identification.outputAddressBits,
            granules: granules,
            stage1: idr0.s1P,
            stage2: idr0.s2P,
            flags: flags.filter(\.0).map(\.1),
            idRegisters: [
                WordInfo(name: "SMMU_IDR0", value: Hex(idr0.rawValue)),
                WordInfo(name: "SMMU_IDR1", value: Hex(identification.idr1.rawValue)),
                WordInfo(name: "SMMU_IDR3", value: Hex(identification.idr3.rawValue)),
                WordInfo(name: "SMMU_IDR5", value: Hex(idr5.rawValue)),
                WordInfo(name: "SMMU_IIDR", value: Hex(identification.iidr.rawValue)),
                WordInfo(name: "SMMU_AIDR", value: Hex(identification.aidr.rawValue)),
            ]
        )
    }

    // MARK: Memory, PCIe, endpoints

    private static func reservedInfo(_ reserved: ReservedMemory) -> ReservedMemoryInfo {
        ReservedMemoryInfo(
            path: reserved.path,
            range: reserved.range.map(range),
            noMap: reserved.isNoMap,
            iommuAddresses: reserved.iommuAddresses.map {
                ReservedIOVAInfo(device: $0.devicePath, range: range($0.range))
            }
        )
    }

    private static func hostInfo(_ host: PCIeHostNode, at index: Int) -> PCIeHostInfo {
        PCIeHostInfo(
            path: host.path,
            compatible: host.compatible,
            ecam: host.ecam.map(range),
            segment: Int(EndpointDirectory.segment(of: host, at: index)),
            firstBus: Int(host.busRange.lowerBound),
            lastBus: Int(host.busRange.upperBound),
            coherent: host.isDMACoherent,
            windows: host.windows.map(windowInfo),
            iommuMap: host.iommuMap.map(mapInfo),
            iommuMapMask: Hex(host.iommuMapMask),
            msiMap: host.msiMap.map(mapInfo),
            msiMapMask: Hex(host.msiMapMask)
        )
    }

    private static func windowInfo(_ window: PCIWindow) -> PCIeWindowInfo {
        let kind: PCIeWindowInfo.Kind =
            switch window.space {
            case .configuration: .config
            case .io: .io
            case .memory32: .mem32
            case .memory64: .mem64
            }
        return PCIeWindowInfo(
            kind: kind,
            prefetchable: window.isPrefetchable,
            pciAddress: Hex(window.pciAddress),
            range: range(window.cpuRange)
        )
    }

    private static func mapInfo(_ entry: RequesterMapEntry) -> PCIeMapInfo {
        PCIeMapInfo(
            requesterBase: Hex(entry.requesterBase),
            target: entry.targetPath,
            outputBase: Hex(entry.outputBase),
            length: Hex(entry.length)
        )
    }

    private func endpointInfo(_ endpoint: Endpoint) -> EndpointInfo {
        EndpointInfo(
            name: endpoint.name,
            aliases: endpoint.aliases,
            kind: endpoint.kind == .platform ? .platform : .pcie,
            compatible: endpoint.compatible,
            smmu: endpoint.smmuIndex.map { machine.smmus[$0].node.path },
            otherIOMMU: endpoint.otherIOMMU,
            streams: endpoint.streams.map { Hex($0.rawValue) },
            substreamBits: Int(endpoint.substreamBits),
            coherent: endpoint.isCoherent,
            domain: machine.domainKind(of: endpoint)
        )
    }
}
