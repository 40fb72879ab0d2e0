// A device of another program as a function of ours: through our own server, and so through a real socket.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import PCIFunction
import Synchronization
import Testing
import VFIOUserClient
import VFIOUserServer

/// The machine's side: RAM at 0x10_0000, as the device addresses it, and what it is told.
private final class Machine: ForeignDMA, PCIFunctionHost {
    let ram: MemoryRegion
    let base: UInt64 = 0x10_0000
    let pinChanges = Mutex<[Bool]>([])
    let follower = Mutex<(any ForeignDMAFollower)?>(nil)
    /// Accesses that found nothing.
    let faults = Atomic(0)

    init() throws { ram = try MemoryRegion.anonymous(byteCount: 0x10000, name: "ram") }

    func makePort() -> any DMAPort { Port(self) }
    func follow(_ follower: any ForeignDMAFollower) {
        self.follower.withLock { $0 = follower }
        if let mapping = mapping(0x10_0000, 0x8000) { follower.mapped(mapping) }
    }
    func unfollow(_: any ForeignDMAFollower) { follower.withLock { $0 = nil } }

    func mapping(_ address: UInt64, _ byteCount: UInt64, isWritable: Bool = true) -> ForeignDMAMapping? {
        guard let range = AddressRange(start: address, byteCount: byteCount) else { return nil }
        return ForeignDMAMapping(
            range: range,
            region: ram,
            offset: address - base,
            isReadable: true,
            isWritable: isWritable
        )
    }

    func setINTx(_ isAsserted: Bool, of _: PCIFunction) { pinChanges.withLock { $0.append(isAsserted) } }
    func signal(vector _: Int, _: PCIInterruptMode, of _: PCIFunction) {}
    func configurationChanged(of _: PCIFunction) {}

    func pointer(_ address: UInt64, _ count: Int) -> UnsafeMutableRawPointer? {
        guard address >= base else { return nil }
        return try? ram.pointer(at: address - base, count: UInt64(count), for: .write)
    }

    func word(_ address: UInt64) -> UInt64 {
        pointer(address, 8)?.loadUnaligned(as: UInt64.self) ?? UInt64.max
    }
    func setWord(_ address: UInt64, _ value: UInt64) {
        pointer(address, 8)?.storeBytes(of: value, as: UInt64.self)
    }

    private final class Port: DMAPort {
        private let machine: Machine
        init(_ machine: Machine) { self.machine = machine }

        private func pointer(_ address: IOVirtualAddress, _ count: Int) throws(DMAFault)
            -> UnsafeMutableRawPointer
        {
            if let pointer = machine.pointer(address.rawValue, count) { return pointer }
            machine.faults.wrappingAdd(1, ordering: .relaxed)
            throw DMAFault(cause: .event(0x10), address: address, bytesTransferred: 0)
        }
        func read(
            at address: IOVirtualAddress,
            into buffer: UnsafeMutableRawBufferPointer,
            _: TransactionAttributes
        )
            throws(DMAFault)
        {
            let pointer = try pointer(address, buffer.count)
            buffer.copyMemory(from: UnsafeRawBufferPointer(start: pointer, count: buffer.count))
        }
        func write(_ buffer: UnsafeRawBufferPointer, at address: IOVirtualAddress, _: TransactionAttributes)
            throws(DMAFault)
        {
            let pointer = try pointer(address, buffer.count)
            UnsafeMutableRawBufferPointer(start: pointer, count: buffer.count).copyMemory(from: buffer)
        }
        func lend(
            _: [DMARange],
            for _: DMADirection,
            _: TransactionAttributes,
            _: (UnsafeBufferPointer<iovec>) -> Void
        ) -> Bool { false }

        func rest() {}
    }
}

/// Waits for a condition; whether it came true before a long time was over.
private func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
    let deadline = ContinuousClock.now + .seconds(20)
    while try !condition() {
        guard ContinuousClock.now < deadline else { return false }
        usleep(100)
    }
    return true
}

/// A foreign device and all around it.
private final class Rig {
    let server: EngineServer
    let machine: Machine
    let function: PCIFunction
    let device: ForeignDevice
    let reports: Reports

    final class Reports: Sendable { let all = Mutex<[String]>([]) }

    init(_ window: ForeignDevice.Window? = nil, messagesByMemory: Bool = false) throws {
        server = try EngineServer(messagesByMemory: messagesByMemory)
        machine = try Machine()
        let reports = Reports()
        self.reports = reports
        var options = ForeignDevice.Options { text in reports.all.withLock { $0.append(text) } }
        if let window { options.window = window }
        function = try ForeignDevice.attach(
            VFIOUserClient(path: server.path),
            name: "foreign",
            dma: machine,
            options: options
        )
        device = try #require(function.model as? ForeignDevice)
        function.connect(machine)
        // Memory space and bus mastering.
        function.writeConfiguration(6, at: 4, byteCount: 2)
    }

    deinit { device.detach() }

    func read(_ register: UInt64) throws -> UInt64 {
        try function.readBAR(0, at: register, width: .doubleword)
    }
    func write(_ value: UInt64, _ register: UInt64) throws {
        try function.writeBAR(0, value, at: register, width: .doubleword)
    }

    /// Lets the engine do a DMA and waits for its end; whether it worked.
    func dma(_ command: UInt64, at address: UInt64) throws -> Bool {
        let before = try read(EngineRegister.start)
        try write(address, EngineRegister.address)
        try write(command, EngineRegister.start)
        try #require(try eventually { try read(EngineRegister.start) == before + 1 })
        return try read(EngineRegister.fault) == 0
    }

    /// The offset of a capability; 0 for none.
    func capability(_ id: UInt32) -> Int {
        var offset = Int(function.readConfiguration(at: 0x34, byteCount: 1))
        while offset != 0, function.readConfiguration(at: offset, byteCount: 1) != id {
            offset = Int(function.readConfiguration(at: offset + 1, byteCount: 1))
        }
        return offset
    }
}

@Suite("Foreign devices as functions of ours")
struct ForeignDeviceTests {
    @Test("Identity, BARs, capabilities and registers are the other's")
    func registers() throws {
        let rig = try Rig()
        #expect(rig.function.readConfiguration(at: 0, byteCount: 4) == 0x11e8_1234)
        #expect(rig.function.description.bars.map(\.byteCount) == [0x1000, 0x1000])
        #expect(rig.function.description.bars.map(\.space) == [.memory32, .memory64])
        #expect(rig.function.configurationByteCount == 4096)
        try rig.write(0x0102_0304_0506_0708, EngineRegister.scratch)
        #expect(try rig.read(EngineRegister.scratch) == 0x0102_0304_0506_0708)
        #expect(try rig.function.readBAR(0, at: 4, width: .word) == 0x0102_0304)
        // A vendor's capability, live at the other end.
        let vendor = rig.capability(0x09)
        #expect(rig.function.readConfiguration(at: vendor + 2, byteCount: 2) == 0xaa06)
        rig.function.writeConfiguration(0x55, at: vendor + 3, byteCount: 1)
        #expect(rig.function.readConfiguration(at: vendor + 2, byteCount: 2) == 0x5506)
        #expect(rig.reports.all.withLock { $0 } == [])
    }

    @Test(
        "DMA by message is translated; a fault is the device's to see; nothing goes while bus mastering is off"
    )
    func messages() throws {
        let rig = try Rig()
        rig.machine.setWord(0x10_0100, 0x1122_3344_5566_7788)
        #expect(try rig.dma(1, at: 0x10_0100))
        #expect(try rig.read(EngineRegister.result) == 0x1122_3344_5566_7788)
        try rig.write(0xcafe, EngineRegister.scratch)
        #expect(try rig.dma(2, at: 0x10_0200))
        #expect(rig.machine.word(0x10_0200) == 0xcafe)
        #expect(try !rig.dma(1, at: 0x20_0000))
        #expect(try !rig.dma(2, at: 0))
        #expect(rig.machine.faults.load(ordering: .relaxed) == 2)
        // Beyond the window the server refuses by itself.
        #expect(try !rig.dma(1, at: 8 << 40))
        #expect(rig.machine.faults.load(ordering: .relaxed) == 2)
        rig.function.writeConfiguration(2, at: 4, byteCount: 2)
        #expect(try !rig.dma(1, at: 0x10_0100))
        #expect(rig.machine.faults.load(ordering: .relaxed) == 2)
        #expect(rig.server.memory.mapped.map(\.byDescriptor) == [false])
    }

    @Test("MSI-X: vectors are bound when they are unmasked, and go as messages of the function")
    func msix() throws {
        let rig = try Rig()
        let msix = rig.capability(0x11)
        rig.function.writeConfiguration(0x8000, at: msix + 2, byteCount: 2)
        for vector in [0, 5] as [UInt64] {
            try rig.function.writeBAR(2, 0x10_1000 + vector * 8, at: vector * 16, width: .doubleword)
            try rig.function.writeBAR(2, 0x40 + vector, at: vector * 16 + 8, width: .word)
            try rig.function.writeBAR(2, 0, at: vector * 16 + 12, width: .word)
        }
        for vector in [5, 0] as [UInt64] {
            try rig.write(vector, EngineRegister.signal)
            #expect(eventually { rig.machine.word(0x10_1000 + vector * 8) == 0x40 + vector })
        }
        // Masked, it waits, and comes when it is not.
        rig.machine.setWord(0x10_1000, 0)
        try rig.function.writeBAR(2, 1, at: 12, width: .word)
        try rig.write(0, EngineRegister.signal)
        #expect(try eventually { try rig.function.readBAR(2, at: 0x800, width: .doubleword) == 1 })
        #expect(rig.machine.word(0x10_1000) == 0)
        try rig.function.writeBAR(2, 0, at: 12, width: .word)
        #expect(rig.machine.word(0x10_1000) == 0x40)
        #expect(rig.reports.all.withLock { $0 } == [])
    }

    @Test("MSI of several vectors, and back to the pin")
    func msi() throws {
        let rig = try Rig()
        let msi = rig.capability(0x05)
        rig.function.writeConfiguration(0x10_2000, at: msi + 4, byteCount: 4)
        rig.function.writeConfiguration(0x80, at: msi + 12, byteCount: 2)
        rig.function.writeConfiguration(0x21, at: msi + 2, byteCount: 2)
        try rig.write(3, EngineRegister.signal)
        #expect(eventually { rig.machine.word(0x10_2000) == 0x83 })
        rig.function.writeConfiguration(0, at: msi + 2, byteCount: 2)
        try rig.write(1, EngineRegister.pin)
        #expect(eventually { rig.machine.pinChanges.withLock { $0.last } == true })
        #expect(rig.reports.all.withLock { $0 } == [])
    }

    @Test("INTx: up with the device's, down when the guest looks, up again while the cause is there")
    func intx() throws {
        let rig = try Rig()
        // Not by a register, which would be a look at the device.
        rig.server.setPin(true)
        #expect(eventually { rig.machine.pinChanges.withLock { $0 } == [true] })
        _ = try rig.read(EngineRegister.scratch)
        #expect(eventually { rig.machine.pinChanges.withLock { $0 } == [true, false, true] })
        rig.server.setPin(false)
        _ = try rig.read(EngineRegister.scratch)
        #expect(rig.machine.pinChanges.withLock { $0 } == [true, false, true, false])
    }

    @Test("Mapped memory follows what the machine says: shared, split, taken back before anybody goes on")
    func mapped() throws {
        let rig = try Rig(.mapped)
        func ranges() -> [[UInt64]] {
            rig.server.memory.mapped.map { [$0.range.address, $0.range.byteCount] }
        }
        #expect(ranges() == [[0x10_0000, 0x8000]])
        #expect(rig.server.memory.mapped.map(\.byDescriptor) == [true])
        rig.machine.setWord(0x10_4000, 0x77)
        #expect(try rig.dma(1, at: 0x10_4000))
        #expect(try rig.read(EngineRegister.result) == 0x77)
        let follower = try #require(rig.machine.follower.withLock { $0 })
        // A page in the middle; then all that is left below; then what nobody has.
        follower.invalidated(try #require(AddressRange(start: 0x10_4000, byteCount: 0x1000)))
        #expect(ranges() == [[0x10_0000, 0x4000], [0x10_5000, 0x3000]])
        #expect(try !rig.dma(1, at: 0x10_4000))
        rig.machine.setWord(0x10_5000, 0x88)
        #expect(try rig.dma(1, at: 0x10_5000))
        #expect(try rig.read(EngineRegister.result) == 0x88)
        follower.invalidated(try #require(AddressRange(start: 0, byteCount: 0x10_4000)))
        #expect(ranges() == [[0x10_5000, 0x3000]])
        // Something else at the same addresses, in part: what was there goes.
        follower.mapped(try #require(rig.machine.mapping(0x10_7000, 0x2000, isWritable: false)))
        #expect(ranges() == [[0x10_5000, 0x2000], [0x10_7000, 0x2000]])
        #expect(rig.server.memory.mapped.map(\.range.isWritable) == [true, false])
        follower.invalidated(try #require(AddressRange(first: 0, last: UInt64.max)))
        #expect(ranges() == [])
        #expect(rig.reports.all.withLock { $0 } == [])
        // None of it went by message.
        #expect(rig.machine.faults.load(ordering: .relaxed) == 0)
    }

    @Test("Reset reaches the device, switches bus mastering off, and leaves the pin bound")
    func reset() throws {
        let rig = try Rig()
        let msix = rig.capability(0x11)
        rig.function.writeConfiguration(0x8000, at: msix + 2, byteCount: 2)
        try rig.function.writeBAR(2, 0, at: 12, width: .word)
        try rig.write(5, EngineRegister.scratch)
        // By function-level reset.
        let express = rig.capability(0x10)
        rig.function.writeConfiguration(0x8000, at: express + 8, byteCount: 2)
        #expect(try rig.read(EngineRegister.scratch) == 0)
        #expect(try rig.read(EngineRegister.resets) == 1)
        #expect(!rig.function.isBusMaster)
        #expect(rig.function.interruptMode == .intx)
        #expect(try !rig.dma(1, at: 0x10_0000))
        try rig.write(1, EngineRegister.pin)
        #expect(eventually { rig.machine.pinChanges.withLock { $0.last } == true })
        #expect(rig.reports.all.withLock { $0 } == [])
    }

    @Test("A server that delivers messages by memory itself keeps its MSI-X, and its DMA is translated")
    func messagesByMemory() throws {
        let rig = try Rig(messagesByMemory: true)
        let keepsTable = rig.function.description.capabilities.contains {
            if case .msix = $0 { return true }
            return false
        }
        #expect(!keepsTable)
        try rig.write(7, EngineRegister.scratch)
        #expect(try rig.dma(2, at: 0x10_0000))
        #expect(rig.machine.word(0x10_0000) == 7)
    }

    @Test("A server that is gone reads as nothing, at once, and the header stays")
    func death() throws {
        let rig = try Rig()
        let vendor = rig.capability(0x09)
        rig.server.stop()
        #expect(eventually { rig.device.client.ending != nil })
        #expect(throws: RegisterAccessError.noSuchRegister) { try rig.read(EngineRegister.scratch) }
        #expect(throws: RegisterAccessError.noSuchRegister) { try rig.write(1, EngineRegister.scratch) }
        #expect(rig.function.readConfiguration(at: vendor + 2, byteCount: 2) == 0xffff)
        #expect(rig.function.readConfiguration(at: 0, byteCount: 4) == 0x11e8_1234)
        rig.function.reset()
        #expect(!rig.function.isBusMaster)
    }

    @Test("A device that is let go of without a word ends its connection, and follows no mappings")
    func letGo() throws {
        let server = try EngineServer()
        let machine = try Machine()
        do {
            let function = try ForeignDevice.attach(
                VFIOUserClient(path: server.path),
                name: "foreign",
                dma: machine,
                options: ForeignDevice.Options(window: .mapped)
            )
            #expect(function.isBusMaster == false)
            #expect(machine.follower.withLock { $0 != nil })
        }
        #expect(machine.follower.withLock { $0 == nil })
        // The server serves one client at a time: the next is served once the first is gone.
        _ = try VFIOUserClient(path: server.path).deviceInfo()
    }

    @Test("What is no PCI function is not taken in, and its connection is closed")
    func noFunction() throws {
        let (client, server) = try connectedPair()
        let script = try Script {
            let server = FakeServer(server)
            try server.expect(greeting)
            try server.send(success(1, versionPayload("{}"), id: 0))
            try server.expect(command(4, words(16, 0, 0, 0), id: 0))
            try server.send(success(4, words(16, 1, 9, 5), id: 0))
            try server.expectEnd()
        }
        do {
            let machine = try Machine()
            let error = failure {
                _ = try ForeignDevice.attach(VFIOUserClient(adopting: client), name: "none", dma: machine)
            }
            #expect(error == .unsupported("a PCI function"))
        }
        script.finish()
    }
}
