// A program that drives a disk behind a vfio-user socket by itself: no guest, no VMM.

import Glibc
import VFIOUserClient
import VFIOUserDrivers

@main
struct Example {
    static let usage = """
        usage: smmud-vfio-example SOCKET [--check BLOCKS] [--messages] [--eventfds]

        Prints what the device at a vfio-user server's SOCKET is. A virtio-blk or NVMe disk is brought up, and its
        first block is read.

          --check BLOCKS   writes BLOCKS blocks from the first on, reads them back and compares. WHAT WAS THERE IS LOST.
          --messages       shares no memory: the server asks for each access (DMA_READ, DMA_WRITE).
          --eventfds       tells a virtio-blk disk of requests by an eventfd, where the server has one for that.
        """

    struct Arguments {
        var path = ""
        var checkedBlockCount: UInt64 = 0
        var sharing = DriverMemory.Sharing.byDescriptor
        var usesEvents = false

        init?(_ arguments: [String]) {
            var rest = arguments[...]
            while let argument = rest.popFirst() {
                switch argument {
                case "--check":
                    guard let count = rest.popFirst().flatMap({ UInt64($0) }), count > 0 else { return nil }
                    checkedBlockCount = count
                case "--messages": sharing = .byMessage
                case "--eventfds": usesEvents = true
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
            fail(usage, status: 64)
        }
        do {
            try run(arguments)
        } catch {
            fail("smmud-vfio-example: \(error)", status: 1)
        }
    }

    static func fail(_ text: String, status: Int32) -> Never {
        let line = Array((text + "\n").utf8)
        _ = write(2, line, line.count)
        exit(status)
    }

    static func run(_ arguments: Arguments) throws {
        let client = try VFIOUserClient(path: arguments.path)
        try Dump(client).printAll()
        guard let disk = try openDisk(client, arguments) else {
            print("no disk that this program has a driver for")
            return
        }
        print("disk: \(disk.name): \(disk.blockCount) blocks of \(disk.blockByteCount) bytes")
        print("block 0: \(hex(try disk.read(disk.blockByteCount, at: 0).prefix(32)))")
        if arguments.checkedBlockCount > 0 { try check(disk, blockCount: arguments.checkedBlockCount) }
        print("interrupts: \(disk.interruptCount)")
    }

    /// The driver for a disk; nil where there is none.
    static func openDisk(_ client: VFIOUserClient, _ arguments: Arguments) throws -> (any BlockDevice)? {
        let device = PCIDevice(client)
        if try device.classCode == 0x010802 { return try NVMeDriver(client, arguments.sharing) }
        if try device.vendorID == 0x1af4, try device.deviceID == 0x1042 {
            return try VirtioBlockDriver(client, arguments.sharing, usesEvents: arguments.usesEvents)
        }
        return nil
    }

    /// Writes, flushes, reads back and compares.
    static func check(_ disk: any BlockDevice, blockCount: UInt64) throws {
        let count = min(blockCount, disk.blockCount)
        let step = UInt64(disk.transferByteCountMax / disk.blockByteCount)
        func pattern(_ block: UInt64) -> [UInt8] {
            (0..<min(step, count - block)).flatMap { index in
                (0..<disk.blockByteCount).map {
                    UInt8(truncatingIfNeeded: (block + index) &* 31 &+ UInt64($0))
                }
            }
        }
        for block in stride(from: 0, to: count, by: Int(step)) { try disk.write(pattern(block), at: block) }
        try disk.flush()
        for block in stride(from: 0, to: count, by: Int(step)) {
            let expected = pattern(block)
            guard try disk.read(expected.count, at: block) == expected else {
                throw ExampleError(description: "blocks from \(block) on are not what was written")
            }
        }
        print("checked: \(count) blocks written, flushed, read and compared")
    }

    static func hex(_ bytes: some Sequence<UInt8>) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
    }
}

struct ExampleError: Error, CustomStringConvertible {
    var description: String
}
