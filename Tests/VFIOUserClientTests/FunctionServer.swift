// A function of ours behind our own vfio-user server, in this process.

import AddressSpace
import CLinux
import DeviceModel
import Glibc
import GuestMemory
import HostIO
import Logging
import PCIFunction
import Synchronization
import VFIOUserProtocol
import VFIOUserServer

/// What a client lends.
final class LentMemory: VFIOUserMemory {
    private enum Source: Sendable {
        case region(MemoryRegion)
        case messages(any RemoteMemory)
    }
    private let ranges = Mutex<[VFIOUserMemoryRange: Source]>([:])

    /// What is mapped, in the order of addresses: whether by descriptor.
    var mapped: [(range: VFIOUserMemoryRange, byDescriptor: Bool)] {
        ranges.withLock { ranges in
            ranges.sorted { $0.key.address < $1.key.address }.map { range, source in
                if case .region = source { return (range, true) }
                return (range, false)
            }
        }
    }

    func map(_ range: VFIOUserMemoryRange, _ source: consuming VFIOUserMemorySource) throws(VFIOUserError) {
        let kept: Source
        switch consume source {
        case .descriptor(let descriptor, let offset):
            do throws(GuestMemoryError) {
                kept = .region(
                    try MemoryRegion.mapping(
                        descriptor,
                        offset: offset,
                        byteCount: range.byteCount,
                        isWritable: range.isWritable
                    )
                )
            } catch {
                throw .invalid
            }
        case .messages(let memory): kept = .messages(memory)
        }
        ranges.withLock { $0[range] = kept }
    }

    func unmap(address: UInt64, byteCount: UInt64) throws(VFIOUserError) {
        let isThere = ranges.withLock { ranges in
            guard let range = ranges.keys.first(where: { $0.address == address && $0.byteCount == byteCount })
            else { return false }
            ranges[range] = nil
            return true
        }
        if !isThere { throw .noEntry }
    }

    func unmapAll() { ranges.withLock { $0 = [:] } }

    /// Whether the client has that memory, and gave or took it.
    func access(_ address: UInt64, _ bytes: UnsafeMutableRawBufferPointer, isWrite: Bool) -> Bool {
        let found = ranges.withLock { ranges in
            ranges.first { address >= $0.key.address && address - $0.key.address < $0.key.byteCount }
        }
        guard let (range, source) = found else { return false }
        let offset = address - range.address
        switch source {
        case .messages(let memory):
            return isWrite
                ? memory.write(UnsafeRawBufferPointer(bytes), at: offset)
                : memory.read(at: offset, into: bytes)
        case .region(let region):
            let access: MemoryAccess = isWrite ? .write : .read
            guard let pointer = try? region.pointer(at: offset, count: UInt64(bytes.count), for: access)
            else {
                return false
            }
            if isWrite {
                smmud_copy_to_shared(pointer, bytes.baseAddress, bytes.count)
            } else {
                smmud_copy_from_shared(bytes.baseAddress, pointer, bytes.count)
            }
            return true
        }
    }
}

/// A device's view of what a client lends.
final class LentPort: DMAPort {
    private let memory: LentMemory

    init(_ memory: LentMemory) { self.memory = memory }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _: TransactionAttributes
    )
        throws(DMAFault)
    {
        guard memory.access(address.rawValue, buffer, isWrite: false) else {
            throw DMAFault(cause: .aborted, address: address, bytesTransferred: 0)
        }
    }

    func write(_ buffer: UnsafeRawBufferPointer, at address: IOVirtualAddress, _: TransactionAttributes)
        throws(DMAFault)
    {
        let bytes = UnsafeMutableRawBufferPointer(mutating: buffer)
        guard memory.access(address.rawValue, bytes, isWrite: true) else {
            throw DMAFault(cause: .aborted, address: address, bytesTransferred: 0)
        }
    }

    func lend(
        _: [DMARange],
        for _: DMADirection,
        _: TransactionAttributes,
        _: (UnsafeBufferPointer<iovec>) -> Void
    ) -> Bool { false }

    func rest() {}
}

/// A function at a socket.
final class FunctionServer: Sendable {
    let path: String
    let memory: LentMemory
    let function: PCIFunction
    private let server: VFIOUserServer
    private static let count = Atomic(0)

    /// - Parameter make: Makes the function, whose memory is what the client lends.
    init(messagesByMemory: Bool = false, _ make: (LentMemory) throws -> PCIFunction) throws {
        let number = Self.count.wrappingAdd(1, ordering: .relaxed).newValue
        path = "/tmp/vfu-function-\(getpid())-\(number).sock"
        let memory = LentMemory()
        self.memory = memory
        function = try make(memory)
        server = try VFIOUserServer(
            VFIOUserServer.Configuration(name: "function"),
            device: PCIFunctionDevice(function, messagesByMemory: messagesByMemory),
            listener: UnixListener(path: path),
            logger: Logger(label: "function") { _ in SwiftLogNoOpLogHandler() },
            makeMemory: { memory }
        )
        try server.start()
    }

    /// Ends it, as the end of its process would.
    func stop() { server.stop() }

    deinit { server.stop() }
}
