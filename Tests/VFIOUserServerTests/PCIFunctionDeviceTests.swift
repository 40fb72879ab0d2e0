// A function of ours as a client sees it.

import AddressSpace
import CLinux
import DeviceModel
import Glibc
import HostIO
import Logging
import PCIFunction
import Synchronization
import Testing
import VFIOUserProtocol
import VFIOUserServer

/// A model whose BAR 0 has registers of 1, 2, 4 and 8 bytes below 0x800, and none above.
private final class Model: PCIFunctionModel {
    struct Access: Equatable, Sendable {
        var isWrite: Bool
        var offset: UInt64
        var width: Int
        var value: UInt64
    }
    struct State: Sendable {
        var bytes = [UInt8](repeating: 0, count: 0x800)
        var accesses: [Access] = []
        var resets = 0
    }
    let state = Mutex(State())

    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard offset < 0x800 else { throw .noSuchRegister }
        return state.withLock { state in
            var value: UInt64 = 0
            for place in (Int(offset)..<Int(offset) + width.rawValue).reversed() {
                value = value << 8 | UInt64(state.bytes[place])
            }
            state.accesses.append(Access(isWrite: false, offset: offset, width: width.rawValue, value: value))
            return value
        }
    }

    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth)
        throws(RegisterAccessError)
    {
        guard offset < 0x800 else { throw .noSuchRegister }
        state.withLock { state in
            for place in 0..<width.rawValue {
                state.bytes[Int(offset) + place] = UInt8(truncatingIfNeeded: value >> UInt64(8 * place))
            }
            state.accesses.append(Access(isWrite: true, offset: offset, width: width.rawValue, value: value))
        }
    }

    func reset() { state.withLock { $0.resets += 1 } }

    var accesses: [Access] {
        state.withLock { state in
            defer { state.accesses = [] }
            return state.accesses
        }
    }
}

/// Notes what is written.
private final class Memory: Sendable {
    let writes = Mutex<[String]>([])
}

private final class Port: DMAPort {
    let memory: Memory
    init(_ memory: Memory) { self.memory = memory }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {}
    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        memory.writes.withLock { $0.append("\(String(address.rawValue, radix: 16)): \(Array(buffer))") }
    }
    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool { false }

    func rest() {}
}

/// A function, its server and a client.
private final class ServedFunction {
    let model = Model()
    let memory = Memory()
    let function: PCIFunction
    let server: VFIOUserServer
    let client: TestClient

    private static let count = Atomic<Int>(0)

    /// MSI-X stands at 0x40, MSI at 0x4c, PCI Express at 0x64, as the description has them.
    init(messagesByMemory: Bool) throws {
        let memory = memory
        function = PCIFunction(
            name: "test",
            PCIFunctionDescription(
                identity: PCIIdentity(vendorID: 0x1b36, deviceID: 0x0010, classCode: 0x010802),
                bars: [
                    PCIBAR(index: 0, byteCount: 0x1000),
                    PCIBAR(index: 2, byteCount: 0x4000, space: .memory64),
                ],
                capabilities: [
                    .msix(
                        PCIMSIXLayout(
                            vectorCount: 4,
                            tableBAR: 2,
                            tableOffset: 0,
                            pendingBAR: 2,
                            pendingOffset: 0x2000
                        )
                    ), .msi(vectorCount: 4), .express(.endpoint),
                ],
                notificationAddresses: [
                    PCINotificationAddress(barIndex: 0, offset: 0x104, byteCount: 2),
                    PCINotificationAddress(barIndex: 0, offset: 0x110, byteCount: 4),
                ]
            ),
            model: model,
            makePort: { Port(memory) }
        )
        let number = Self.count.wrappingAdd(1, ordering: .relaxed).newValue
        let path = "/tmp/smmud-vfs-pci-\(getpid())-\(number).sock"
        server = try VFIOUserServer(
            VFIOUserServer.Configuration(name: "vfio-pci"),
            device: PCIFunctionDevice(function, messagesByMemory: messagesByMemory),
            listener: UnixListener(path: path),
            logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
        ) { TestMemory() }
        try server.start()
        client = try TestClient(path: path)
        try client.greet()
    }

    deinit { server.stop() }

    func read(_ region: UInt32, _ offset: UInt64, _ count: UInt32) throws -> [UInt8] {
        let answer = try client.ask(command(9, access(region, offset, count)))
        try #require(answer.count == 32 + Int(count))
        return Array(answer.dropFirst(32))
    }

    func write(_ region: UInt32, _ offset: UInt64, _ data: [UInt8]) throws {
        let message = access(region, offset, UInt32(data.count))
        #expect(try client.ask(command(10, message + data)) == success(10, message))
    }

    func ask(
        _ flags: UInt32,
        _ index: UInt32,
        _ start: UInt32,
        _ count: UInt32,
        _ events: [CInt] = []
    ) throws {
        #expect(
            try client.ask(command(8, interrupts(flags, index, start, count)), descriptors: events)
                == success(8)
        )
    }
}

@Suite("A PCIe function over a socket")
struct PCIFunctionDeviceTests {
    private static func with(messagesByMemory: Bool = false, _ body: (ServedFunction) throws -> Void) throws {
        try body(try ServedFunction(messagesByMemory: messagesByMemory))
    }

    @Test("Addresses that need no value have eventfds, and a signal of one is a write of the address's width")
    func notifications() throws {
        try Self.with { test in
            test.client.send(command(6, words(512, 0, 0, 0)))
            let answer = try test.client.message()
            defer { for descriptor in answer.descriptors { close(descriptor) } }
            // offset, size, descriptor, type, flags, padding, datamatch
            let entries =
                longs(0x104, 2) + words(0, 0, 0, 0) + longs(0) + longs(0x110, 4) + words(1, 0, 0, 0)
                + longs(0)
            #expect(answer.bytes == success(6, words(96, 0, 0, 2) + entries))
            try #require(answer.descriptors.count == 2)
            for (descriptor, place, width) in [(1, 0x110, 4), (0, 0x104, 2)] as [(Int, UInt64, Int)] {
                smmud_signal_eventfd(answer.descriptors[descriptor])
                var seen: [Model.Access] = []
                #expect(
                    eventually {
                        seen += test.model.accesses
                        return !seen.isEmpty
                    }
                )
                #expect(seen == [Model.Access(isWrite: true, offset: place, width: width, value: 0)])
            }
            // Other BARs have none.
            let none = try test.client.ask(command(6, words(512, 0, 2, 0)))
            #expect(none == success(6, words(16, 0, 2, 0)))
        }
    }

    @Test("Regions and interrupts are the function's")
    func description() throws {
        try Self.with { test in
            let sizes: [UInt64] = [0x1000, 0, 0x4000, 0, 0, 0, 0, 0x1000, 0]
            for (index, size) in sizes.enumerated() {
                let flags: UInt32 = size > 0 ? 3 : 0
                let answer = try test.client.ask(command(5, words(32, 0, UInt32(index), 0) + longs(0, 0)))
                #expect(answer == success(5, words(32, flags, UInt32(index), 0) + longs(size, 0)))
            }
            for (index, (flags, count)) in [(7, 1), (1, 4), (1, 4), (1, 1), (1, 1)].enumerated() {
                let answer = try test.client.ask(command(7, words(16, 0, UInt32(index), 0)))
                #expect(answer == success(7, words(16, UInt32(flags), UInt32(index), UInt32(count))))
            }
        }
    }

    @Test("Configuration space is read whole and in parts, and its BARs answer how large they are")
    func configuration() throws {
        try Self.with { test in
            let all = try test.read(7, 0, 4096)
            #expect(Array(all[0..<4]) == [0x36, 0x1b, 0x10, 0x00])
            #expect(Array(all[8..<12]) == [0x00, 0x02, 0x08, 0x01])
            #expect(all[0x34] == 0x40 && all[0x40] == 0x11 && all[0x41] == 0x4c && all[0x4c] == 0x05)
            #expect(all[0x64] == 0x10)
            for (offset, count) in [
                (0, 1), (1, 2), (2, 2), (0, 4), (3, 7), (0x3f, 0x21), (4095, 1), (0, 256),
            ] {
                #expect(
                    try test.read(7, UInt64(offset), UInt32(count)) == Array(all[offset..<offset + count])
                )
            }
            // test_bar_sizing: 32 bits and 64, and what was there before.
            for (offset, sized) in [(0x10, [0x00, 0xf0, 0xff, 0xff]), (0x18, [0x04, 0xc0, 0xff, 0xff])]
                as [(UInt64, [UInt8])]
            {
                try test.write(7, offset, [0xff, 0xff, 0xff, 0xff])
                #expect(try test.read(7, offset, 4) == sized)
            }
            try test.write(7, 0x1c, [0xff, 0xff, 0xff, 0xff])
            #expect(try test.read(7, 0x1c, 4) == [0xff, 0xff, 0xff, 0xff])
            try test.write(7, 0x18, hex("00004000 34120000"))
            #expect(try test.read(7, 0x18, 8) == hex("04004000 34120000"))
            #expect(test.function.address(ofBAR: 2) == 0x1234_0040_0000)
            // What is read-only stays.
            try test.write(7, 0, [0, 0, 0, 0])
            #expect(try test.read(7, 0, 4) == [0x36, 0x1b, 0x10, 0x00])
        }
    }

    @Test("An aligned access of a register's size is one access; others are cut into words and less")
    func pieces() throws {
        try Self.with { test in
            for width in [1, 2, 4, 8] {
                try test.write(0, 0x10, Array(1...UInt8(width)))
                var value: UInt64 = 0
                for byte in (1...UInt64(width)).reversed() { value = value << 8 | byte }
                #expect(
                    test.model.accesses == [.init(isWrite: true, offset: 0x10, width: width, value: value)]
                )
                #expect(try test.read(0, 0x10, UInt32(width)) == Array(1...UInt8(width)))
                #expect(
                    test.model.accesses == [.init(isWrite: false, offset: 0x10, width: width, value: value)]
                )
            }
            let widths = { (offset: UInt64, count: Int) throws -> [Int] in
                try test.write(0, offset, Array(1...UInt8(count)))
                let written = test.model.accesses
                #expect(try test.read(0, offset, UInt32(count)) == Array(1...UInt8(count)))
                #expect(test.model.accesses.map(\.width) == written.map(\.width))
                #expect(
                    written.map(\.offset)
                        == written.indices.map { index in
                            offset + written[..<index].reduce(0) { $0 + UInt64($1.width) }
                        }
                )
                return written.map(\.width)
            }
            #expect(try widths(0x21, 2) == [1, 1])
            #expect(try widths(0x21, 8) == [1, 2, 4, 1])
            #expect(try widths(0x22, 4) == [2, 2])
            #expect(try widths(0x24, 8) == [4, 4])
            #expect(try widths(0x20, 16) == [4, 4, 4, 4])
            #expect(try widths(0x23, 3) == [1, 2])
            #expect(try widths(0x20, 7) == [4, 2, 1])
        }
    }

    @Test("Where nobody answers, reads are 1s and writes are dropped, to the register's width")
    func refused() throws {
        try Self.with { test in
            #expect(try test.read(0, 0x7fc, 12) == [0, 0, 0, 0] + [UInt8](repeating: 0xff, count: 8))
            try test.write(0, 0x800, [1, 2, 3, 4])
            #expect(try test.read(0, 0x801, 1) == [0xff])
            // The MSI-X table takes words and doublewords only.
            #expect(try test.read(2, 0, 2) == [0xff, 0xff])
            #expect(try test.read(2, 12, 4) == [1, 0, 0, 0])
            #expect(try test.read(2, 0, 16) == hex("00000000 00000000 00000000 01000000"))
        }
    }

    @Test("DEVICE_RESET and a function-level reset reset the function")
    func reset() throws {
        try Self.with { test in
            try test.write(7, 0x04, [0x06, 0x00])
            #expect(try test.read(7, 0x04, 2) == [0x06, 0x00])
            #expect(try test.client.ask(command(13)) == success(13))
            #expect(test.model.state.withLock { $0.resets } == 1)
            #expect(try test.read(7, 0x04, 2) == [0x00, 0x00])
            // Device Control, bit 15.
            try test.write(7, 0x6c, [0x10, 0xa8])
            #expect(test.model.state.withLock { $0.resets } == 2)
        }
    }

    // MARK: Interrupts

    @Test("INTx follows the pin, Interrupt Disable included, and a client that comes later finds it high")
    func pin() throws {
        let event = try eventfd()
        defer { close(event) }
        try Self.with { test in
            test.function.setINTx(true)
            try test.ask(IRQ.eventfd | IRQ.trigger, IRQ.intx, 0, 1, [event])
            #expect(drain(event) == 1)
            try test.ask(IRQ.none | IRQ.unmask, IRQ.intx, 0, 1)
            #expect(drain(event) == 1)
            try test.write(7, 0x04, [0x00, 0x04])
            try test.ask(IRQ.none | IRQ.unmask, IRQ.intx, 0, 1)
            #expect(drain(event) == 0)
            try test.write(7, 0x04, [0x00, 0x00])
            #expect(drain(event) == 1)
        }
    }

    @Test(
        "Vectors that a client binds decide how the function interrupts, and letting go of them gives it back"
    )
    func vectors() throws {
        let events = try (0..<4).map { _ in try eventfd() }
        defer { for event in events { close(event) } }
        try Self.with { test in
            #expect(test.function.interruptMode == .intx)
            try test.ask(IRQ.eventfd | IRQ.trigger, IRQ.msix, 0, 4, events)
            #expect(test.function.interruptMode == .msix)
            test.function.signal(vector: 2)
            #expect(events.map(drain) == [0, 0, 1, 0])
            try test.ask(IRQ.none | IRQ.trigger, IRQ.msix, 0, 0)
            #expect(test.function.interruptMode == .intx)
            test.function.signal(vector: 2)
            try test.ask(IRQ.eventfd | IRQ.trigger, IRQ.msi, 0, 2, Array(events[..<2]))
            #expect(test.function.interruptMode == .msi(vectorCount: 2))
            test.function.signal(vector: 1)
            #expect(events.map(drain) == [0, 1, 0, 0])
            test.client.close()
            #expect(eventually { test.function.interruptMode == .intx })
            #expect(test.memory.writes.withLock { $0 } == [])
        }
    }

    @Test(
        "With messages by memory a client's eventfds are taken and not used, and messages are the function's DMA"
    )
    func messagesByMemory() throws {
        let event = try eventfd()
        defer { close(event) }
        try Self.with(messagesByMemory: true) { test in
            #expect(
                try test.client.ask(command(7, words(16, 0, IRQ.msix, 0))) == success(7, words(16, 0, 2, 0))
            )
            try test.ask(IRQ.eventfd | IRQ.trigger, IRQ.msi, 0, 1, [event])
            // Bus mastering; then MSI's address, data and enable.
            try test.write(7, 0x04, [0x06, 0x00])
            try test.write(7, 0x50, hex("40f0ffff 00000000"))
            try test.write(7, 0x58, [0x52, 0x00])
            try test.write(7, 0x4e, [0x01])
            test.function.signal(vector: 0)
            #expect(test.memory.writes.withLock { $0 } == ["fffff040: [82, 0, 0, 0]"])
            // MSI-X, which wins, with the guest's own table.
            try test.write(2, 0x10, hex("40f0ffff 01000000 53000000 00000000"))
            try test.write(7, 0x43, [0x80])
            test.function.signal(vector: 1)
            #expect(test.memory.writes.withLock { $0.last } == "1fffff040: [83, 0, 0, 0]")
            #expect(drain(event) == 0)
        }
    }

    @Test(
        "With messages by memory the MSI-X capability is a vendor's in a read of more than 4 bytes, and itself in others"
    )
    func disguise() throws {
        try Self.with(messagesByMemory: true) { test in
            let all = try test.read(7, 0, 4096)
            #expect(Array(all[0x40..<0x43]) == [0x09, 0x4c, 12])
            #expect(try test.read(7, 0x40, 8).prefix(3) == [0x09, 0x4c, 12])
            #expect(try test.read(7, 0x42, 5).first == 12)
            for (offset, bytes) in [
                (0x40, [0x11]), (0x40, [0x11, 0x4c]), (0x40, [0x11, 0x4c, 3, 0]), (0x42, [3, 0]),
            ] as [(UInt64, [UInt8])] {
                #expect(try test.read(7, offset, UInt32(bytes.count)) == bytes)
            }
            #expect(try test.read(7, 0x43, 4096 - 0x43) == Array(all[0x43...]))
        }
        try Self.with { test in
            let undisguised = try test.read(7, 0x40, 8)
            #expect(Array(undisguised.prefix(3)) == [0x11, 0x4c, 3])
        }
    }
}
