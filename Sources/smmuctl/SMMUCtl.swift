// smmuctl: the daemon's command line. This file owns the root command and what all commands share.

import ArgumentParser
import ControlProtocol
import Glibc
import SMMUClient

@main
struct SMMUCtl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "smmuctl",
        abstract: "Drives a running smmud: its board, its IOMMU, DMA of its devices.",
        discussion: """
            Example: give a device 64 KiB of memory, write to it as the device, and see how it got there.

              smmuctl map dma-controller@100000 64K --iova 0x10000
              smmuctl dma write dma-controller@100000 0x10000 --text "hello"
              smmuctl explain dma-controller@100000 0x10000

            A device goes by its name or an alias, as 'smmuctl board' lists them; any StreamID goes as sid:0x42, \
            or as sid:1:0x42 for the SMMU with index 1.
            Numbers are decimal or 0x hexadecimal, with K, M, G or T for 2^10, 2^20, 2^30 or 2^40.

            Exit codes: 0 done; 1 error; 2 no connection to the daemon; 3 the DMA or the translation faulted; \
            64 wrong usage.
            """,
        subcommands: [
            Board.self, Map.self, Unmap.self, Mappings.self, Alloc.self, Free.self, Attach.self, Groups.self,
            GroupType.self,
            Domains.self, Device.self, SVA.self, StrictLazy.self, DMA.self, Translate.self, Explain.self,
            Events.self, IRQ.self, Dmesg.self, Trace.self, Regs.self, Mem.self, MMIO.self, Stat.self,
            Stats.self, Log.self, Version.self, Shutdown.self,
        ]
    )
    @OptionGroup var global: GlobalOptions
}

extension ExitCode {
    /// The daemon could not be reached, or went away.
    static let noConnection = ExitCode(2)
    /// The DMA or the translation ended in a fault.
    static let fault = ExitCode(3)
}

/// What every command takes.
struct GlobalOptions: ParsableArguments {
    @Option(
        name: .customLong("socket"),
        help: ArgumentHelp(
            "The daemon's control socket. Default: $SMMUD_SOCKET, else control.sock in /run/smmud for root and in "
                + "$XDG_RUNTIME_DIR/smmud for others.",
            valueName: "path"
        ),
        completion: .file()
    )
    var socketPath: String?

    @Flag(name: .customLong("json"), help: "Print JSON for programs.")
    var isJSON = false

    /// Calls a method on a connection of its own.
    func call<Method: ControlMethod>(
        _ method: Method.Type,
        _ parameters: Method.Parameters
    ) throws -> Method.Result {
        try withClient { client throws(ClientError) in try client.call(method, parameters) }
    }

    /// Connects, and turns what goes wrong into a message and an exit code.
    func withClient<Value>(_ body: (ControlClient) throws(ClientError) -> Value) throws -> Value {
        do throws(ClientError) {
            return try body(try ControlClient(path: socketPath ?? SocketPaths.control))
        } catch {
            Output.complain(Format.printable(error.description))
            throw error.exitCode
        }
    }

    /// Prints a result: as JSON if that is wanted, else as text.
    func print(_ value: some Encodable, as text: @autoclosure () -> String) throws {
        if isJSON {
            Output.write(try ControlJSON.prettyText(value) + "\n")
        } else {
            Output.write(Format.printable(text()))
        }
    }

    /// Prints one of many: a line of JSON, or text.
    func printLine(_ value: some Encodable, as text: @autoclosure () -> String) throws {
        if isJSON {
            Output.write(try ControlJSON.line(value) + [UInt8(ascii: "\n")])
        } else {
            Output.write(Format.printable(text()))
        }
    }
}

extension ClientError {
    var exitCode: ExitCode {
        switch self {
        case .cannotConnect, .disconnected, .timedOut: .noConnection
        case .violation, .refused, .rejected, .local: .failure
        }
    }
}

/// Standard output and standard error, without a buffer: a follower's reader sees each line at once.
enum Output {
    static func write(_ text: String) { write(Array(text.utf8)) }

    /// Writes to standard output; a result that does not get there is an error.
    static func write(_ bytes: [UInt8]) {
        guard !write(bytes, to: STDOUT_FILENO) else { return }
        complain("standard output: " + (strerror(errno).map { String(cString: $0) } ?? "error"))
        exit(ExitCode.failure.rawValue)
    }

    static func complain(_ text: String) { _ = write(Array("smmuctl: \(text)\n".utf8), to: STDERR_FILENO) }

    /// Writes all of `bytes`; false, with errno, where that fails.
    static func write(_ bytes: [UInt8], to descriptor: CInt) -> Bool {
        bytes.withUnsafeBytes { bytes in
            var rest = bytes
            while !rest.isEmpty {
                let written = Glibc.write(descriptor, rest.baseAddress, rest.count)
                if written < 0, errno == EINTR { continue }
                guard written > 0 else { return false }
                rest = UnsafeRawBufferPointer(rebasing: rest[written...])
            }
            return true
        }
    }
}
