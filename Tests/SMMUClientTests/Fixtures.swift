// Values as a daemon would send them, for the reports' tests.

import ControlProtocol

enum Fixtures {
    static let eventqInterrupt = InterruptInfo(
        line: 0,
        label: "eventq",
        device: "/iommu@2b400000",
        controller: "/interrupt-controller@2f000000",
        specifier: [0, 74, 1],
        intid: 106,
        trigger: "edge-rising",
        pulses: 2
    )
    static let gerrorInterrupt = InterruptInfo(
        line: 1,
        label: "gerror",
        device: "/iommu@2b400000",
        controller: "/mbigen@a0080000",
        specifier: [640, 1],
        asserted: true
    )

    static let board = BoardInfo(
        model: "A board",
        compatible: ["smmud,soc"],
        smmus: [
            SMMUInfo(
                index: 0,
                path: "/iommu@2b400000",
                registers: RangeInfo(base: 0x2b40_0000, size: 0x10_0000),
                coherent: true,
                quirks: ["hisilicon,broken-prefetch-cmd"],
                msiParent: "/its@2f020000",
                driver: .running,
                features: SMMUFeatures(
                    version: "3.1",
                    sidBits: 16,
                    ssidBits: 8,
                    oasBits: 48,
                    granules: [4096, 16384, 65536],
                    stage1: true,
                    stage2: false,
                    flags: ["COHACC"]
                ),
                interrupts: [eventqInterrupt, gerrorInterrupt]
            ),
            SMMUInfo(
                index: 1,
                path: "/iommu@2b600000",
                status: "disabled",
                registers: RangeInfo(base: 0x2b60_0000, size: 0x2_0000)
            ),
        ],
        memory: [
            MemoryRegionInfo(
                path: "/memory@80000000",
                range: RangeInfo(base: 0x8000_0000, size: 0x8000_0000),
                resident: 86016
            )
        ],
        reservedMemory: [
            ReservedMemoryInfo(
                path: "/reserved-memory/fb@88000000",
                range: RangeInfo(base: 0x8800_0000, size: 0x10_0000),
                noMap: true,
                iommuAddresses: [
                    ReservedIOVAInfo(
                        device: "/soc/display@a000000",
                        range: RangeInfo(base: 0x8800_0000, size: 0x10_0000)
                    )
                ]
            )
        ],
        pmcgs: [
            PMCGInfo(
                path: "/pmu@2b420000",
                smmu: "/iommu@2b400000",
                registers: [RangeInfo(base: 0x2b42_0000, size: 0x1000)],
                interrupts: []
            )
        ],
        pcieHosts: [
            PCIeHostInfo(
                path: "/pcie@40000000",
                ecam: RangeInfo(base: 0x4000_0000, size: 0x1000_0000),
                segment: 0,
                firstBus: 0,
                lastBus: 255,
                coherent: true,
                windows: [
                    PCIeWindowInfo(
                        kind: .mem32,
                        prefetchable: true,
                        pciAddress: 0x5000_0000,
                        range: RangeInfo(base: 0x5000_0000, size: 0x1000_0000)
                    )
                ],
                iommuMap: [
                    PCIeMapInfo(
                        requesterBase: 0,
                        target: "/iommu@2b400000",
                        outputBase: 0x1000,
                        length: 0x1_0000
                    )
                ]
            )
        ],
        endpoints: [
            EndpointInfo(
                name: "/soc/display@a000000",
                aliases: ["display@a000000"],
                kind: .platform,
                smmu: "/iommu@2b400000",
                streams: [0x100, 0x101],
                domain: .dma
            ),
            EndpointInfo(
                name: "/pcie@40000000/0000:00:01.0",
                aliases: ["0000:00:01.0"],
                kind: .pcie,
                smmu: "/iommu@2b400000",
                streams: [0x1008],
                substreamBits: 8,
                coherent: true
            ),
            EndpointInfo(name: "/soc/vpu@b000000", kind: .platform, otherIOMMU: "/soc/iommu@b800000"),
            EndpointInfo(name: "/soc/uart@c000000", kind: .platform),
        ],
        interrupts: [eventqInterrupt, gerrorInterrupt],
        warnings: [BoardWarning(path: "/soc/camera@b100000", message: "shares StreamID 0x100 with another")]
    )

    static let fault = FaultInfo(
        kind: .event,
        event: 0x10,
        name: "F_TRANSLATION",
        address: 0x11000,
        bytesTransferred: 8,
        message: "no valid descriptor at level 3"
    )

    /// Words worked out from the record's layout: number [7:0], StreamID [63:32]; RnW [99], CLASS [105:104] = IN.
    static let event = EventInfo(
        sequence: 7,
        smmu: "/iommu@2b400000",
        number: 0x10,
        name: "F_TRANSLATION",
        stream: 0x1008,
        substream: 1,
        device: "/pcie@40000000/0000:00:01.0",
        address: 0x11000,
        fields: [
            FieldInfo(name: "RnW", high: 99, low: 99, value: 1, meaning: "read"),
            FieldInfo(name: "CLASS", high: 105, low: 104, value: 2, meaning: "IN"),
        ],
        words: [0x0000_1008_0000_1810, 0x0000_0208_0000_0000, 0x1_1000, 0],
        recorded: true
    )

    static let explanation = Methods.Explain.Result(
        steps: [
            ExplainStep(
                kind: "ste",
                title: "STE of StreamID 0x1008",
                address: 0x8200_1200,
                words: [0x4000_0000_4300_000b, 0, 0, 0, 0, 0, 0, 0],
                fields: [
                    FieldInfo(name: "V", high: 0, low: 0, value: 1),
                    FieldInfo(name: "Config", high: 3, low: 1, value: 5, meaning: "stage 1"),
                ],
                note: "stage 1"
            ),
            ExplainStep(kind: "decision", title: "no SubstreamID: CD 0"),
            ExplainStep(
                kind: "descriptor",
                title: "level 3 descriptor",
                address: 0x8400_3080,
                words: [0],
                note: "invalid"
            ),
        ],
        outcome: .fault(fault)
    )
}
