// Writes blocks to a disk behind a vfio-user socket and reports what was flushed, until somebody stops it.
//
// The tests kill it, or its server, and look afterwards whether the disk holds what it reported.

import CLinux
import DiskJournal
import Glibc
import VFIOUserClient
import VFIOUserDrivers

@main
struct DiskWriter {
    static let usage = """
        usage: smmud-disk-writer SOCKET [--seed N] [--run N] [--pause MILLISECONDS] [--messages | --truncate N] [--read]

        Prints "ready", and "flushed N" when the writes 0 to N of the plan are flushed.

          --pause     waits so long after each flush
          --messages  shares no memory: the server asks for each access
          --truncate  truncates the memory that it shares, while it goes on, from write N on
          --read      writes nothing: prints "read" and the checksum of the plan's blocks, and ends
        """

    struct Arguments {
        var path = ""
        var seed: UInt64 = 0
        var run: UInt32 = 0
        var pauseMilliseconds: UInt32 = 0
        var isByMessage = false
        var truncation: UInt64?
        var onlyReads = false

        init?(_ arguments: [String]) {
            var rest = arguments[...]
            while let argument = rest.popFirst() {
                switch argument {
                case "--messages": isByMessage = true
                case "--read": onlyReads = true
                case "--seed", "--run", "--pause", "--truncate":
                    guard let number = rest.popFirst().flatMap({ UInt64($0) }) else { return nil }
                    if argument == "--seed" { seed = number }
                    if argument == "--run" { run = UInt32(clamping: number) }
                    if argument == "--pause" { pauseMilliseconds = UInt32(clamping: min(number, 1000)) }
                    if argument == "--truncate" { truncation = number }
                default:
                    guard path.isEmpty, !argument.hasPrefix("-") else { return nil }
                    path = argument
                }
            }
            guard !path.isEmpty else { return nil }
        }
    }

    static func main() {
        guard let arguments = Arguments(Array(CommandLine.arguments.dropFirst())) else {
            end(usage, status: 64)
        }
        do {
            try run(arguments)
        } catch {
            end("smmud-disk-writer: \(arguments.path): \(error)", status: 1)
        }
    }

    static func end(_ text: String, status: Int32) -> Never {
        put(text, to: 2)
        exit(status)
    }

    /// Writes a line in one call: a line is there as a whole or not at all.
    static func put(_ text: String, to descriptor: CInt = 1) {
        let line = Array((text + "\n").utf8)
        _ = Glibc.write(descriptor, line, line.count)
    }

    static func run(_ arguments: Arguments) throws {
        var sharing = arguments.isByMessage ? DriverMemory.Sharing.byMessage : .byDescriptor
        var file: CInt = -1
        if arguments.truncation != nil {
            file = smmud_memfd_create_unsealed("disk-writer", 1 << 20)
            guard file >= 0 else {
                end("smmud-disk-writer: no memory to truncate", status: 1)
            }
            sharing = .inFile(file)
        }
        let client = try VFIOUserClient(path: arguments.path)
        let disk: any BlockDevice
        if try PCIDevice(client).classCode == 0x010802 {
            disk = try NVMeDriver(client, sharing)
        } else {
            disk = try VirtioBlockDriver(client, sharing)
        }
        guard disk.blockByteCount == JournalBlock.byteCount, disk.blockCount >= WritePlan.blockCount else {
            end("smmud-disk-writer: a disk of \(disk.blockCount) blocks is of no use here", status: 1)
        }
        put("ready")
        if arguments.onlyReads { return try printChecksum(disk) }
        try write(to: disk, arguments, file)
    }

    static func printChecksum(_ disk: any BlockDevice) throws {
        let step = UInt64(disk.transferByteCountMax / disk.blockByteCount)
        var checksum = Checksum()
        for first in stride(from: 0, to: WritePlan.blockCount, by: Int(step)) {
            let count = min(step, WritePlan.blockCount - first)
            checksum.add(try disk.read(Int(count) * disk.blockByteCount, at: first))
        }
        put("read \(checksum.value)")
    }

    static func write(to disk: any BlockDevice, _ arguments: Arguments, _ file: CInt) throws {
        let plan = WritePlan(seed: arguments.seed, run: arguments.run)
        for number in 0... as PartialRangeFrom<UInt64> {
            let bytes = plan.bytes(of: number)
            if number == arguments.truncation { try startTruncating(file) }
            try disk.write(bytes, at: plan[number].blocks.lowerBound)
            guard plan[number].isFlushed else { continue }
            try disk.flush()
            put("flushed \(number)")
            if arguments.pauseMilliseconds > 0 { usleep(arguments.pauseMilliseconds * 1000) }
        }
    }

    /// Takes the memory away, on another thread: the writes go on meanwhile.
    static func startTruncating(_ file: CInt) throws {
        var thread = pthread_t()
        let result = pthread_create(
            &thread,
            nil,
            { argument in
                _ = ftruncate(CInt(Int(bitPattern: argument)), 0)
                return nil
            },
            UnsafeMutableRawPointer(bitPattern: Int(file))
        )
        guard result == 0 else { end("smmud-disk-writer: no thread", status: 1) }
        pthread_detach(thread)
    }
}
