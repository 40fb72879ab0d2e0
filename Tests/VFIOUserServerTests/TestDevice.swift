// A device of known properties, the memory that its client lends, and a server with both.

import CLinux
import DeviceModel
import Glibc
import GuestMemory
import HostIO
import Logging
import Synchronization
import VFIOUserProtocol
import VFIOUserServer

/// A device whose regions are memory, which notes what it is told.
final class TestDevice: VFIOUserDevice {
    struct State {
        var regions: [[UInt8]]
        var interrupts: (any VFIOUserInterrupts)?
        var log: [String] = []
    }

    let description: VFIOUserDeviceDescription
    let state: Mutex<State>
    /// What the mappable regions are mapped through.
    let file: CInt
    /// Runs inside ``reset()``.
    let onReset = Mutex<(@Sendable () -> Void)?>(nil)
    /// Runs inside ``writeRegion(_:at:_:)``.
    let onWrite = Mutex<(@Sendable (UInt64) -> Void)?>(nil)

    init(_ description: VFIOUserDeviceDescription = .test) {
        self.description = description
        state = Mutex(State(regions: description.regions.map { Self.pattern(Int($0.size)) }))
        file = smmud_memfd_create_unsealed("test-device", 0x20000)
    }

    deinit { close(file) }

    /// A byte that changes every third byte, in the first 4 KiB.
    private static func pattern(_ byteCount: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        for index in 0..<min(byteCount, 4096) { bytes[index] = UInt8(truncatingIfNeeded: index / 3) }
        return bytes
    }

    var log: [String] { state.withLock { $0.log } }
    var interrupts: (any VFIOUserInterrupts)? { state.withLock { $0.interrupts } }
    func bytes(_ region: Int, _ range: Range<Int>) -> [UInt8] {
        state.withLock { Array($0.regions[region][range]) }
    }

    func clientAttached(_ interrupts: any VFIOUserInterrupts) {
        state.withLock { state in
            state.interrupts = interrupts
            state.log.append("attached")
        }
    }

    func clientDetached() {
        state.withLock { state in
            state.interrupts = nil
            state.log.append("detached")
        }
    }

    func readRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        into buffer: UnsafeMutableRawBufferPointer
    ) throws(VFIOUserError) {
        if region == .bar(4), offset == 0xf0 { throw .inputOutput }
        state.withLock { state in
            let start = Int(offset)
            buffer.copyBytes(from: state.regions[Int(region.rawValue)][start..<start + buffer.count])
        }
    }

    func writeRegion(
        _ region: VFIOUserRegionIndex,
        at offset: UInt64,
        _ buffer: UnsafeRawBufferPointer
    ) throws(VFIOUserError) {
        if region == .bar(4), offset == 0xf0 { throw .inputOutput }
        onWrite.withLock { $0 }?(offset)
        state.withLock { state in
            let start = Int(offset)
            state.regions[Int(region.rawValue)].replaceSubrange(start..<start + buffer.count, with: buffer)
            if region == .bar(2) { state.log.append("write \(offset) \(buffer.count)") }
        }
    }

    func interruptsChanged(_ index: VFIOUserInterruptIndex, boundVectors: Int) {
        state.withLock { $0.log.append("interrupts \(index.rawValue) \(boundVectors)") }
    }

    func reset() {
        onReset.withLock { $0 }?()
        state.withLock { $0.log.append("reset") }
    }

    func stopsDMA(byWriting buffer: UnsafeRawBufferPointer, to region: VFIOUserRegionIndex, at offset: UInt64)
        -> Bool
    {
        region == .bar(4) && offset == 0xe0
    }

    func regionDescriptor(_ region: VFIOUserRegionIndex) -> CInt? { file }
}

extension VFIOUserDeviceDescription {
    /// BAR 0 has two mappable areas, BAR 1 is wholly mappable, BAR 2 has ioeventfds, BAR 3 is larger than the
    /// largest transfer, BAR 4 has a register at 0xf0 that fails and one at 0xe0 that stops DMA, BAR 5 is absent; the
    /// ROM is read-only.
    static let test = VFIOUserDeviceDescription.pci(
        regions: [
            .bar(0): VFIOUserRegionDescription(
                size: 0x8000,
                mapping: .init(
                    fileOffset: 0x10000,
                    areas: [
                        VFIOUserMappableArea(offset: 0x1000, size: 0x1000),
                        VFIOUserMappableArea(offset: 0x4000, size: 0x2000),
                    ]
                )
            ),
            .bar(1): VFIOUserRegionDescription(size: 0x1000, mapping: .init()),
            .bar(2): VFIOUserRegionDescription(
                size: 0x100,
                ioEvents: (0..<6).map {
                    VFIOUserIOEvent(
                        offset: UInt64($0) * 8,
                        size: 4,
                        descriptorIndex: UInt32($0),
                        flags: 1,
                        dataMatch: 0x1122_3340 + UInt64($0)
                    )
                }
                    + [
                        VFIOUserIOEvent(
                            offset: 0x80,
                            size: 2,
                            descriptorIndex: 0,
                            flags: 1,
                            dataMatch: 0x5566
                        ),
                        VFIOUserIOEvent(offset: 0x88, size: 0, descriptorIndex: 6),
                    ]
            ),
            .bar(3): VFIOUserRegionDescription(size: 3 << 20),
            .bar(4): VFIOUserRegionDescription(size: 0x100),
            .rom: VFIOUserRegionDescription(size: 0x800, isWritable: false),
            .configuration: VFIOUserRegionDescription(size: 0x1000),
        ],
        interrupts: [
            .intx: .intx, .msix: VFIOUserInterruptDescription(count: 2048),
            .error: VFIOUserInterruptDescription(count: 1), .request: VFIOUserInterruptDescription(count: 1),
        ]
    )
}

/// What a client lends, noted.
final class TestMemory: VFIOUserMemory {
    struct Mapping {
        var range: VFIOUserMemoryRange
        var offset: UInt64?
        var remote: (any RemoteMemory)?
        /// Closes with the mapping.
        var descriptor: Held?
    }
    final class Held: Sendable {
        let descriptor: OwnedDescriptor
        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
    }
    let mappings = Mutex<[Mapping]>([])
    /// Runs before memory is taken back.
    let onUnmap = Mutex<(@Sendable () -> Void)?>(nil)

    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        var new = Mapping(range: range, offset: nil, remote: nil, descriptor: nil)
        switch consume source {
        case .descriptor(let descriptor, let offset):
            new.offset = offset
            new.descriptor = Held(descriptor)
        case .messages(let remote): new.remote = remote
        }
        let mapping = new
        let error: VFIOUserError? = mappings.withLock { mappings in
            if mappings.contains(where: { $0.range == range && $0.offset == mapping.offset }) { return nil }
            let end = range.address + (range.byteCount - 1)
            if mappings.contains(where: {
                $0.range.address <= end && range.address <= $0.range.address + ($0.range.byteCount - 1)
            }) {
                return .exists
            }
            guard mappings.count < 8 else { return .noSpace }
            mappings.append(mapping)
            return nil
        }
        if let error { throw error }
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) {
        onUnmap.withLock { $0 }?()
        let end = address + (byteCount - 1)
        let error: VFIOUserError? = mappings.withLock { mappings in
            let hit = mappings.filter {
                $0.range.address <= end && address <= $0.range.address + ($0.range.byteCount - 1)
            }
            if hit.isEmpty { return .noEntry }
            if hit.contains(where: {
                $0.range.address < address || $0.range.address + ($0.range.byteCount - 1) > end
            }) {
                return .invalid
            }
            mappings.removeAll { $0.range.address >= address && $0.range.address <= end }
            return nil
        }
        if let error { throw error }
    }

    func unmapAll() {
        onUnmap.withLock { $0 }?()
        mappings.withLock { $0 = [] }
    }
}

/// A server at a socket of its own.
final class TestServer {
    let device: TestDevice
    let path: String
    let server: VFIOUserServer
    /// Of each client, in order.
    let memories: Memories

    final class Memories: Sendable {
        let all = Mutex<[TestMemory]>([])
    }

    private static let count = Atomic<Int>(0)

    init(
        _ device: TestDevice = TestDevice(),
        _ configure: (inout VFIOUserServer.Configuration) -> Void = { _ in }
    ) throws {
        self.device = device
        let number = Self.count.wrappingAdd(1, ordering: .relaxed).newValue
        path = "/tmp/smmud-vfs-\(getpid())-\(number).sock"
        var configuration = VFIOUserServer.Configuration(name: "vfio-test")
        configure(&configuration)
        var logger = Logger(label: "test")
        logger.logLevel = .critical
        let memories = Memories()
        self.memories = memories
        server = try VFIOUserServer(
            configuration,
            device: device,
            listener: UnixListener(path: path),
            logger: logger
        ) {
            let memory = TestMemory()
            memories.all.withLock { $0.append(memory) }
            return memory
        }
        try server.start()
    }

    deinit { server.stop() }

    func client() throws -> TestClient { try TestClient(path: path) }

    /// A client that has been greeted.
    func greeted(_ json: String? = qemuOffer) throws -> TestClient {
        let client = try client()
        try client.greet(json)
        return client
    }

    /// What the client that is there has lent.
    var mappings: [TestMemory.Mapping] {
        memories.all.withLock { $0.last }?.mappings.withLock { $0 } ?? []
    }
}
