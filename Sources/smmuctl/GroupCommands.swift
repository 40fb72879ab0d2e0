// Commands for the IOMMU core of the daemon's own driver: groups, domains, devices on their buses.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct Groups: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows IOMMU groups: which devices are given away together.",
        discussion: """
            A device without an SMMU has no group. With --sysfs, what /sys/kernel/iommu_groups and \
            /sys/class/iommu would show.

            Example: smmuctl groups --sysfs
            """
    )
    @OptionGroup var global: GlobalOptions
    @Flag(help: "As files of sysfs with their content.") var sysfs = false

    func run() throws {
        let result = try global.call(Methods.IOMMUGroups.self, Nothing())
        try global.print(
            result,
            as: sysfs ? GroupReport.sysfs(result.sysfs) : GroupReport.text(result.groups)
        )
    }
}

struct GroupType: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "type",
        abstract: "Shows or changes a group's type, as its file in sysfs does.",
        discussion: """
            identity: its devices reach physical memory. DMA: unmaps are invalidated at once. DMA-FQ: later, many \
            together. auto: what the parameters choose. From DMA to DMA-FQ it changes at any time, otherwise only \
            while no driver is bound and nothing is mapped.

            Example: smmuctl type 0 DMA-FQ
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The group's number.") var group: Int
    @Argument(
        help: "identity, DMA, DMA-FQ or auto; it is shown unless given.",
        completion: .list(["identity", "DMA", "DMA-FQ", "auto"])
    )
    var type: String?

    func run() throws {
        let result = try global.call(Methods.IOMMUGroupType.self, .init(group: group, type: type))
        try global.print(result, as: result.type + "\n")
    }
}

struct Domains: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows domains, and makes some that devices share.",
        discussion: """
            Example: smmuctl domains make shared --smmu 0, then smmuctl attach 0000:00:01.0 shared
            """,
        subcommands: [List.self, Make.self, Free.self],
        defaultSubcommand: List.self
    )

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Shows domains: kind, ASID, root of the page table, what is mapped, who is in it.",
            discussion: "Example: smmuctl domains --json"
        )
        @OptionGroup var global: GlobalOptions

        func run() throws {
            let result = try global.call(Methods.IOMMUDomains.self, Nothing())
            try global.print(result, as: DomainReport.text(result.domains))
        }
    }

    struct Make: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Makes an unmanaged domain, for smmuctl attach.",
            discussion: "Example: smmuctl domains make shared --smmu 0"
        )
        @OptionGroup var global: GlobalOptions
        @OptionGroup var smmu: SMMUOption
        @Argument(help: "What it is to be called.") var name: String

        func run() throws {
            let result = try global.call(
                Methods.IOMMUDomainMake.self,
                .init(name: name, smmu: smmu.selector)
            )
            try global.print(result, as: DomainReport.text([result]))
        }
    }

    struct Free: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Frees a domain that was made, with all that is mapped in it.",
            discussion: "Example: smmuctl domains free shared"
        )
        @OptionGroup var global: GlobalOptions
        @Argument(help: "Its name.", completion: .domains) var name: String

        func run() throws {
            let result = try global.call(Methods.IOMMUDomainFree.self, .init(name: name))
            try global.print(result, as: "the domain \(name) is gone\n")
        }
    }
}

struct Device: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Plugs devices in and out, and binds drivers, as far as the IOMMU hears of it.",
        discussion: "Example: smmuctl device remove 0000:00:01.0",
        subcommands: [Add.self, Remove.self, Bind.self, Unbind.self]
    )

    struct Add: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "A device comes: it is probed, grouped and attached.",
            discussion: "Example: smmuctl device add 0000:00:01.0"
        )
        @OptionGroup var global: GlobalOptions
        @Argument(help: "The device's name or alias.", completion: .devices) var device: String

        func run() throws {
            let result = try global.call(Methods.DeviceAdd.self, .init(device: device))
            try global.print(result, as: GroupReport.text(result))
        }
    }

    struct Remove: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "A device goes: its stream is blocked, and its group goes with its last device.",
            discussion: "Example: smmuctl device remove 0000:00:01.0"
        )
        @OptionGroup var global: GlobalOptions
        @Argument(help: "The device's name or alias.", completion: .devices) var device: String

        func run() throws {
            let result = try global.call(Methods.DeviceRemove.self, .init(device: device))
            try global.print(result, as: "\(device) is gone\n")
        }
    }

    struct Bind: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Binds a driver to a device: its group's domain and type stay as they are from now on.",
            discussion: "Example: smmuctl device bind 0000:00:01.0 --driver nvme"
        )
        @OptionGroup var global: GlobalOptions
        @Argument(help: "The device's name or alias.", completion: .devices) var device: String
        @Option(help: "What the driver is called.") var driver: String?

        func run() throws {
            let result = try global.call(Methods.DeviceBind.self, .init(device: device, driver: driver))
            try global.print(result, as: GroupReport.text(result))
        }
    }

    struct Unbind: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Takes a device's driver away.",
            discussion: "Example: smmuctl device unbind 0000:00:01.0"
        )
        @OptionGroup var global: GlobalOptions
        @Argument(help: "The device's name or alias.", completion: .devices) var device: String

        func run() throws {
            let result = try global.call(Methods.DeviceUnbind.self, .init(device: device))
            try global.print(result, as: GroupReport.text(result))
        }
    }
}
