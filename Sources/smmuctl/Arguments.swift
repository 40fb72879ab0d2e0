// The kinds of argument that several commands take: numbers, devices, data in and data out.

import ArgumentParser
import ControlProtocol
import Glibc
import SMMUClient

/// A number: decimal, hexadecimal, or with a size's suffix.
struct Number: ExpressibleByArgument {
    let value: UInt64

    init?(argument: String) {
        guard let value = NumberText.value(of: argument, allowsSizeSuffix: true) else { return nil }
        self.value = value
    }

    var hex: Hex { Hex(value) }
    var size: Size { Size(value) }
}

/// On whose behalf: a device's name, or `sid:STREAM`, or `sid:SMMU:STREAM`.
struct RequesterArgument: ExpressibleByArgument {
    let device: String?
    let smmu: SMMUSelector?
    let stream: Hex?

    init?(argument: String) {
        guard argument.hasPrefix("sid:") else {
            guard !argument.isEmpty else { return nil }
            (device, smmu, stream) = (argument, nil, nil)
            return
        }
        // The SMMU may be a path, which may hold a colon; the StreamID is what comes last.
        let rest = argument.dropFirst(4)
        let streamText = rest.split(separator: ":", omittingEmptySubsequences: false).last ?? ""
        guard let stream = NumberText.value(of: streamText) else { return nil }
        let smmuText = rest.dropLast(streamText.count).dropLast()
        device = nil
        smmu = smmuText.isEmpty ? nil : SMMUSelector(text: String(smmuText))
        self.stream = Hex(stream)
    }
}

extension SMMUSelector: ExpressibleByArgument {
    /// A number is an index, everything else a path.
    init(text: String) { self = Int(text).map { .index($0) } ?? .path(text) }

    package init?(argument: String) { self.init(text: argument) }
}

extension DomainName: ExpressibleByArgument {
    package init?(argument: String) {
        guard !argument.isEmpty else { return nil }
        self.init(rawValue: argument)
    }
}
extension TransactionParameters.Access: ExpressibleByArgument {}

extension Permissions: ExpressibleByArgument {
    package init?(argument: String) { self.init(argument) }
}

extension CompletionKind {
    /// The names of the endpoints of the daemon that runs, if one runs.
    static var devices: CompletionKind {
        .custom { _, _, _ in
            guard let client = try? ControlClient(path: SocketPaths.control) else { return [] }
            client.timeoutMilliseconds = 1000
            guard let board = try? client.call(Methods.MachineDescribe.self, Nothing()) else { return [] }
            return board.endpoints.flatMap { [$0.name] + $0.aliases }
        }
    }
}

extension CompletionKind {
    /// The names of domains, of the daemon that runs, if one runs.
    static var domains: CompletionKind {
        .custom { _, _, _ in
            let fixed = [DomainName.dma, .identity, .blocked].map(\.rawValue)
            guard let client = try? ControlClient(path: SocketPaths.control) else { return fixed }
            client.timeoutMilliseconds = 1000
            guard let result = try? client.call(Methods.IOMMUDomains.self, Nothing()) else { return fixed }
            return fixed + result.domains.compactMap(\.name).filter { !fixed.contains($0) }
        }
    }
}

/// Which SMMU, where there are several.
struct SMMUOption: ParsableArguments {
    @Option(
        name: .customLong("smmu"),
        help: "The SMMU, by its path or its index; may be left out on a board with one."
    )
    var selector: SMMUSelector?
}

/// What a transaction says of itself beside its address.
struct TransactionOptions: ParsableArguments {
    @Option(help: "The StreamID, where the device has several; its first one otherwise.")
    var stream: Number?

    @Option(help: "The SubstreamID (PASID); without it the transaction has none.")
    var substream: Number?

    @Flag(help: "A privileged transaction.")
    var privileged = false
}

/// Where the data of a write comes from.
struct DataInput: ParsableArguments {
    @Option(name: .customLong("hex"), help: "The data as hex digits, blanks allowed: \"de ad be ef\".")
    var hexDigits: String?

    @Option(help: "The data as text.")
    var text: String?

    @Option(help: "A file with the data; - is standard input.", completion: .file())
    var file: String?

    func validate() throws {
        let given = [hexDigits, text, file].compactMap { $0 }.count
        guard given <= 1 else { throw ValidationError("Give one of --hex, --text and --file, not several.") }
        if let hexDigits, ByteString.bytes(hexDigits: hexDigits) == nil {
            throw ValidationError("--hex takes pairs of hex digits: \"\(hexDigits)\" is none.")
        }
    }

    /// The bytes; from standard input where no option says otherwise.
    func bytes() throws -> [UInt8] {
        if let hexDigits { return ByteString.bytes(hexDigits: hexDigits) ?? [] }
        if let text { return Array(text.utf8) }
        guard let file, file != "-" else {
            return try Self.contents(of: STDIN_FILENO, name: "standard input")
        }
        let descriptor = open(file, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw FileProblem(file) }
        defer { close(descriptor) }
        return try Self.contents(of: descriptor, name: file)
    }

    private static func contents(of descriptor: CInt, name: String) throws -> [UInt8] {
        var contents: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw FileProblem(name) }
            guard count > 0 else { return contents }
            contents += buffer.prefix(count)
        }
    }
}

/// Where the data of a read goes.
struct DataOutput: ParsableArguments {
    @Flag(help: "Write the bytes themselves to standard output, no hexdump.")
    var raw = false

    @Option(name: .customLong("out"), help: "Write the bytes to this file, no hexdump.", completion: .file())
    var path: String?

    /// Whether the bytes go elsewhere than into a report.
    var takesBytes: Bool { raw || path != nil }

    func validate() throws {
        guard !(raw && path != nil) else { throw ValidationError("Give one of --raw and --out, not both.") }
    }

    /// Writes the bytes where they are wanted, for which ``takesBytes`` must say yes.
    func write(_ bytes: [UInt8]) throws {
        guard let path else {
            Output.write(bytes)
            return
        }
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else { throw FileProblem(path) }
        defer { close(descriptor) }
        guard Output.write(bytes, to: descriptor) else { throw FileProblem(path) }
    }
}

/// A file could not be read or written; errno says why.
struct FileProblem: Error, CustomStringConvertible {
    let description: String

    init(_ path: String) {
        description = "\(path): " + (strerror(errno).map { String(cString: $0) } ?? "error")
    }
}

/// Transfers of any length, in pieces that a call can carry.
enum Pieces {
    private static let byteCount: UInt64 = 1 << 20

    /// Ranges that together are the first `total` bytes; one empty range where there are none.
    static func of(_ total: UInt64) -> [Range<UInt64>] {
        guard total > 0 else { return [0..<0] }
        return stride(from: 0, to: total, by: Int(byteCount)).map { $0..<min(total, $0 + byteCount) }
    }
}
