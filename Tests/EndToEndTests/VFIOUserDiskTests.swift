// Disks over vfio-user without a guest: a program on the client library drives them, and their data is right.

import ControlProtocol
import Glibc
import SMMUClient
import Testing

/// A daemon whose board is dts/virt.dts, with disks.
private struct DiskDaemon {
    let daemon: Daemon
    let directory: TemporaryDirectory
    var sockets: String { directory.file("v") }

    init(_ devices: [String], arguments: [String] = ["--driver", "own"]) throws {
        directory = try TemporaryDirectory()
        let board = String(decoding: try contents(of: Paths.package + "/dts/virt.dts"), as: UTF8.self)
        var words = arguments + ["--vfio-user", directory.file("v")]
        for device in devices {
            words += ["--device", device.replacing("DIRECTORY", with: directory.path)]
        }
        for name in ["disk1.img", "disk2.img"] {
            let path = try directory.write([], to: name)
            guard truncate(path, 8 << 20) == 0 else { throw TestFailure("truncate") }
        }
        daemon = try Daemon(board: board, in: directory, arguments: words)
    }

    /// Has the example drive the function at an address.
    func drive(_ address: String, _ words: [String]) throws -> String {
        let result = try ChildProcess.run(
            Paths.programs + "/smmud-vfio-example",
            ["\(sockets)/\(address).sock"] + words
        )
        guard result.exitCode == 0 else { throw TestFailure("\(result.exitCode): \(result.errors)") }
        return result.output
    }

    /// Whether nothing is mapped for clients any more, some time after they have gone.
    func isEventuallyUnmapped() throws -> Bool {
        let deadline = ContinuousClock.now + .seconds(20)
        while try !daemon.control().call(Methods.IOMMUMappings.self, .init()).mappings.isEmpty {
            guard ContinuousClock.now < deadline else { return false }
            sched_yield()
        }
        return true
    }
}

@Suite("Disks over vfio-user")
struct VFIOUserDiskTests {
    @Test(
        "a program without a guest writes, flushes and reads back: its memory shared, or asked for by messages",
        arguments: ["stage1", "stage2", "full"]
    )
    func disks(_ profile: String) throws {
        let machine = try DiskDaemon(
            [
                "virtio-blk,at=0000:00:01.0,file=DIRECTORY/disk1.img,queues=2",
                "nvme,at=0000:00:02.0,file=DIRECTORY/disk2.img",
            ],
            arguments: ["--smmu", profile]
        )
        for (address, disk) in [("0000:00:01.0", "disk1.img"), ("0000:00:02.0", "disk2.img")] {
            for sharing in [[], ["--messages"], ["--eventfds"]] {
                let output = try machine.drive(address, ["--check", "64"] + sharing)
                #expect(
                    output.contains("checked: 64 blocks written, flushed, read and compared"),
                    "\(output)"
                )
            }
            // What was acknowledged is in the file, and not all zeros.
            let bytes = try contents(of: machine.directory.file(disk))
            #expect(bytes[..<(64 * 512)].contains { $0 != 0 })
            #expect(bytes[(64 * 512)...].allSatisfy { $0 == 0 })
        }
        // Every byte went through tables that the driver wrote.
        let groups = try machine.daemon.control().call(Methods.Stats.self, .init()).groups
        let walks = groups.first?.counters.first { $0.name == "walks" }?.value ?? 0
        #expect(walks > 0)
        let disk = groups.first { $0.owner.hasSuffix("/0000:00:01.0") }?.counters ?? []
        #expect(disk.contains { $0.value > 0 }, "\(groups.map(\.owner))")
        #expect(try machine.daemon.stop().exitCode == 0)
    }

    @Test(
        "a device of another daemon stands behind our SMMU: its DMA is translated twice, or it is lent what is mapped",
        arguments: ["messages", "mapped"]
    )
    func chain(_ dma: String) throws {
        let far = try DiskDaemon(["virtio-blk,at=0000:00:01.0,file=DIRECTORY/disk1.img"])
        let near = try DiskDaemon([
            "vfio-user,at=0000:00:03.0,socket=\(far.sockets)/0000:00:01.0.sock,dma=\(dma)"
        ])
        let output = try near.drive("0000:00:03.0", ["--check", "32"])
        #expect(output.contains("checked: 32 blocks written, flushed, read and compared"), "\(output)")
        #expect(try contents(of: far.directory.file("disk1.img"))[..<(32 * 512)].contains { $0 != 0 })
        // By message every byte went through the near one's SMMU as well; what is lent is reached without it.
        let groups = try near.daemon.control().call(Methods.Stats.self, .init()).groups
        let walks = try #require(groups.first?.counters.first { $0.name == "walks" }).value
        #expect(dma == "mapped" ? walks == 0 : walks > 0, "\(walks)")
        // The program has gone, and what was lent for it has been taken back, here as there.
        #expect(try near.isEventuallyUnmapped())
        #expect(try dma == "messages" || far.isEventuallyUnmapped())
        // The far one may go; the near one says so to its client, and goes on.
        #expect(try far.daemon.stop().exitCode == 0)
        #expect(throws: TestFailure.self) { try near.drive("0000:00:03.0", ["--check", "4"]) }
        #expect(try near.daemon.serves())
        #expect(try near.daemon.stop().exitCode == 0)
    }

    @Test(
        "two functions of one daemon serve two clients at once, and a second client of one waits for the first"
    )
    func clients() throws {
        let machine = try DiskDaemon([
            "virtio-blk,at=0000:00:01.0,file=DIRECTORY/disk1.img",
            "nvme,at=0000:00:02.0,file=DIRECTORY/disk2.img",
        ])
        let program = Paths.programs + "/smmud-vfio-example"
        let children = try ["0000:00:01.0", "0000:00:02.0", "0000:00:01.0"].map { address in
            try ChildProcess(program, ["\(machine.sockets)/\(address).sock", "--check", "512"])
        }
        for child in children { #expect(try child.wait().exitCode == 0) }
        #expect(try machine.daemon.stop().exitCode == 0)
    }

    @Test("devices that cannot be are refused with what is wrong and what would be right")
    func refusals() throws {
        let directory = try TemporaryDirectory()
        let blob = try directory.compile(file: Paths.package + "/dts/virt.dts")
        let cases = [
            ("floppy,at=0000:00:01.0", "there is no device \"floppy\"; there are virtio-blk"),
            ("virtio-blk,file=x", "at=PLACE is missing"),
            ("virtio-blk,at=0000:00:01.0", "a virtio-blk needs file=..."),
            ("virtio-blk,at=0000:00:01.0,file=/nowhere/disk", "/nowhere/disk: open: No such file"),
            ("virtio-blk,at=9999:00:01.0,file=x", "the tree has no 9999:00:01.0"),
            ("virtio-rng,at=0000:00:01.0,colour=red", "a virtio-rng has no \"colour\"; it has"),
            ("virtio-net,at=0000:00:01.0", "needs one of tap=..., socket=..., link=..."),
            ("virtio-net,at=0000:00:01.0,link=a", "the link \"a\" has one end"),
            ("virtio-net,at=0000:00:01.0,link=a,mac=1", "mac is like 52:54:00:12:34:56"),
            ("nvme,at=0000:00:01.0,file=x,queues=65", "queues is 1 to 64, not \"65\""),
            ("vfio-user,at=0000:00:01.0,socket=/nowhere/s", "--device vfio-user"),
            (
                "vfio-user,at=0000:00:01.0,socket=/nowhere/s,dma=fast",
                "dma is messages or mapped, not \"fast\""
            ),
            ("virtio-net,at=0000:00:01.0,tap=sixteen-letters-", "tap=sixteen-letters-: Invalid argument"),
        ]
        for (specification, message) in cases {
            let result = try ChildProcess.run(Paths.smmud, [blob, "--check", "--device", specification])
            #expect(result.exitCode != 0, "\(specification)")
            #expect(result.errors.contains(message), "\(specification): \(result.errors)")
        }
    }
}
