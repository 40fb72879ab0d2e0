// Memory that is lent to a device of another program: exactly what is mapped for it, exactly as long.

import AddressSpace
import ControlProtocol
import DeviceModel
import Glibc
import GuestMemory
import Machine
import SMMUv3
import Synchronization
import SystemBus
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// The small board without an SMMU before its PCIe functions.
private let directBoard = TestBoard.small.replacing("iommu-map = <0x0 &smmu 0x10000 0x1000>;", with: "")

@Suite("Memory lent to foreign devices")
struct ForeignMemoryTests {
    @Test("what the driver maps is lent, and data moves through it; what is unmapped is not reached any more")
    func mapAndUnmap() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let near = try NearMachine(far)
        defer { near.stop() }
        #expect(far.shared == [])
        #expect(try near.read(0x10000) == nil)
        let physical = try near.map(0x10000, 0x4000)
        #expect(far.shared == [try bytes(0x10000, 0x4000)])
        // Out of the near machine's RAM, and into it; nothing was asked for, as there is no range to ask for.
        try near.setWord(physical + 0x1008, 0x1122_3344_5566_7788)
        #expect(try near.read(0x11008) == 0x1122_3344_5566_7788)
        #expect(try near.copy(0x11008, to: 0x13FF8))
        #expect(try near.word(physical + 0x3FF8) == 0x1122_3344_5566_7788)
        #expect(far.asked == [])
        // A page in the middle.
        try near.unmap(0x11000, 0x1000)
        #expect(far.shared == [try bytes(0x10000, 0x1000), try bytes(0x12000, 0x2000)])
        #expect(try near.read(0x11008) == nil)
        #expect(try near.read(0x13FF8) == 0x1122_3344_5566_7788)
        // Another page there, which is somewhere else in RAM.
        let other = try near.map(0x11000, 0x1000)
        try near.setWord(other, 0x77)
        #expect(try near.read(0x11000) == 0x77)
        try near.unmap(0x10000, 0x4000)
        #expect(far.shared == [])
        for address in [0x10000, 0x11000, 0x13FF8] as [UInt64] { #expect(try near.read(address) == nil) }
        #expect(near.machine.smmus[0].model.events().isEmpty)
    }

    @Test("when the device is told to let go, the SMMU translates no more, and the unmap has not returned")
    func order() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let near = try NearMachine(far)
        defer { near.stop() }
        let physical = try near.map(0x20000, 0x1000)
        let machine = near.machine
        let identity = RequesterIdentity(smmuIndex: 0, streamID: StreamID(0x10018))
        let seen = Mutex<[String]>([])
        #expect(Self.reads(machine, identity, 0x20000))
        far.onUnmap.withLock { onUnmap in
            onUnmap = { range in
                let state = Self.reads(machine, identity, 0x20000) ? "translated" : "not translated"
                seen.withLock { $0.append("\(range) \(state)") }
            }
        }
        try near.unmap(0x20000)
        seen.withLock { $0.append("returned") }
        #expect(seen.withLock { $0 } == ["0x20000-0x20fff not translated", "returned"])
        // And the page that was freed goes to somebody else only then.
        #expect(try near.map(0x30000, 0x1000) == physical)
    }

    private static func reads(_ machine: Machine, _ identity: RequesterIdentity, _ address: UInt64) -> Bool {
        let port = machine.makePort(for: identity)
        var word: UInt64 = 0
        return withUnsafeMutableBytes(of: &word) { buffer in
            (try? port.read(at: IOVirtualAddress(address), into: buffer, .plain)) != nil
        }
    }

    @Test(
        "an unmap under the device's DMA: what it had is anybody's afterwards, and nothing lands there late"
    )
    func underDMA() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let near = try NearMachine(far)
        defer { near.stop() }
        let byteCount: UInt64 = 16 << 20
        let block = try near.client.call(Methods.MemoryAllocate.self, .init(length: Size(byteCount)))
        for round in 0..<8 {
            try near.map(0x1000_0000, byteCount, to: block.address.value)
            try near.startFilling(0x1000_0000, byteCount)
            // Until it has been here.
            while try near.word(block.address.value + 8) == 0 { sched_yield() }
            try near.unmap(0x1000_0000)
            let region = try #require(near.machine.memory.first)
            let offset = block.address.value - region.range.first
            let start = try region.region.pointer(at: offset, count: byteCount, for: .write)
            memset(start, 0, Int(byteCount))
            #expect(try !near.finishFilling(), "round \(round): it was done before the unmap")
            // The first byte is 0, and each is as the next.
            let isZero = memcmp(start, start + 1, Int(byteCount) - 1) == 0
            #expect(isZero && start.load(as: UInt8.self) == 0, "round \(round)")
        }
    }

    @Test("a device's server that does not let go loses its connection, and the unmap goes on")
    func stuckServer() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let reports = Mutex<[String]>([])
        let near = try NearMachine(far) { options in
            options.report = { text in reports.withLock { $0.append(text) } }
        }
        defer { near.stop() }
        try near.map(0x10000, 0x1000)
        try near.map(0x20000, 0x1000)
        let isReleased = Atomic(false)
        far.onUnmap.withLock { onUnmap in
            onUnmap = { _ in while !isReleased.load(ordering: .acquiring) { usleep(1000) } }
        }
        defer { isReleased.store(true, ordering: .releasing) }
        try near.unmap(0x10000)
        #expect(throws: RegisterAccessError.self) { try near.read(0x20000) }
        let place = "/pcie@50000000/0000:00:03.0"
        #expect(
            reports.withLock { $0.first }?.hasPrefix("\(place): 0x10000-0x10fff was not given back: ") == true
        )
        // The driver goes on for others, and for this one as if nobody was there.
        try near.unmap(0x20000)
        try near.map(0x30000, 0x1000)
    }

    @Test("a mapping is lent with its permissions, and one that plain accesses cannot use is not lent")
    func permissions() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let near = try NearMachine(far)
        defer { near.stop() }
        let source = try near.map(0x10000, 0x1000)
        try near.setWord(source, 5)
        let fixed = try near.map(0x20000, 0x1000, Permissions(read: true, write: false))
        #expect(try near.read(0x20000) == 0)
        #expect(try !near.copy(0x10000, to: 0x20000))
        #expect(try near.word(fixed) == 0)
        try near.map(0x30000, 0x1000, Permissions(read: true, write: true, privileged: true))
        try near.map(0x40000, 0x1000, substream: 3)
        // Registers have no memory that could be lent.
        try near.map(0x50000, 0x1000, to: 0x2B40_0000)
        #expect(far.shared == [try bytes(0x10000, 0x1000), try bytes(0x20000, 0x1000)])
    }

    @Test("a device that bypasses has all RAM at its physical addresses; one that is blocked has none")
    func domains() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let near = try NearMachine(far)
        defer { near.stop() }
        let physical = try near.map(0x10000, 0x1000)
        try near.setWord(physical, 9)
        try near.attach(.identity)
        #expect(far.shared == [try bytes(0x8000_0000, 0x4000_0000)])
        #expect(try near.read(physical) == 9)
        #expect(try near.read(0x10000) == nil)
        try near.attach(.blocked)
        #expect(far.shared == [])
        #expect(try near.read(physical) == nil)
        // What was mapped all the time is there again.
        try near.attach(.dma)
        #expect(far.shared == [try bytes(0x10000, 0x1000)])
        #expect(try near.read(0x10000) == 9)
    }

    @Test("what the tree has mapped one to one is lent from the start")
    func directRegions() throws {
        let board = TestBoard.small
            .replacing(
                "nic@2,0 { reg = <0x1000 0 0 0 0>; };",
                with: "nic: nic@3,0 { reg = <0x1800 0 0 0 0>; memory-region = <&picture>; };"
            )
            .replacing(
                "iommu-addresses = <&display 0 0x90000000 0 0x10000>;",
                with: "iommu-addresses = <&display 0 0x90000000 0 0x10000>, <&nic 0 0 0x90000000 0 0x10000>;"
            )
        let far = try FarMachine()
        defer { far.stop() }
        let near = try NearMachine(far, board: board)
        defer { near.stop() }
        #expect(far.shared == [try bytes(0x9000_0000, 0x10000)])
        try near.setWord(0x9000_0008, 3)
        #expect(try near.read(0x9000_0008) == 3)
        try near.attach(.identity)
        try near.attach(.dma)
        #expect(far.shared == [try bytes(0x9000_0000, 0x10000)])
    }

    @Test("without an SMMU all RAM is lent, and clients' memory as it comes and goes")
    func withoutSMMU() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let own = try NearMachine(far, board: directBoard)
        #expect(far.shared == [try bytes(0x8000_0000, 0x4000_0000)])
        try own.setWord(0x8000_1000, 4)
        #expect(try own.read(0x8000_1000) == 4)
        own.stop()

        let other = try FarMachine()
        defer { other.stop() }
        let near = try NearMachine(other, board: directBoard) {
            $0.memory = .client
            $0.driver = .none
        }
        defer { near.stop() }
        #expect(other.shared == [])
        let region = try MemoryRegion.anonymous(byteCount: 0x8000, name: "client")
        let memory = near.machine.makeClientMemory(for: nil)
        let lent = VFIOUserMemoryRange(
            address: 0x4000_0000,
            byteCount: 0x4000,
            isReadable: true,
            isWritable: true
        )
        let descriptor = OwnedDescriptor(adopting: fcntl(region.fileDescriptor, F_DUPFD_CLOEXEC, 0))
        try memory.map(lent, .descriptor(descriptor, offset: 0x4000))
        #expect(other.shared == [try bytes(0x4000_0000, 0x4000)])
        try region.pointer(at: 0x4008, count: 8, for: .write).storeBytes(of: 0x55, as: UInt64.self)
        #expect(try near.read(0x4000_0008) == 0x55)
        try memory.unmap(address: 0x4000_0000, byteCount: 0x4000)
        #expect(other.shared == [])
        #expect(try near.read(0x4000_0008) == nil)
    }

    @Test("what is mapped is lent anew where the machine's memory under it changes")
    func memoryUnderMappings() throws {
        let far = try FarMachine()
        defer { far.stop() }
        let near = try NearMachine(far)
        defer { near.stop() }
        // A client's memory is somewhere above the board's, for the device that it was lent to; another device's
        // driver maps the same physical addresses.
        let region = try MemoryRegion.anonymous(byteCount: 0x4000, name: "client")
        let lender = try #require(near.machine.endpoint(named: "0000:00:05.0"))
        let memory = near.machine.makeClientMemory(for: lender)
        let lent = VFIOUserMemoryRange(
            address: 0x7000_0000,
            byteCount: 0x4000,
            isReadable: true,
            isWritable: true
        )
        let descriptor = OwnedDescriptor(adopting: fcntl(region.fileDescriptor, F_DUPFD_CLOEXEC, 0))
        try memory.map(lent, .descriptor(descriptor, offset: 0))
        let mappings = near.machine.clientMappings(of: lender)
        let physical = try #require(mappings.first { $0.iova == 0x7000_0000 }).address.value
        try near.map(0x10000, 0x2000, to: physical + 0x1000)
        #expect(far.shared == [try bytes(0x10000, 0x2000)])
        memory.unmapAll()
        #expect(far.shared == [])
        #expect(try near.read(0x10000) == nil)
    }

    @Test("a device that is to be lent memory is refused where nobody could say what is mapped for it")
    func refusals() throws {
        let far = try FarMachine()
        defer { far.stop() }
        func complaint(
            _ words: String,
            _ driver: MachineOptions.Driver,
            board: String = TestBoard.small,
            at place: String = "0000:00:03.0"
        ) throws -> String {
            var options = MachineOptions()
            options.driver = driver
            options.devices = [
                try DeviceSpecification(argument: "vfio-user,at=\(place),socket=\(far.path),\(words)")
            ]
            let board = try TestBoard.load(board)
            let error = #expect(throws: MachineError.self) { try Machine(board: board, options: options) }
            return error?.description ?? ""
        }
        #expect(try complaint("dma=mapped", .none).contains("dma=mapped needs smmud's own driver"))
        #expect(try complaint("dma=magic", .own).contains("dma is messages or mapped, not \"magic\""))
        let below = TestBoard.small.replacing(
            "nic@2,0 { reg = <0x1000 0 0 0 0>; };",
            with: """
                port@4,0 {
                    device_type = "pci";
                    reg = <0x2000 0 0 0 0>;
                    bus-range = <1 1>;
                    #address-cells = <3>;
                    #size-cells = <2>;
                    ranges;
                    far@0 { reg = <0x10000 0 0 0 0>; };
                };
                """
        )
        let renumbered = try complaint("dma=mapped", .own, board: below, at: "0000:01:00.0")
        #expect(renumbered.contains("dma=mapped needs a function on a root bus"), "\(renumbered)")
    }
}
