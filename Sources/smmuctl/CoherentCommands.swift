// Commands for coherent memory: dma_alloc_coherent and its end.

import ArgumentParser
import ControlProtocol
import SMMUClient

struct Alloc: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Allocates zeroed memory that a device and its driver share (dma_alloc_coherent).",
        discussion: """
            The device sees it in one piece below its mask; in physical memory it may be in several.

            Example: smmuctl alloc dma-controller@100000 64K
            """
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias.", completion: .devices) var device: String
    @Argument(help: "How many bytes.") var length: Number
    @Option(help: "The last address that the device can drive, all ones. Default: 0xffffffff.")
    var mask: Number?

    func run() throws {
        let result = try global.call(
            Methods.IOMMUAllocate.self,
            .init(device: device, length: length.size, mask: mask?.hex)
        )
        var text = "\(result.device) has \(Format.size(result.length.value)) at IOVA \(result.iova)\n"
        for piece in Self.joined(result.pieces) { text += "  physical \(Format.range(piece))\n" }
        try global.print(result, as: text)
    }

    /// Pieces that follow each other in physical memory as one.
    private static func joined(_ pieces: [RangeInfo]) -> [RangeInfo] {
        var joined: [RangeInfo] = []
        for piece in pieces {
            if let last = joined.last, last.base.value &+ last.size.value == piece.base.value {
                joined[joined.count - 1].size.value &+= piece.size.value
            } else {
                joined.append(piece)
            }
        }
        return joined
    }
}

struct Free: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Gives memory of 'smmuctl alloc' back.",
        discussion: "Example: smmuctl free dma-controller@100000 0xffff0000"
    )
    @OptionGroup var global: GlobalOptions
    @Argument(help: "The device's name or alias.", completion: .devices) var device: String
    @Argument(help: "Where the device sees it.") var iova: Number

    func run() throws {
        let result = try global.call(Methods.IOMMUFree.self, .init(device: device, iova: iova.hex))
        try global.print(result, as: "freed\n")
    }
}
