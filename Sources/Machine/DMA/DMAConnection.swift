// One client of the DMA socket: takes requests in order, and answers each with data or the fault.

import AddressSpace
import CLinux
import ControlProtocol
import DeviceModel
import Glibc
import GuestMemory
import HostIO

/// Serves one connection of the DMA socket, on one thread.
///
/// Requests that came together are answered together: answers go out when no whole request is left, or when
/// there is much to send. Data in shared buffers goes between them and the guest's memory and nowhere else.
struct DMAConnection: ~Copyable {
    private let connection: Connection
    private let machine: Machine
    private let limits: DMALimits
    private var decoder: DMARequestDecoder
    private var input = StreamBuffer(capacity: Self.inputByteCount)
    private var output = AnswerBuffer()
    private var requesters: Requesters
    private var buffers: HandleTable<GuestMemory.MemoryRegion>
    private var rings: HandleTable<DMARing>
    private var descriptors = DescriptorQueue()
    private var process: ConnectionProcess
    /// Positions in the stream from the client: received up to here, and done with up to here.
    private var receivedByteCount: UInt64 = 0
    private var consumedByteCount: UInt64 = 0

    /// How many bytes are read at a time, where no message is longer.
    private static let inputByteCount = 128 << 10
    /// How many rings a client may have: each has a thread of the daemon.
    private static let ringCountMax = 16
    /// How many bytes a transfer moves before it looks whether the daemon stops.
    private static let pieceByteCount: UInt64 = 4 << 20

    init(_ connection: Connection, machine: Machine, limits: DMALimits = DMALimits()) {
        self.connection = connection
        self.machine = machine
        self.limits = limits
        decoder = DMARequestDecoder(limits: limits)
        requesters = Requesters(machine: machine, countMax: Int(limits.endpointsMax))
        process = ConnectionProcess(machine)
        buffers = HandleTable(countMax: Int(limits.buffersMax))
        rings = HandleTable(countMax: Self.ringCountMax)
    }

    /// Serves the client until it goes, or sends what is no message.
    mutating func run() {
        while true {
            switch decoder.next(in: input.readable) {
            case .request(let request):
                guard answer(request) else { return }
                consume(request)
            case .rejected(let request, let rejection):
                output.append(rejection, to: request)
                consume(request)
            case .needs(let byteCount):
                guard flush(), receive(messageByteCount: byteCount) else { return }
            case .broken(let request, let rejection):
                output.append(rejection, to: request)
                _ = flush()
                return
            }
            guard output.byteCount < AnswerBuffer.flushByteCount || flush() else { return }
        }
    }

    // MARK: The stream

    /// Receives more of a message that takes so many bytes.
    private mutating func receive(messageByteCount: Int) -> Bool {
        input.makeRoom(for: messageByteCount)
        return withUnsafeTemporaryAllocation(of: CInt.self, capacity: Int(SMMUD_MAX_FDS)) { fresh in
            guard let base = fresh.baseAddress else { return false }
            let (byteCount, descriptorCount) = connection.receive(into: input.freeSpace(), descriptors: base)
            receivedByteCount &+= UInt64(byteCount)
            descriptors.append(
                UnsafeBufferPointer(rebasing: fresh[..<descriptorCount]),
                end: receivedByteCount
            )
            input.filled(byteCount)
            return byteCount > 0
        }
    }

    private mutating func consume(_ request: DMARequest) {
        input.consume(Int(request.byteCount))
        consumedByteCount &+= UInt64(request.byteCount)
        descriptors.closeStrays(upTo: consumedByteCount)
    }

    private mutating func flush() -> Bool {
        guard output.byteCount > 0 else { return true }
        defer { output.removeAll() }
        return connection.send(output.bytes)
    }

    // MARK: Requests

    /// Carries a request out and leaves its answer in ``output``.
    ///
    /// - Returns: Whether the connection goes on.
    private mutating func answer(_ request: DMARequest) -> Bool {
        do throws(DMARejection) {
            if request.opcode == .read {
                try read(request)
            } else if request.opcode == .write {
                try write(request)
            } else {
                return try answerOther(request)
            }
        } catch {
            output.append(error, to: request)
        }
        return true
    }

    @inline(never)  // Keeps the transfers' path small.
    private mutating func answerOther(_ request: DMARequest) throws(DMARejection) -> Bool {
        switch request.opcode {
        case .echo: output.append(DMAResponse(to: request), payload: request.payload(in: input.readable))
        case .open:
            output.append(try requesters.open(request, name: request.payload(in: input.readable)))
        case .close: output.append(try requesters.close(request))
        case .attachBuffer: try attach(request)
        case .detachBuffer: try detach(request)
        case .ringOpen: try openRing(request)
        case .ringClose: try closeRing(request)
        case .processMap: try mapProcess(request)
        case .processUnmap: output.append(try process.unmap(request))
        case .processBind: output.append(try process.bind(request, requesters.identity(of: request)))
        case .processUnbind: output.append(try process.unbind(request, requesters.identity(of: request)))
        case .ramInfo: sendMemoryInfo(request)
        case .ramFile: return try sendMemoryFile(request)
        case .hello where consumedByteCount == 0: output.append(.hello(to: request, limits))
        case .hello: throw DMARejection(.parameter, "HELLO opens a connection; this one is open")
        default: throw DMARejection(.unsupported, "there is no opcode \(request.opcode.rawValue)")
        }
        return true
    }

    // MARK: READ and WRITE

    private mutating func read(_ request: DMARequest) throws(DMARejection) {
        try requesters.select(request)
        guard request.flags.contains(.buffer) else {
            // The decoder has seen to it that this is no more than what goes inline.
            let space = output.payloadSpace(Int(request.count))
            do throws(DMAFault) {
                try requesters.read(
                    at: IOVirtualAddress(request.iova),
                    into: space,
                    TransactionAttributes(of: request)
                )
                output.append(
                    DMAResponse(to: request, transferred: request.count),
                    payloadByteCount: space.count
                )
            } catch {
                // The bytes before the fault were read.
                let response = DMAResponse(to: request, error)
                output.append(
                    response,
                    payloadByteCount: min(space.count, Int(clamping: response.transferred))
                )
            }
            return
        }
        try transfer(request, for: .write)
    }

    private mutating func write(_ request: DMARequest) throws(DMARejection) {
        try requesters.select(request)
        guard request.flags.contains(.buffer) else {
            do throws(DMAFault) {
                try requesters.write(
                    request.payload(in: input.readable),
                    at: IOVirtualAddress(request.iova),
                    TransactionAttributes(of: request)
                )
                output.append(DMAResponse(to: request, transferred: request.count))
            } catch {
                output.append(DMAResponse(to: request, error))
            }
            return
        }
        try transfer(request, for: .read)
    }

    /// Moves data between the guest's memory and an attached buffer.
    ///
    /// - Parameter access: What is done to the buffer: a READ writes it.
    private mutating func transfer(_ request: DMARequest, for access: MemoryAccess) throws(DMARejection) {
        guard let buffer = buffers[request.buffer] else {
            throw DMARejection(.notFound, "buffer \(request.buffer) is not attached")
        }
        let base: UnsafeMutableRawPointer
        do throws(GuestMemoryError) {
            base = try buffer.pointer(at: request.offset, count: request.count, for: access)
        } catch {
            throw DMARejection(error)
        }
        let attributes = TransactionAttributes(of: request)
        var done: UInt64 = 0
        while done < request.count {
            guard !connection.isStopping else { throw DMARejection(.failed, "the daemon stops") }
            let count = Int(min(request.count - done, Self.pieceByteCount))
            let (start, address) = (base + Int(done), IOVirtualAddress(request.iova &+ done))
            do throws(DMAFault) {
                if access == .write {
                    let piece = UnsafeMutableRawBufferPointer(start: start, count: count)
                    try requesters.read(at: address, into: piece, attributes)
                } else {
                    let piece = UnsafeRawBufferPointer(start: start, count: count)
                    try requesters.write(piece, at: address, attributes)
                }
            } catch {
                output.append(DMAResponse(to: request, error, before: done))
                return
            }
            done += UInt64(count)
        }
        // Only known afterwards: what is lost reads as zeroes, and takes no writes.
        guard !buffer.isLost else { throw DMARejection(GuestMemoryError.lost(name: buffer.name)) }
        output.append(DMAResponse(to: request, transferred: done))
    }

    // MARK: Shared memory

    private mutating func attach(_ request: DMARequest) throws(DMARejection) {
        // Even a request that is refused has used the descriptor up that came with it.
        guard let descriptor = descriptors.removeFirst() else {
            throw DMARejection(.noDescriptor, "no file descriptor came with ATTACH_BUFFER")
        }
        guard buffers.count < buffers.countMax else {
            throw DMARejection(.limit, "\(buffers.countMax) buffers are attached; detach one first")
        }
        guard request.offset.isMultiple(of: UInt64(sysconf(CInt(_SC_PAGESIZE)))) else {
            throw DMARejection(.parameter, "offset \(Hex(request.offset)) is no multiple of the page size")
        }
        let isWritable = descriptor.isWritable
        let byteCount = request.count == 0 ? descriptor.byteCount(from: request.offset) : request.count
        let region: GuestMemory.MemoryRegion
        do throws(GuestMemoryError) {
            region = try .mapping(
                descriptor,
                offset: request.offset,
                byteCount: byteCount,
                isWritable: isWritable
            )
        } catch {
            throw DMARejection(error)
        }
        guard let handle = buffers.insert(region) else {
            throw DMARejection(.limit, "\(buffers.countMax) buffers are attached; detach one first")
        }
        output.append(DMAResponse(to: request, handle: handle, value0: byteCount))
    }

    private mutating func detach(_ request: DMARequest) throws(DMARejection) {
        guard buffers.remove(request.buffer) != nil else {
            throw DMARejection(.notFound, "buffer \(request.buffer) is not attached")
        }
        output.append(DMAResponse(to: request))
    }

    // MARK: Rings

    private mutating func openRing(_ request: DMARequest) throws(DMARejection) {
        guard let kick = descriptors.removeFirst(), let call = descriptors.removeFirst() else {
            throw DMARejection(.noDescriptor, "RING_OPEN takes two eventfds in one message")
        }
        guard let buffer = buffers[request.buffer] else {
            throw DMARejection(.notFound, "buffer \(request.buffer) is not attached")
        }
        guard rings.count < rings.countMax else {
            throw DMARejection(.limit, "\(rings.countMax) rings are open; close one first")
        }
        let layout = try DMARingLayout(size: request.count, at: request.offset)
        let ring = try DMARing(
            in: buffer,
            layout,
            kick: kick,
            call: call,
            pollNanoseconds: request.iova,
            machine: machine,
            limits: limits
        )
        guard let handle = rings.insert(ring) else { return }
        output.append(
            DMAResponse(
                to: request,
                handle: handle,
                value0: layout.available,
                value1: layout.used,
                value2: layout.end
            )
        )
    }

    private mutating func closeRing(_ request: DMARequest) throws(DMARejection) {
        guard let ring = rings.remove(request.endpoint) else {
            throw DMARejection(.notFound, "ring \(request.endpoint) is not open")
        }
        ring.stop()
        if let reason = ring.breakage { throw DMARejection(.failed, reason) }
        output.append(DMAResponse(to: request))
    }

    private mutating func mapProcess(_ request: DMARequest) throws(DMARejection) {
        // As in ATTACH_BUFFER.
        guard let descriptor = descriptors.removeFirst() else {
            throw DMARejection(.noDescriptor, "no file descriptor came with PROCESS_MAP")
        }
        output.append(try process.map(request, descriptor))
    }

    private mutating func sendMemoryInfo(_ request: DMARequest) {
        let regions = machine.memory.enumerated().map { index, memory in
            DMAMemoryRegion(
                base: memory.range.first,
                length: memory.region.byteCount,
                fileOffset: memory.region.fileOffset,
                index: UInt32(index)
            )
        }
        DMAMemoryRegion.payload(of: regions).withUnsafeBytes {
            output.append(DMAResponse(to: request), payload: $0)
        }
    }

    /// Lends the file of a region of RAM.
    private mutating func sendMemoryFile(_ request: DMARequest) throws(DMARejection) -> Bool {
        guard let index = Int(exactly: request.endpoint), index < machine.memory.count else {
            throw DMARejection(
                .notFound,
                "there is no region \(request.endpoint); RAM_INFO lists \(machine.memory.count)"
            )
        }
        // The descriptor must go out with its own answer, not with those that wait before it.
        guard flush() else { return false }
        let memory = machine.memory[index]
        output.append(
            DMAResponse(
                to: request,
                value0: memory.range.first,
                value1: memory.region.byteCount,
                value2: memory.region.fileOffset
            )
        )
        defer { output.removeAll() }
        return connection.send(output.bytes, lending: memory.region.fileDescriptor)
    }
}
