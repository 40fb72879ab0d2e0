// A PCI function as a driver sees it: configuration space, capabilities, registers.

public import VFIOUserClient

/// A function behind a vfio-user server.
public struct PCIDevice: Sendable {
    public let client: VFIOUserClient

    public init(_ client: VFIOUserClient) { self.client = client }

    /// Reads a little-endian word of configuration space.
    public func configuration<Word: FixedWidthInteger & UnsignedInteger>(
        _: Word.Type = Word.self,
        at offset: Int
    ) throws(DriverError) -> Word {
        try read(Word.self, of: .configuration, at: UInt64(offset))
    }

    /// Writes a little-endian word of configuration space.
    public func setConfiguration<Word: FixedWidthInteger & UnsignedInteger>(_ word: Word, at offset: Int)
        throws(DriverError)
    {
        try write(word, to: .configuration, at: UInt64(offset))
    }

    public func read<Word: FixedWidthInteger & UnsignedInteger>(
        _: Word.Type = Word.self,
        of region: VFIOUserClient.RegionIndex,
        at offset: UInt64
    ) throws(DriverError) -> Word {
        try asking { () throws(VFIOUserClientError) in try client.read(Word.self, of: region, at: offset) }
    }

    public func write<Word: FixedWidthInteger & UnsignedInteger>(
        _ word: Word,
        to region: VFIOUserClient.RegionIndex,
        at offset: UInt64,
        isPosted: Bool = false
    ) throws(DriverError) {
        try asking { () throws(VFIOUserClientError) in
            try client.write(word, to: region, at: offset, isPosted: isPosted)
        }
    }

    /// The eventfds that can be signalled instead of writing to a region.
    public func ioEvents(of region: VFIOUserClient.RegionIndex) throws(DriverError) -> [VFIOUserClient
        .IOEvent]
    {
        try asking { () throws(VFIOUserClientError) in try client.ioEvents(of: region) }
    }

    public var vendorID: UInt16 { get throws(DriverError) { try configuration(at: 0x00) } }
    public var deviceID: UInt16 { get throws(DriverError) { try configuration(at: 0x02) } }
    /// Base class in bits 23:16, sub-class in 15:8, programming interface in 7:0.
    public var classCode: UInt32 { get throws(DriverError) { try configuration(UInt32.self, at: 0x08) >> 8 } }

    /// The capabilities: identifiers and where they stand.
    public func capabilities() throws(DriverError) -> [(id: UInt8, offset: Int)] {
        guard try configuration(UInt16.self, at: 0x06) & 0x10 != 0 else { return [] }
        var found: [(id: UInt8, offset: Int)] = []
        var offset = Int(try configuration(UInt8.self, at: 0x34)) & ~3
        // No list is longer than there are places for capabilities in it.
        while offset >= 0x40, found.count < 48 {
            let header = try configuration(UInt16.self, at: offset)
            found.append((UInt8(truncatingIfNeeded: header), offset))
            offset = Int(header >> 8) & ~3
        }
        return found
    }

    /// The extended capabilities of PCI Express: identifiers and where they stand.
    public func extendedCapabilities() throws(DriverError) -> [(id: UInt16, offset: Int)] {
        var found: [(id: UInt16, offset: Int)] = []
        var offset = 0x100
        while offset >= 0x100, found.count < 960 {
            let header = try configuration(UInt32.self, at: offset)
            guard header != 0, header != UInt32.max else { break }
            found.append((UInt16(truncatingIfNeeded: header), offset))
            offset = Int(header >> 20) & ~3
        }
        return found
    }

    /// Memory space and bus mastering on; the pin off where messages are used.
    func enable(usesPin: Bool) throws(DriverError) {
        try setConfiguration(UInt16(usesPin ? 0x006 : 0x406), at: 0x04)
    }
}

/// How a driver hears of its device.
final class DriverInterrupts {
    private let client: VFIOUserClient
    private let event: VFIOUserEvent
    /// Whether it comes by the pin, and is to be unmasked each time.
    let usesPin: Bool
    private(set) var count: UInt64 = 0

    /// Binds MSI-X where there is one, or the pin: every vector signals the same event.
    init(_ device: PCIDevice, vectorCount: Int) throws(DriverError) {
        client = device.client
        let client = device.client
        event = try asking { () throws(VFIOUserClientError) in try VFIOUserEvent() }
        let msix = try device.capabilities().first { $0.id == 0x11 }
        let available = try asking { () throws(VFIOUserClientError) in
            try client.interrupts(.msix).vectorCount
        }
        usesPin = msix == nil || available < vectorCount
        try device.enable(usesPin: usesPin)
        let events = [VFIOUserEvent?](repeating: event, count: usesPin ? 1 : vectorCount)
        let kind: VFIOUserClient.InterruptKind = usesPin ? .intx : .msix
        try asking { () throws(VFIOUserClientError) in try client.bind(events, to: kind) }
        if let msix, !usesPin {
            let control = try device.configuration(UInt16.self, at: msix.offset + 2)
            try device.setConfiguration(control | 0x8000, at: msix.offset + 2)
        }
    }

    /// Waits for an interrupt, or for a while: some devices give none where they see that they are being watched.
    ///
    /// - Throws: ``DriverError/client(_:)`` where the connection has ended: nothing comes any more.
    func wait() throws(DriverError) {
        guard event.wait(milliseconds: 100) else {
            if let ending = client.ending { throw .client(ending) }
            return
        }
        count += event.take()
    }

    /// Lets the next interrupt by the pin come, after the device was looked at.
    func acknowledge() throws(DriverError) {
        guard usesPin else { return }
        try asking { () throws(VFIOUserClientError) in try client.perform(.unmask, .intx, vectors: 0..<1) }
    }
}

/// How often ``DriverInterrupts/wait()`` is tried: about 20 seconds.
let attemptCountMax = 200
