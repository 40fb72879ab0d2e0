// smmuctl sva: devices that work in clients' own address spaces.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct SVA: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "sva",
        abstract: "Shows and changes which devices work in which clients' address spaces.",
        discussion: """
            A client of the DMA socket shares its memory at its own addresses (PROCESS_MAP). A device that is bound to \
            it reaches them with the SubstreamID that the binding has; a page is mapped when the device faults on it.

            Example: smmuctl sva bind 1 accelerator@400000
            """,
        subcommands: [List.self, Bind.self, Unbind.self],
        defaultSubcommand: List.self
    )

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract:
                "Lists the clients, their areas, the devices that are bound, and what became of faults.",
            discussion: "Example: smmuctl sva list"
        )
        @OptionGroup var global: GlobalOptions

        func run() throws {
            let result = try global.call(Methods.SVAList.self, Nothing())
            try global.print(result, as: Reports.sharedAddresses(result))
        }
    }

    struct Bind: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Has a device work in a client's address space.",
            discussion: """
                The device needs SubstreamIDs (pasid-num-bits), and has to be able to wait for a page (dma-can-stall).

                Example: smmuctl sva bind 1 accelerator@400000
                """
        )
        @OptionGroup var global: GlobalOptions
        @Argument(help: "The client's number, as 'smmuctl sva list' has it.") var process: Int
        @Argument(help: "The device's name or alias.", completion: .devices) var device: String

        func run() throws {
            let bond = try global.call(Methods.SVABind.self, .init(process: process, device: device))
            try global.print(
                bond,
                as:
                    "\(bond.device) reaches process \(bond.process) with SubstreamID \(bond.substream), ASID "
                    + "\(bond.asid)\n"
            )
        }
    }

    struct Unbind: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Takes a client's address space from a device, once for each time that it was bound.",
            discussion: """
                When this returns, and it was bound once, the device reaches nothing of it any more.

                Example: smmuctl sva unbind 1 accelerator@400000
                """
        )
        @OptionGroup var global: GlobalOptions
        @Argument(help: "The client's number, as 'smmuctl sva list' has it.") var process: Int
        @Argument(help: "The device's name or alias.", completion: .devices) var device: String

        func run() throws {
            let result = try global.call(Methods.SVAUnbind.self, .init(process: process, device: device))
            try global.print(result, as: "\(device) is unbound from process \(process)\n")
        }
    }
}
