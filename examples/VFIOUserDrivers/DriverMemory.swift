// Memory that a driver and its device have in common.

public import VFIOUserClient

/// Some memory at an address of the device, handed out piece by piece.
public final class DriverMemory: Sendable {
    /// How the device gets at it.
    public enum Sharing: Equatable, Sendable {
        /// By descriptor: the server maps it.
        case byDescriptor
        /// By asking for each access.
        case byMessage
        /// By this descriptor, of a file that has 84 KiB or more and that somebody may truncate.
        case inFile(Int32)
    }

    private final class Kept: VFIOUserMemoryHandler {
        let bytes: VFIOUserSharedMemory
        let address: UInt64

        init(_ bytes: VFIOUserSharedMemory, at address: UInt64) {
            self.bytes = bytes
            self.address = address
        }

        func read(at place: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(VFIOUserMemoryError) {
            do throws(VFIOUserClientError) {
                try bytes.read(at: place &- address, into: buffer)
            } catch {
                throw .badAddress
            }
        }

        func write(_ buffer: UnsafeRawBufferPointer, at place: UInt64) throws(VFIOUserMemoryError) {
            do throws(VFIOUserClientError) {
                try bytes.write(buffer, at: place &- address)
            } catch {
                throw .badAddress
            }
        }
    }

    public let bytes: VFIOUserSharedMemory
    /// What the device calls the first byte.
    public let address: UInt64

    /// Maps memory for a device.
    public init(
        _ client: VFIOUserClient,
        byteCount: UInt64,
        at address: UInt64,
        _ sharing: Sharing
    ) throws(DriverError) {
        self.address = address
        let bytes = try asking { () throws(VFIOUserClientError) in
            switch sharing {
            case .byDescriptor, .byMessage: try VFIOUserSharedMemory(byteCount: byteCount, name: "driver")
            case .inFile(let file):
                try VFIOUserSharedMemory(duplicating: file, offset: 0, byteCount: byteCount)
            }
        }
        self.bytes = bytes
        try asking { () throws(VFIOUserClientError) in
            switch sharing {
            case .byDescriptor, .inFile: try client.map(bytes, byteCount: byteCount, at: address)
            case .byMessage: try client.map(Kept(bytes, at: address), byteCount: byteCount, at: address)
            }
        }
    }

    func load<Word: FixedWidthInteger & UnsignedInteger>(_: Word.Type = Word.self, at offset: UInt64)
        throws(DriverError) -> Word
    {
        let word = try asking { () throws(VFIOUserClientError) in
            try bytes.load(at: offset, as: Word.self)
        }
        try checkWhole()
        return word
    }

    func store<Word: FixedWidthInteger & UnsignedInteger>(_ word: Word, at offset: UInt64) throws(DriverError)
    {
        try asking { () throws(VFIOUserClientError) in try bytes.store(word, at: offset) }
    }

    func read(_ byteCount: Int, at offset: UInt64) throws(DriverError) -> [UInt8] {
        let data = try asking { () throws(VFIOUserClientError) in try bytes.read(byteCount, at: offset) }
        try checkWhole()
        return data
    }

    func write(_ data: [UInt8], at offset: UInt64) throws(DriverError) {
        try asking { () throws(VFIOUserClientError) in try bytes.write(data, at: offset) }
    }

    /// After a read: zeros in place of what was truncated are no answer of the device's.
    private func checkWhole() throws(DriverError) {
        guard !bytes.isLost else { throw .memoryLost }
    }
}
