// What the bus's tests put into the map: memory of a peer's, targets that record, numbers from a seed.

import AddressSpace
import DeviceModel
import Glibc
import GuestMemory
import Synchronization
import SystemBus
import Testing

/// A region of a file that this test can truncate, as a peer can, and the descriptor to do it with.
struct PeerMemory: ~Copyable {
    let region: MemoryRegion
    let file: OwnedDescriptor

    init(fileByteCount: Int, offset: UInt64 = 0, byteCount: UInt64, isWritable: Bool = true) throws {
        var path = Array("/tmp/smmud-test-XXXXXX".utf8CString)
        let descriptor = mkstemp(&path)
        try #require(descriptor >= 0)
        let file = OwnedDescriptor(adopting: descriptor)
        unlink(path)
        try #require(ftruncate(descriptor, off_t(fileByteCount)) == 0)
        region = try .mapping(file.duplicate(), offset: offset, byteCount: byteCount, isWritable: isWritable)
        self.file = file
    }

    func truncate(to byteCount: Int) throws {
        try #require(ftruncate(file.rawValue, off_t(byteCount)) == 0)
    }
}

/// One access that a window saw.
struct SeenAccess: Equatable, Sendable {
    var offset: UInt64
    var width: AccessWidth
    /// Nil for a read.
    var value: UInt64?

    static func read(_ offset: UInt64, _ width: AccessWidth) -> Self { Self(offset: offset, width: width) }
    static func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) -> Self {
        Self(offset: offset, width: width, value: value)
    }
}

/// Bytes behind a window of registers: takes every width, records every access.
final class ByteTarget: RegisterTarget {
    private struct State {
        var bytes: [UInt8]
        var seen: [SeenAccess] = []
    }
    private let state: Mutex<State>
    private let refusal: RegisterAccessError?

    init(byteCount: Int, refusing refusal: RegisterAccessError? = nil) {
        state = Mutex(State(bytes: [UInt8](repeating: 0, count: byteCount)))
        self.refusal = refusal
    }

    var seen: [SeenAccess] { state.withLock { $0.seen } }
    var bytes: [UInt8] { state.withLock { $0.bytes } }

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        if let refusal { throw refusal }
        return state.withLock { state in
            state.seen.append(.read(offset, width))
            return (0..<width.rawValue).reduce(0) { value, index in
                value | UInt64(state.bytes[Int(offset) + index]) << UInt64(index * 8)
            }
        }
    }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        if let refusal { throw refusal }
        state.withLock { state in
            state.seen.append(.write(offset, width, value))
            for index in 0..<width.rawValue {
                state.bytes[Int(offset) + index] = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
            }
        }
    }
}

func address(_ rawValue: UInt64) -> PhysicalAddress { PhysicalAddress(rawValue) }

func range(_ first: UInt64, _ last: UInt64) throws -> AddressRange {
    try #require(AddressRange(first: first, last: last))
}

extension SystemBus {
    /// ``copyOut(at:into:)`` into an array.
    func bytes(_ count: Int, at start: UInt64) throws(BusError) -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 8)
        defer { buffer.deallocate() }
        buffer.initializeMemory(as: UInt8.self, repeating: 0xee)
        try copyOut(at: PhysicalAddress(start), into: buffer)
        return Array(buffer)
    }

    /// ``copyIn(_:at:)`` from an array.
    func put(_ bytes: [UInt8], at start: UInt64) throws(BusError) {
        let failure: BusError? = bytes.withUnsafeBytes { buffer in
            do throws(BusError) {
                try copyIn(buffer, at: PhysicalAddress(start))
                return nil
            } catch {
                return error
            }
        }
        if let failure { throw failure }
    }
}
