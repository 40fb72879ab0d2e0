// A driver of virtio-blk over PCI (Virtual I/O Device specification 1.2): one queue, one request at a time.

public import VFIOUserClient

/// A virtio disk.
public final class VirtioBlockDriver: BlockDevice {
    private struct Window {
        var bar: VFIOUserClient.RegionIndex
        var offset: UInt64
    }
    /// Common configuration (4.1.4.3).
    private enum Common {
        static let featureSelect: UInt64 = 0
        static let feature: UInt64 = 4
        static let driverFeatureSelect: UInt64 = 8
        static let driverFeature: UInt64 = 12
        static let configurationVector: UInt64 = 16
        static let status: UInt64 = 20
        static let queueSelect: UInt64 = 22
        static let queueSize: UInt64 = 24
        static let queueVector: UInt64 = 26
        static let queueEnable: UInt64 = 28
        static let queueNotifyOffset: UInt64 = 30
        static let queueDescriptors: UInt64 = 32
        static let queueDriver: UInt64 = 40
        static let queueDevice: UInt64 = 48
    }
    /// Where things are in the driver's memory.
    private enum Place {
        static let descriptors: UInt64 = 0
        static let available: UInt64 = 0x1000
        static let used: UInt64 = 0x2000
        static let header: UInt64 = 0x3000
        static let status: UInt64 = 0x3010
        static let data: UInt64 = 0x4000
    }

    public let name = "virtio-blk"
    /// Virtio counts in sectors of 512 bytes, whatever the device's own blocks are.
    public let blockByteCount = 512
    public private(set) var blockCount: UInt64 = 0
    public let transferByteCountMax = 0x1_0000
    public var interruptCount: UInt64 { interrupts.count }
    /// How many times the device was told of requests by an eventfd instead of a register write.
    public private(set) var eventCount: UInt64 = 0
    /// What was agreed on.
    public private(set) var features: UInt64 = 0

    private let device: PCIDevice
    private let memory: DriverMemory
    private let interrupts: DriverInterrupts
    private var windows: [UInt8: Window] = [:]
    private var notify: (VFIOUserClient.RegionIndex, UInt64) = (.bar(0), 0)
    /// What is signalled instead of writing to ``notify``; nil where the register is written.
    private var notifyEvent: VFIOUserEvent?
    private var queueSize: UInt16 = 0
    private var availableIndex: UInt16 = 0

    /// Feature bits of the transport and the device.
    private enum Feature {
        static let flush: UInt64 = 1 << 9
        static let version1: UInt64 = 1 << 32
        static let accessPlatform: UInt64 = 1 << 33
    }

    /// Brings a disk up.
    ///
    /// - Parameters:
    ///   - address: Where in the device's addresses 80 KiB are free.
    ///   - usesEvents: Whether to tell the device of requests by an eventfd (DEVICE_GET_REGION_IO_FDS), where it
    ///     has one for that.
    public init(
        _ client: VFIOUserClient,
        _ sharing: DriverMemory.Sharing,
        at address: UInt64 = 0x1000_0000,
        usesEvents: Bool = false
    ) throws(DriverError) {
        device = PCIDevice(client)
        guard try device.vendorID == 0x1af4, try device.deviceID == 0x1042 else {
            throw .unsuitable("not 1af4:1042")
        }
        memory = try DriverMemory(client, byteCount: 0x1_4000, at: address, sharing)
        interrupts = try DriverInterrupts(device, vectorCount: 2)
        try findWindows()
        try negotiate()
        try setUpQueue()
        if usesEvents { notifyEvent = try findNotifyEvent() }
        try setStatus(0x0f)
        // Capacity is the first field of the device's configuration; the two halves may not be of one moment.
        var capacity: UInt64
        repeat {
            capacity = try read(UInt64.self, 4, 0)
            blockCount = try read(UInt64.self, 4, 0)
        } while capacity != blockCount
    }

    /// Finds the structures in the vendor's capabilities (4.1.4).
    private func findWindows() throws(DriverError) {
        for (id, place) in try device.capabilities() where id == 0x09 {
            let type = try device.configuration(UInt8.self, at: place + 3)
            guard windows[type] == nil else { continue }
            let bar = Int(try device.configuration(UInt8.self, at: place + 4))
            let offset = UInt64(try device.configuration(UInt32.self, at: place + 8))
            windows[type] = Window(bar: .bar(bar), offset: offset)
            if type == 2 {
                notify = (.bar(bar), UInt64(try device.configuration(UInt32.self, at: place + 16)))
            }
        }
        guard windows[1] != nil, windows[2] != nil, windows[4] != nil else {
            throw .unsuitable("no virtio structures")
        }
    }

    private func read<Word: FixedWidthInteger & UnsignedInteger>(
        _: Word.Type,
        _ type: UInt8,
        _ offset: UInt64
    ) throws(DriverError) -> Word {
        guard let window = windows[type] else { throw .unsuitable("no virtio structure \(type)") }
        return try device.read(Word.self, of: window.bar, at: window.offset + offset)
    }

    private func set<Word: FixedWidthInteger & UnsignedInteger>(_ word: Word, _ offset: UInt64)
        throws(DriverError)
    {
        guard let window = windows[1] else { throw .unsuitable("no virtio structure 1") }
        try device.write(word, to: window.bar, at: window.offset + offset)
    }

    private func setStatus(_ status: UInt8) throws(DriverError) {
        try set(status, Common.status)
        guard try read(UInt8.self, 1, Common.status) & 0xc8 == status & 8 else {
            throw .unsuitable("it does not agree to status \(status)")
        }
    }

    /// Reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK (3.1.1).
    private func negotiate() throws(DriverError) {
        try set(UInt8(0), Common.status)
        var attempts = 0
        while try read(UInt8.self, 1, Common.status) != 0 {
            attempts += 1
            guard attempts < 10_000 else { throw .timedOut("reset") }
        }
        try setStatus(1)
        try setStatus(3)
        var offered: UInt64 = 0
        for half in [0, 1] as [UInt32] {
            try set(half, Common.featureSelect)
            offered |= UInt64(try read(UInt32.self, 1, Common.feature)) << (32 * UInt64(half))
        }
        guard offered & Feature.version1 != 0 else { throw .unsuitable("older than virtio 1.0") }
        features = offered & (Feature.version1 | Feature.accessPlatform | Feature.flush)
        for half in [0, 1] as [UInt32] {
            try set(half, Common.driverFeatureSelect)
            try set(UInt32(truncatingIfNeeded: features >> (32 * UInt64(half))), Common.driverFeature)
        }
        try setStatus(0x0b)
    }

    private func setUpQueue() throws(DriverError) {
        try set(UInt16(0), Common.queueSelect)
        queueSize = min(try read(UInt16.self, 1, Common.queueSize), 128)
        guard queueSize >= 4, queueSize & (queueSize - 1) == 0 else {
            throw .unsuitable("a queue of \(queueSize)")
        }
        try set(queueSize, Common.queueSize)
        if !interrupts.usesPin {
            try set(UInt16(0), Common.configurationVector)
            try set(UInt16(1), Common.queueVector)
        }
        try set(memory.address + Place.descriptors, Common.queueDescriptors)
        try set(memory.address + Place.available, Common.queueDriver)
        try set(memory.address + Place.used, Common.queueDevice)
        let offset = UInt64(try read(UInt16.self, 1, Common.queueNotifyOffset))
        notify.1 = (windows[2]?.offset ?? 0) + offset * notify.1
        try set(UInt16(1), Common.queueEnable)
    }

    /// The eventfd for what the driver writes: 2 bytes at the queue's address, any value.
    private func findNotifyEvent() throws(DriverError) -> VFIOUserEvent? {
        for offered in try device.ioEvents(of: notify.0)
        where !offered.isIORegion && offered.offset == notify.1 && offered.flags == 0
            && [0, 2].contains(offered.byteCount)
        {
            if let event = offered.event { return event }
        }
        return nil
    }

    // MARK: Requests

    private struct Buffer {
        var offset: UInt64
        var byteCount: Int
        var isWritable: Bool
    }

    /// Sends one request and waits for it; `data` is in memory already, or will be.
    private func request(_ type: UInt32, _ name: String, sector: UInt64, _ data: Buffer?) throws(DriverError)
    {
        try memory.store(UInt64(type), at: Place.header)
        try memory.store(sector, at: Place.header + 8)
        try memory.store(UInt8(0xff), at: Place.status)
        let buffers =
            [Buffer(offset: Place.header, byteCount: 16, isWritable: false)] + (data.map { [$0] } ?? [])
            + [Buffer(offset: Place.status, byteCount: 1, isWritable: true)]
        for (index, buffer) in buffers.enumerated() {
            let place = Place.descriptors + 16 * UInt64(index)
            let isLast = index == buffers.count - 1
            try memory.store(memory.address + buffer.offset, at: place)
            try memory.store(UInt32(buffer.byteCount), at: place + 8)
            try memory.store(UInt16((isLast ? 0 : 1) | (buffer.isWritable ? 2 : 0)), at: place + 12)
            try memory.store(UInt16(isLast ? 0 : index + 1), at: place + 14)
        }
        try memory.store(UInt16(0), at: Place.available + 4 + 2 * UInt64(availableIndex % queueSize))
        availableIndex &+= 1
        try memory.store(availableIndex, at: Place.available + 2)
        if let notifyEvent {
            notifyEvent.signal()
            eventCount += 1
        } else {
            try device.write(UInt16(0), to: notify.0, at: notify.1, isPosted: true)
        }
        for _ in 0..<attemptCountMax {
            if try memory.load(UInt16.self, at: Place.used + 2) == availableIndex {
                if interrupts.usesPin { try clearPin() }
                let status = try memory.load(UInt8.self, at: Place.status)
                guard status == 0 else { throw .refused(command: name, status: Int(status)) }
                return
            }
            try interrupts.wait()
            if interrupts.usesPin { try clearPin() }
        }
        throw .timedOut(name)
    }

    /// Reading the ISR status takes the pin's cause away (4.1.4.5).
    private func clearPin() throws(DriverError) {
        _ = try read(UInt8.self, 3, 0)
        try interrupts.acknowledge()
    }

    private func check(_ byteCount: Int) throws(DriverError) {
        guard byteCount > 0, byteCount <= transferByteCountMax, byteCount % blockByteCount == 0 else {
            throw .unsuitable("a transfer of \(byteCount) bytes")
        }
    }

    public func read(_ byteCount: Int, at block: UInt64) throws(DriverError) -> [UInt8] {
        try check(byteCount)
        try request(
            0,
            "read",
            sector: block,
            Buffer(offset: Place.data, byteCount: byteCount, isWritable: true)
        )
        return try memory.read(byteCount, at: Place.data)
    }

    public func write(_ bytes: [UInt8], at block: UInt64) throws(DriverError) {
        try check(bytes.count)
        try memory.write(bytes, at: Place.data)
        try request(
            1,
            "write",
            sector: block,
            Buffer(offset: Place.data, byteCount: bytes.count, isWritable: false)
        )
    }

    public func flush() throws(DriverError) {
        guard features & Feature.flush != 0 else { return }
        try request(4, "flush", sector: 0, nil)
    }
}
