// Memory that vfio-user clients lend: as RAM, and behind the machine's own SMMUs.

import AddressSpace
import ControlProtocol
import DeviceModel
import Glibc
import GuestMemory
import Machine
import Synchronization
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// A client's memfd, and a second look at it.
private struct ClientFile: ~Copyable {
    let region: GuestMemory.MemoryRegion

    init(byteCount: UInt64) throws { region = try .anonymous(byteCount: byteCount, name: "client") }

    func source(offset: UInt64 = 0) -> VFIOUserMemorySource {
        .descriptor(
            OwnedDescriptor(adopting: fcntl(region.fileDescriptor, F_DUPFD_CLOEXEC, 0)),
            offset: offset
        )
    }

    func bytes(at offset: UInt64, _ count: Int) throws -> [UInt8] {
        let start = try region.pointer(at: offset, count: UInt64(count), for: .read)
        return Array(UnsafeRawBufferPointer(start: start, count: count))
    }
}

private func range(_ address: UInt64, _ byteCount: UInt64, writable: Bool = true) -> VFIOUserMemoryRange {
    VFIOUserMemoryRange(address: address, byteCount: byteCount, isReadable: true, isWritable: writable)
}

extension DMAPort {
    fileprivate func write(_ bytes: [UInt8], at address: UInt64) throws {
        try bytes.withUnsafeBytes { try write($0, at: IOVirtualAddress(address), .plain) }
    }

    fileprivate func read(_ count: Int, at address: UInt64) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        try bytes.withUnsafeMutableBytes { try read(at: IOVirtualAddress(address), into: $0, .plain) }
        return bytes
    }
}

/// Memory that a client keeps to itself.
private final class KeptMemory: RemoteMemory {
    let byte: UInt8
    init(_ byte: UInt8) { self.byte = byte }
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
        buffer.initializeMemory(as: UInt8.self, repeating: byte)
        return true
    }
    func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) -> Bool { true }
}

@Suite("A client's memory as RAM")
struct GuestRAMTests {
    private let machine: Machine
    private let port: any DMAPort

    init() throws {
        var options = MachineOptions()
        options.memory = .client
        options.driver = .none
        machine = try Machine(board: try TestBoard.load(TestBoard.small), options: options)
        port = machine.makePort(for: RequesterIdentity(smmuIndex: nil, streamID: StreamID(0)))
    }

    @Test("nothing is there before a client lends it, and nothing after the last has taken it back")
    func comesAndGoes() throws {
        let file = try ClientFile(byteCount: 1 << 20)
        let first = machine.makeClientMemory(for: nil)
        let second = machine.makeClientMemory(for: nil)
        #expect(throws: DMAFault.self) { try port.read(4, at: 0x4000_0000) }
        try first.map(range(0x4000_0000, 1 << 20), file.source())
        try second.map(range(0x4000_0000, 1 << 20), file.source())
        try port.write([1, 2, 3], at: 0x4000_0FFF)
        #expect(try file.bytes(at: 0xFFF, 3) == [1, 2, 3])
        first.unmapAll()
        #expect(try port.read(3, at: 0x4000_0FFF) == [1, 2, 3])
        try second.unmap(address: 0x4000_0000, byteCount: 1 << 20)
        #expect(throws: DMAFault.self) { try port.read(3, at: 0x4000_0FFF) }
    }

    @Test("the same map again is no error, another over it is EEXIST, and each counts once")
    func mapsOverMaps() throws {
        let file = try ClientFile(byteCount: 1 << 20)
        let memory = machine.makeClientMemory(for: nil)
        try memory.map(range(0x4000_0000, 0x8_0000), file.source())
        try memory.map(range(0x4000_0000, 0x8_0000), file.source())
        #expect(throws: VFIOUserError.exists) {
            try memory.map(range(0x4000_0000, 0x8_0000), file.source(offset: 0x1000))
        }
        #expect(throws: VFIOUserError.exists) {
            try memory.map(range(0x4000_0000, 0x8_0000, writable: false), file.source())
        }
        #expect(throws: VFIOUserError.exists) { try memory.map(range(0x4007_F000, 0x2000), file.source()) }
        try memory.unmap(address: 0x4000_0000, byteCount: 0x8_0000)
        #expect(throws: DMAFault.self) { try port.read(4, at: 0x4000_0000) }
    }

    @Test("an unmap takes whole maps, one or several, and none in part")
    func unmaps() throws {
        let file = try ClientFile(byteCount: 1 << 20)
        let memory = machine.makeClientMemory(for: nil)
        try memory.map(range(0x4000_0000, 0x1000), file.source())
        try memory.map(range(0x4000_1000, 0x1000), file.source(offset: 0x1000))
        try memory.map(range(0x4000_4000, 0x2000), file.source(offset: 0x4000))
        #expect(throws: VFIOUserError.invalid) { try memory.unmap(address: 0x4000_0000, byteCount: 0x1800) }
        #expect(throws: VFIOUserError.noEntry) { try memory.unmap(address: 0x4000_2000, byteCount: 0x2000) }
        #expect(throws: VFIOUserError.invalid) { try memory.unmap(address: 0x4000_5000, byteCount: 0x1000) }
        #expect(try port.read(1, at: 0x4000_1FFF) == [0])
        try memory.unmap(address: 0x4000_0000, byteCount: 0x3000)
        #expect(throws: DMAFault.self) { try port.read(1, at: 0x4000_0000) }
        #expect(try port.read(1, at: 0x4000_5FFF) == [0])
        try memory.unmap(address: 0, byteCount: .max)
        #expect(throws: DMAFault.self) { try port.read(1, at: 0x4000_4000) }
    }

    @Test("memory lent for reading takes no DMA write, and memory that is truncated stops nobody")
    func readOnlyAndTruncated() throws {
        let file = try ClientFile(byteCount: 0x2000)
        let memory = machine.makeClientMemory(for: nil)
        try memory.map(range(0x4000_0000, 0x2000, writable: false), file.source())
        #expect(throws: DMAFault.self) { try port.write([1], at: 0x4000_0000) }
        #expect(try port.read(1, at: 0x4000_0000) == [0])

        var path = Array("/tmp/smmud-client-XXXXXX".utf8CString)
        let descriptor = mkstemp(&path)
        try #require(descriptor >= 0)
        defer { close(descriptor) }
        unlink(path)
        try #require(ftruncate(descriptor, 0x4000) == 0)
        let copy = OwnedDescriptor(adopting: fcntl(descriptor, F_DUPFD_CLOEXEC, 0))
        try memory.map(range(0x5000_0000, 0x4000), .descriptor(copy, offset: 0))
        try port.write([7], at: 0x5000_3000)
        try #require(ftruncate(descriptor, 0x1000) == 0)
        #expect(throws: DMAFault.self) { try port.read(1, at: 0x5000_3000) }
        #expect(throws: DMAFault.self) { try port.write([8], at: 0x5000_3000) }
        #expect(try port.read(1, at: 0x4000_0000) == [0])
        memory.unmapAll()
    }

    @Test("memory that clients keep is asked for over a connection that is still there")
    func keptMemory() throws {
        let first = machine.makeClientMemory(for: nil)
        let second = machine.makeClientMemory(for: nil)
        try first.map(range(0x1000, 0x1000), .messages(KeptMemory(0xAA)))
        try second.map(range(0x1000, 0x1000), .messages(KeptMemory(0xBB)))
        #expect(try port.read(2, at: 0x1800) == [0xAA, 0xAA])
        first.unmapAll()
        #expect(try port.read(2, at: 0x1800) == [0xBB, 0xBB])
        second.unmapAll()
        #expect(throws: DMAFault.self) { try port.read(2, at: 0x1800) }
    }

    @Test("a descriptor that is no memory is refused")
    func noMemory() throws {
        let memory = machine.makeClientMemory(for: nil)
        let directory = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        #expect(throws: VFIOUserError.invalid) {
            try memory.map(range(0, 0x1000), .descriptor(OwnedDescriptor(adopting: directory), offset: 0))
        }
        let file = try ClientFile(byteCount: 0x1000)
        #expect(throws: VFIOUserError.invalid) { try memory.map(range(0, 0x2000), file.source()) }
        // What failed left nothing behind.
        try memory.map(range(0, 0x1000), file.source())
        memory.unmapAll()
    }
}

@Suite("A client's memory behind our SMMU")
struct MappedMemoryTests {
    private let machine: Machine
    private let endpoint: Endpoint
    private let port: any DMAPort

    init() throws {
        machine = try Machine(board: try TestBoard.load(TestBoard.small), options: MachineOptions())
        #expect(machine.startDriver().isEmpty)
        endpoint = try #require(machine.endpoint(named: "0000:00:02.0"))
        port = machine.makePort(
            for: RequesterIdentity(
                smmuIndex: endpoint.smmuIndex,
                streamID: try #require(endpoint.streams.first)
            )
        )
    }

    @Test("DMA_MAP is a mapping in the device's domain, and DMA_UNMAP its end with a translation fault")
    func mapAndUnmap() throws {
        defer { machine.stop() }
        let file = try ClientFile(byteCount: 4 << 20)
        let memory = machine.makeClientMemory(for: endpoint)
        #expect(throws: DMAFault.self) { try port.read(1, at: 0x20_0000) }
        try memory.map(range(0x20_0000, 2 << 20), file.source(offset: 1 << 20))
        try port.write(Array(1...16), at: 0x20_0FF8)
        #expect(try file.bytes(at: 0x10_0FF8, 16) == Array(1...16))
        let mapping = try #require(machine.clientMappings(of: endpoint).first)
        #expect(mapping.iova.value == 0x20_0000)
        #expect(mapping.address.value != 0x20_0000)
        try memory.unmap(address: 0x20_0000, byteCount: 2 << 20)
        let fault = #expect(throws: DMAFault.self) { try port.read(1, at: 0x20_0000) }
        #expect(fault?.cause == .event(0x10))
        #expect(machine.clientMappings(of: endpoint).isEmpty)
    }

    @Test("read-only memory faults a write with F_PERMISSION")
    func readOnly() throws {
        defer { machine.stop() }
        let file = try ClientFile(byteCount: 0x4000)
        let memory = machine.makeClientMemory(for: endpoint)
        try memory.map(range(0x1_0000, 0x4000, writable: false), file.source())
        #expect(try port.read(4, at: 0x1_0000) == [0, 0, 0, 0])
        let fault = #expect(throws: DMAFault.self) { try port.write([1], at: 0x1_0000) }
        #expect(fault?.cause == .event(0x13))
        memory.unmapAll()
    }

    @Test("two devices that are lent one memory use one place of it; each has its own IOVAs")
    func shared() throws {
        defer { machine.stop() }
        let other = try #require(machine.endpoint(named: "0000:00:01.0"))
        let file = try ClientFile(byteCount: 0x1_0000)
        let first = machine.makeClientMemory(for: endpoint)
        let second = machine.makeClientMemory(for: other)
        try first.map(range(0x1_0000, 0x1_0000), file.source())
        try second.map(range(0x8_0000, 0x1_0000), file.source())
        let places = [endpoint, other].compactMap { machine.clientMappings(of: $0).first?.address.value }
        #expect(places.count == 2 && places[0] == places[1])
        first.unmapAll()
        let otherPort = machine.makePort(
            for: RequesterIdentity(smmuIndex: other.smmuIndex, streamID: try #require(other.streams.first))
        )
        try otherPort.write([9], at: 0x8_0000)
        #expect(try file.bytes(at: 0, 1) == [9])
        second.unmapAll()
    }

    @Test("functions of one group may be lent the same at the same IOVA; it goes with the last of them")
    func sharedInAGroup() throws {
        defer { machine.stop() }
        let functions = try ["0000:00:05.0", "0000:00:05.1"].map { try #require(machine.endpoint(named: $0)) }
        let file = try ClientFile(byteCount: 0x1_0000)
        let memories = functions.map { machine.makeClientMemory(for: $0) }
        for memory in memories { try memory.map(range(0x1_0000, 0x1_0000), file.source()) }
        // Another thing there is a conflict, as in one VFIO container.
        #expect(throws: VFIOUserError.exists) {
            try machine.makeClientMemory(for: functions[1]).map(
                range(0x1_0000, 0x1_0000),
                try ClientFile(byteCount: 0x1_0000).source()
            )
        }
        memories[0].unmapAll()
        let ports = try functions.map { function in
            let stream = try #require(function.streams.first)
            return machine.makePort(
                for: RequesterIdentity(smmuIndex: function.smmuIndex, streamID: stream)
            )
        }
        try ports[0].write([9], at: 0x1_0000)
        #expect(try file.bytes(at: 0, 1) == [9])
        memories[1].unmapAll()
        for port in ports {
            let fault = #expect(throws: DMAFault.self) { try port.read(1, at: 0x1_0000) }
            #expect(fault?.cause == .event(0x10))
        }
    }

    @Test("what cannot be mapped is refused, and leaves nothing behind")
    func refusals() throws {
        defer { machine.stop() }
        let file = try ClientFile(byteCount: 0x4000)
        let memory = machine.makeClientMemory(for: endpoint)
        #expect(throws: VFIOUserError.invalid) { try memory.map(range(0x1_0800, 0x1000), file.source()) }
        #expect(throws: VFIOUserError.invalid) { try memory.map(range(0x1_0000, 0x1800), file.source()) }
        // Beyond 48 bits of IOVA.
        #expect(throws: VFIOUserError.self) { try memory.map(range(1 << 50, 0x1000), file.source()) }
        try memory.map(range(0x1_0000, 0x1000), file.source())
        #expect(throws: VFIOUserError.exists) { try memory.map(range(0x1_0000, 0x2000), file.source()) }
        memory.unmapAll()
        #expect(machine.clientMappings(of: endpoint).isEmpty)
        try memory.map(range(0x1_0000, 0x2000), file.source())
        memory.unmapAll()
    }

    @Test("nothing lands in a client's memory once DMA_UNMAP has been answered")
    func nothingLandsLate() throws {
        defer { machine.stop() }
        let file = try ClientFile(byteCount: 0x1000)
        let memory = machine.makeClientMemory(for: endpoint)
        let isOver = SharedFlag()
        let writer = machine.makePort(
            for: RequesterIdentity(
                smmuIndex: endpoint.smmuIndex,
                streamID: try #require(endpoint.streams.first)
            )
        )
        let thread = PortThread(writer, until: isOver)
        for round in 0..<200 {
            try memory.map(range(0x1_0000, 0x1000), file.source())
            // Until the writer has been here.
            while try file.bytes(at: 0, 1) == [0] { sched_yield() }
            try memory.unmap(address: 0x1_0000, byteCount: 0x1000)
            let start = try file.region.pointer(at: 0, count: 0x1000, for: .write)
            memset(start, 0, 0x1000)
            sched_yield()
            #expect(try file.bytes(at: 0, 0x1000).allSatisfy { $0 == 0 }, "round \(round)")
        }
        isOver.set()
        thread.join()
    }
}

private final class SharedFlag: Sendable {
    private let value = Atomic(false)
    var isSet: Bool { value.load(ordering: .acquiring) }
    func set() { value.store(true, ordering: .releasing) }
}

/// A thread that writes through a port all the time, faulting or not.
private final class PortThread: @unchecked Sendable {
    // SAFETY of @unchecked Sendable: the port is handed to the one thread that uses it.
    private let port: any DMAPort
    private let isOver: SharedFlag
    private var thread = pthread_t()

    init(_ port: any DMAPort, until isOver: SharedFlag) {
        self.port = port
        self.isOver = isOver
        pthread_create(
            &thread,
            nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<PortThread>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            },
            Unmanaged.passRetained(self).toOpaque()
        )
    }

    private func run() {
        let bytes = [UInt8](repeating: 0xEE, count: 256)
        while !isOver.isSet { try? port.write(bytes, at: 0x1_0000) }
    }

    func join() { pthread_join(thread, nil) }
}
