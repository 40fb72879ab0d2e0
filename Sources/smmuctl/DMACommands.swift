// Commands that issue DMA on behalf of devices, or say what would become of it.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct DMA: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Reads and writes memory on behalf of a device, through its SMMU.",
        discussion: "Exits with 3 where the transaction faults.",
        subcommands: [DMARead.self, DMAWrite.self, DMACopy.self]
    )
    @OptionGroup var global: GlobalOptions
}

struct DMARead: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "read",
        abstract: "Reads on behalf of a device.",
        discussion: "Example: smmuctl dma read dma-controller@100000 0x10000 64"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias, or sid:STREAM.", completion: .devices)
    var requester: RequesterArgument
    @Argument(help: "The address as the device drives it.") var iova: Number
    @Argument(help: "How many bytes.") var length: Number
    @OptionGroup var options: TransactionOptions
    @Flag(help: "An instruction fetch.") var instruction = false
    @OptionGroup var output: DataOutput

    func run() throws {
        let result = try global.withClient { client throws(ClientError) in try read(client) }
        if output.takesBytes {
            try output.write(result.data.bytes)
            if let fault = result.fault { Output.complain(Format.fault(fault)) }
        } else {
            let dump = result.data.bytes.isEmpty ? "" : Hexdump.text(result.data.bytes, at: iova.value)
            try global.print(result, as: dump + (result.fault.map { Format.fault($0) + "\n" } ?? ""))
        }
        if result.fault != nil { throw ExitCode.fault }
    }

    private func read(_ client: ControlClient) throws(ClientError) -> Methods.DMARead.Result {
        var bytes: [UInt8] = []
        for piece in Pieces.of(length.value) {
            let result = try client.call(
                Methods.DMARead.self,
                .init(
                    device: requester.device,
                    smmu: requester.smmu,
                    stream: requester.stream ?? options.stream?.hex,
                    substream: options.substream?.hex,
                    iova: Hex(iova.value &+ piece.lowerBound),
                    length: Size(UInt64(piece.count)),
                    privileged: options.privileged ? true : nil,
                    instruction: instruction ? true : nil
                )
            )
            bytes += result.data.bytes
            if let fault = result.fault {
                return .init(data: ByteString(bytes), fault: fault.after(piece.lowerBound))
            }
        }
        return .init(data: ByteString(bytes))
    }
}

struct DMAWrite: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "write",
        abstract: "Writes on behalf of a device.",
        discussion: """
            The data comes from standard input unless an option says otherwise.

            Example: smmuctl dma write 0000:00:01.0 0x10000 --hex "de ad be ef"
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias, or sid:STREAM.", completion: .devices)
    var requester: RequesterArgument
    @Argument(help: "The address as the device drives it.") var iova: Number
    @OptionGroup var options: TransactionOptions
    @OptionGroup var input: DataInput

    func run() throws {
        let bytes = try input.bytes()
        let result = try global.withClient { client throws(ClientError) in try write(bytes, client) }
        try global.print(result, as: Reports.transfer("wrote", result.bytesTransferred.value, result.fault))
        if result.fault != nil { throw ExitCode.fault }
    }

    private func write(_ bytes: [UInt8], _ client: ControlClient) throws(ClientError)
        -> Methods.DMAWrite.Result
    {
        for piece in Pieces.of(UInt64(bytes.count)) {
            let result = try client.call(
                Methods.DMAWrite.self,
                .init(
                    device: requester.device,
                    smmu: requester.smmu,
                    stream: requester.stream ?? options.stream?.hex,
                    substream: options.substream?.hex,
                    iova: Hex(iova.value &+ piece.lowerBound),
                    data: ByteString(Array(bytes[Int(piece.lowerBound)..<Int(piece.upperBound)])),
                    privileged: options.privileged ? true : nil
                )
            )
            if let fault = result.fault {
                let fault = fault.after(piece.lowerBound)
                return .init(bytesTransferred: fault.bytesTransferred, fault: fault)
            }
        }
        return .init(bytesTransferred: Size(UInt64(bytes.count)))
    }
}

struct DMACopy: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "copy",
        abstract: "Reads on behalf of one device and writes on behalf of another.",
        discussion: "Example: smmuctl dma copy dma-controller@100000 0x10000 0000:00:01.0 0x20000 4K"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "Who reads: a device's name or alias, or sid:STREAM.", completion: .devices)
    var source: RequesterArgument
    @Argument(help: "Where it reads.") var sourceIOVA: Number
    @Argument(help: "Who writes: a device's name or alias, or sid:STREAM.", completion: .devices)
    var destination: RequesterArgument
    @Argument(help: "Where it writes.") var destinationIOVA: Number
    @Argument(help: "How many bytes.") var length: Number
    @Option(help: "The reader's SubstreamID.") var sourceSubstream: Number?
    @Option(help: "The writer's SubstreamID.") var destinationSubstream: Number?

    func run() throws {
        let result = try global.call(
            Methods.DMACopy.self,
            .init(
                source: end(source, sourceIOVA, sourceSubstream),
                destination: end(destination, destinationIOVA, destinationSubstream),
                length: length.size
            )
        )
        let side = result.faultSide.map { "at the \($0.rawValue), " } ?? ""
        try global.print(
            result,
            as: side + Reports.transfer("copied", result.bytesTransferred.value, result.fault)
        )
        if result.fault != nil { throw ExitCode.fault }
    }

    private func end(_ requester: RequesterArgument, _ iova: Number, _ substream: Number?) -> DMAEnd {
        DMAEnd(
            device: requester.device,
            smmu: requester.smmu,
            stream: requester.stream,
            substream: substream?.hex,
            iova: iova.hex
        )
    }
}

extension FaultInfo {
    /// The fault of a transfer of which `byteCount` bytes went before this piece.
    fileprivate func after(_ byteCount: UInt64) -> Self {
        var fault = self
        fault.bytesTransferred = Size(bytesTransferred.value &+ byteCount)
        return fault
    }
}

struct Translate: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Says where a transaction of a device would go.",
        discussion: """
            Nothing is transferred and no event is recorded. Exits with 3 where the transaction would fault.

            Example: smmuctl translate dma-controller@100000 0x10000 --access w
            """
    )
    @OptionGroup var global: GlobalOptions
    @OptionGroup var transaction: TransactionArguments

    func run() throws {
        let outcome = try global.call(Methods.Translate.self, transaction.parameters)
        try global.print(outcome, as: TranslationReport.text(outcome))
        if case .fault = outcome { throw ExitCode.fault }
    }
}

struct Explain: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows each structure and descriptor that a transaction of a device meets on its way.",
        discussion: """
            Each with its address, its raw words and its decoded fields, up to the physical address or the fault. \
            Nothing is transferred and no event is recorded. Exits with 3 where the transaction would fault.

            Example: smmuctl explain dma-controller@100000 0x10000 --access w
            """
    )
    @OptionGroup var global: GlobalOptions
    @OptionGroup var transaction: TransactionArguments

    func run() throws {
        let result = try global.call(Methods.Explain.self, transaction.parameters)
        try global.print(result, as: TranslationReport.text(result))
        if case .fault = result.outcome { throw ExitCode.fault }
    }
}

/// A transaction that is looked at and not carried out.
struct TransactionArguments: ParsableArguments {
    @Argument(help: "The device's name or alias, or sid:STREAM.", completion: .devices)
    var requester: RequesterArgument
    @Argument(help: "The address as the device drives it.") var iova: Number
    @Option(help: "What it would do: r, w, or x for an instruction fetch. Default: r.")
    var access: TransactionParameters.Access?
    @OptionGroup var options: TransactionOptions

    var parameters: TransactionParameters {
        TransactionParameters(
            device: requester.device,
            smmu: requester.smmu,
            stream: requester.stream ?? options.stream?.hex,
            substream: options.substream?.hex,
            iova: iova.hex,
            access: access,
            privileged: options.privileged ? true : nil
        )
    }
}
