// Commands that do what a CPU does: registers by name, loads and stores, memory.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct Regs: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows or writes registers of an SMMU.",
        discussion: """
            All registers, or those that are named: with SMMU_ or without, in any case of letters, or by offset. \
            NAME=VALUE writes one, as a driver's store would.

            Example: smmuctl regs cr0 gerror
            Example: smmuctl regs cr0=0x1 --smmu 1
            """
    )
    @OptionGroup var global: GlobalOptions
    @OptionGroup var smmu: SMMUOption
    @Argument(help: ArgumentHelp("NAME to show, NAME=VALUE to write.", valueName: "register"))
    var registers: [RegisterArgument] = []
    @Option(help: "32 or 64 bits; the register's own width unless given.") var width: Int?
    @Flag(help: "A line for each register, without its fields.") var brief = false

    func run() throws {
        guard !registers.isEmpty else {
            let result = try global.call(Methods.RegisterList.self, .init(smmu: smmu.selector))
            try global.print(
                result,
                as: result.smmu + "\n" + Reports.registers(result.registers, showsFields: !brief)
            )
            return
        }
        let results = try global.withClient { client throws(ClientError) in
            var results: [RegisterInfo] = []
            for argument in registers { try perform(argument, client, &results) }
            return results
        }
        try global.print(results, as: Reports.registers(results, showsFields: !brief))
    }

    private func perform(
        _ argument: RegisterArgument,
        _ client: ControlClient,
        _ results: inout [RegisterInfo]
    ) throws(ClientError) {
        if let value = argument.value {
            _ = try client.call(
                Methods.RegisterWrite.self,
                .init(smmu: smmu.selector, register: argument.register, width: width, value: value)
            )
        } else {
            results.append(
                try client.call(
                    Methods.RegisterRead.self,
                    .init(smmu: smmu.selector, register: argument.register, width: width)
                )
            )
        }
    }
}

/// `NAME` or `NAME=VALUE`.
struct RegisterArgument: ExpressibleByArgument {
    let register: RegisterSelector
    let value: Hex?

    init?(argument: String) {
        let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard let name = parts.first, !name.isEmpty else { return nil }
        register = RegisterSelector(String(name))
        guard parts.count == 2 else {
            value = nil
            return
        }
        guard let value = NumberText.value(of: parts[1]) else { return nil }
        self.value = Hex(value)
    }
}

struct MMIO: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mmio",
        abstract: "Loads and stores on the bus, as a CPU does.",
        subcommands: [MMIORead.self, MMIOWrite.self]
    )
    @OptionGroup var global: GlobalOptions
}

/// How wide an access is.
struct WidthOption: ParsableArguments {
    @Option(help: "8, 16, 32 or 64 bits.") var width = 32

    func validate() throws {
        guard [8, 16, 32, 64].contains(width) else {
            throw ValidationError("--width is 8, 16, 32 or 64, not \(width).")
        }
    }
}

struct MMIORead: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "read",
        abstract: "One load.",
        discussion: "Example: smmuctl mmio read 0x2b400000"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The physical address, aligned to the width.") var address: Number
    @OptionGroup var options: WidthOption

    func run() throws {
        let result = try global.call(Methods.BusLoad.self, .init(address: address.hex, width: options.width))
        try global.print(result, as: Format.value(result.value, bits: options.width) + "\n")
    }
}

struct MMIOWrite: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "write",
        abstract: "One store.",
        discussion: "Example: smmuctl mmio write 0x2b400020 0x1 --width 32"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The physical address, aligned to the width.") var address: Number
    @Argument(help: "The value.") var value: Number
    @OptionGroup var options: WidthOption

    func run() throws {
        let result = try global.call(
            Methods.BusStore.self,
            .init(address: address.hex, width: options.width, value: value.hex)
        )
        try global.print(result, as: "")
    }
}

struct Mem: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Reads and writes physical memory, as a CPU does.",
        subcommands: [MemRead.self, MemWrite.self, MemFill.self, MemAlloc.self, MemFree.self]
    )
    @OptionGroup var global: GlobalOptions
}

struct MemRead: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "read",
        abstract: "Reads memory.",
        discussion: "Example: smmuctl mem read 0x80000000 256"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The physical address.") var address: Number
    @Argument(help: "How many bytes.") var length: Number
    @OptionGroup var output: DataOutput

    func run() throws {
        let bytes = try global.withClient { client throws(ClientError) in
            var bytes: [UInt8] = []
            for piece in Pieces.of(length.value) {
                let parameters = Methods.MemoryRead.Parameters(
                    address: Hex(address.value &+ piece.lowerBound),
                    length: Size(UInt64(piece.count))
                )
                bytes += try client.call(Methods.MemoryRead.self, parameters).data.bytes
            }
            return bytes
        }
        if output.takesBytes {
            try output.write(bytes)
        } else {
            try global.print(
                Methods.MemoryRead.Result(data: ByteString(bytes)),
                as: Hexdump.text(bytes, at: address.value)
            )
        }
    }
}

struct MemWrite: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "write",
        abstract: "Writes memory.",
        discussion: """
            The data comes from standard input unless an option says otherwise.

            Example: smmuctl mem write 0x80000000 --text "hello"
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The physical address.") var address: Number
    @OptionGroup var input: DataInput

    func run() throws {
        let bytes = try input.bytes()
        try global.withClient { client throws(ClientError) in
            for piece in Pieces.of(UInt64(bytes.count)) {
                let data = ByteString(Array(bytes[Int(piece.lowerBound)..<Int(piece.upperBound)]))
                let parameters = Methods.MemoryWrite.Parameters(
                    address: Hex(address.value &+ piece.lowerBound),
                    data: data
                )
                _ = try client.call(Methods.MemoryWrite.self, parameters)
            }
        }
        try global.print(Nothing(), as: "wrote \(Format.size(UInt64(bytes.count)))\n")
    }
}

struct MemFill: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fill",
        abstract: "Fills memory with one byte.",
        discussion: "Example: smmuctl mem fill 0x80000000 4K 0xff"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The physical address.") var address: Number
    @Argument(help: "How many bytes.") var length: Number
    @Argument(help: "The byte; 0 unless given.") var byte: Number?

    func validate() throws {
        guard (byte?.value ?? 0) <= 0xff else { throw ValidationError("A byte is 0 to 255.") }
    }

    func run() throws {
        let result = try global.call(
            Methods.MemoryFill.self,
            .init(
                address: address.hex,
                length: length.size,
                byte: byte.map { UInt8(truncatingIfNeeded: $0.value) }
            )
        )
        try global.print(result, as: "filled \(Format.size(length.value))\n")
    }
}

struct MemAlloc: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "alloc",
        abstract: "Takes memory that nobody uses, and prints its address.",
        discussion: "Example: smmuctl mem alloc 2M --alignment 2M"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "How many bytes; rounded up to whole pages of 4 KiB.") var length: Number
    @Option(help: "A power of two; 4K unless given.") var alignment: Number?

    func run() throws {
        let result = try global.call(
            Methods.MemoryAllocate.self,
            .init(length: length.size, alignment: alignment?.size)
        )
        try global.print(result, as: "\(result.address)\n")
    }
}

struct MemFree: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "free",
        abstract: "Gives memory back.",
        discussion: "Example: smmuctl mem free 0x80000000"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The address that alloc printed.") var address: Number

    func run() throws {
        let result = try global.call(Methods.MemoryFree.self, .init(address: address.hex))
        try global.print(result, as: "")
    }
}
