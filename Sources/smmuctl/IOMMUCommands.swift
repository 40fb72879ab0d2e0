// Commands that have the daemon's own IOMMU driver do something.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct Map: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Maps memory for a device.",
        discussion: """
            Without --address, memory is allocated; it goes back when it is unmapped. Without --iova, the driver \
            chooses where the device sees it.

            Example: smmuctl map dma-controller@100000 64K --iova 0x10000 --permissions r
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias.", completion: .devices) var device: String
    @Argument(help: "How many bytes; rounded up to whole pages.") var length: Number
    @Option(help: "Where the device is to see it.") var iova: Number?
    @Option(help: "The physical address of memory that is there already.") var address: Number?
    @Option(
        help: "What the device may do: letters of rwx, and p for privileged transactions only. Default: rw."
    )
    var permissions: Permissions?
    @Option(help: "Map it for this SubstreamID of the device.") var substream: Number?

    func run() throws {
        let mapping = try global.call(
            Methods.IOMMUMap.self,
            .init(
                device: device,
                iova: iova?.hex,
                address: address?.hex,
                length: length.size,
                permissions: permissions,
                substream: substream?.hex
            )
        )
        try global.print(
            mapping,
            as:
                "\(mapping.device) sees \(Format.size(mapping.length.value)) at IOVA \(mapping.iova), physical "
                + "\(mapping.address), \(mapping.permissions)\n"
        )
    }
}

struct Unmap: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Unmaps memory of a device.",
        discussion: """
            When this returns, the device does not reach the memory any more.

            Example: smmuctl unmap dma-controller@100000 0x10000
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias.", completion: .devices) var device: String
    @Argument(help: "Where the device sees it.") var iova: Number
    @Argument(help: "How many bytes; the whole mapping unless given.") var length: Number?
    @Option(help: "Unmap it for this SubstreamID of the device.") var substream: Number?

    func run() throws {
        let result = try global.call(
            Methods.IOMMUUnmap.self,
            .init(device: device, iova: iova.hex, length: length?.size, substream: substream?.hex)
        )
        try global.print(result, as: "unmapped \(Format.size(result.unmapped.value))\n")
    }
}

struct Mappings: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Lists what is mapped for a device, or for all of them.",
        discussion: "Example: smmuctl mappings dma-controller@100000"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias; all devices unless given.", completion: .devices)
    var device: String?

    func run() throws {
        let result = try global.call(Methods.IOMMUMappings.self, .init(device: device))
        try global.print(result, as: Reports.mappings(result.mappings))
    }
}

struct Attach: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Puts a device, and its group, into another domain.",
        discussion: """
            dma: the device reaches what is mapped for it. identity: it reaches physical memory, untranslated. \
            blocked: it reaches nothing. Any other name is that of a domain made by 'smmuctl domains make', which \
            several devices can share.

            Example: smmuctl attach 0000:00:01.0 identity
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias.", completion: .devices) var device: String
    @Argument(help: "dma, identity, blocked, or a domain's own name.", completion: .domains)
    var domain: DomainName

    func run() throws {
        let result = try global.call(Methods.IOMMUAttach.self, .init(device: device, domain: domain))
        let others = result.group.filter { $0 != result.device }
        let along = others.isEmpty ? "" : ", and with it \(others.joined(separator: ", "))"
        try global.print(result, as: "\(result.device) is in the domain \(result.domain.rawValue)\(along)\n")
    }
}
