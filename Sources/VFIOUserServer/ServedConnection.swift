// One client, from its first message to its last.

import CLinux
import DeviceModel
import GuestMemory
import HostIO
import Synchronization
import SystemPackage
package import VFIOUserProtocol

/// Serves one client on the calling thread.
///
/// What the client sends is read, checked and answered in its order. What the device does of its own accord, its
/// interrupts and its DMA, goes by other threads through ``InterruptTable`` and ``ClientMemory``.
package final class ServedConnection {
    private let stream: any ClientStream
    private let device: any VFIOUserDevice
    private let memory: any VFIOUserMemory
    private let clientMemory: ClientMemory
    private let interrupts: InterruptTable
    private let services: ConnectionServices
    private let events: IOEvents
    private var session: VFIOUserServerSession
    private let requests: VFIOUserRegionRequestReader
    private let messageByteCountMax: Int
    private let pollNanoseconds: Int64
    private let reply: UnsafeMutableRawBufferPointer
    private var twin: TwinSocket?
    private var isGreeted = false
    /// The DMA_MAPs that stand, so that there are no more than the client was told.
    private var mapped: Set<VFIOUserMemoryRange> = []
    private var violation: VFIOUserViolation?

    package init(
        _ stream: any ClientStream,
        device: any VFIOUserDevice,
        memory: any VFIOUserMemory,
        configuration: VFIOUserServer.Configuration
    ) {
        self.stream = stream
        self.device = device
        self.memory = memory
        let description = device.description
        let services = ConnectionServices(name: configuration.name)
        self.services = services
        clientMemory = ClientMemory(timeoutMilliseconds: Int64(configuration.dmaTimeoutMilliseconds))
        interrupts = InterruptTable(description.interrupts) { () throws(Errno) in try services.watcher() }
        events = IOEvents(description)
        session = VFIOUserServerSession(device: description, limits: configuration.limits)
        requests = VFIOUserRegionRequestReader(device: description, limits: configuration.limits)
        messageByteCountMax =
            VFIOUserRegionRequestReader.headByteCount + configuration.limits.dataByteCountMax
        pollNanoseconds = Int64(configuration.pollMicroseconds) * 1000
        reply = .allocate(byteCount: messageByteCountMax, alignment: 16)
    }

    deinit { reply.deallocate() }

    /// Serves until the client leaves, breaks the rules, or the stream is abandoned.
    ///
    /// - Returns: What the client did that nobody may, where it did.
    package func serve() -> VFIOUserViolation? {
        clientMemory.servedByThisThread()
        device.clientAttached(interrupts)
        // No property: each access to one that changes is checked at run time, several times a message.
        var reader = MessageReader(
            stream,
            messageByteCountMax: messageByteCountMax,
            pollNanoseconds: pollNanoseconds
        )
        while serveMessage(&reader) {}
        end(&reader)
        return violation
    }

    private func end(_ reader: inout MessageReader) {
        // First nobody waits for the client any longer; then its memory goes, which waits for who uses it.
        stream.abandon()
        reader.closeDescriptors()
        twin?.stop()
        clientMemory.close()
        services.stop()
        interrupts.close()
        memory.unmapAll()
        device.clientDetached()
    }

    // MARK: Messages

    /// Returns whether the connection goes on.
    private func serveMessage(_ reader: inout MessageReader) -> Bool {
        guard let header = reader.header() else { return false }
        defer { reader.finishMessage() }
        let byteCount = Int(header.messageByteCount)
        if isGreeted, Self.isAccess(header), reader.descriptors.isEmpty, byteCount <= reply.count {
            guard let message = reader.message(byteCount: byteCount) else { return false }
            if let request = requests.request(message) {
                let isAlive = serve(request, message, &reader)
                reader.consume(byteCount)
                return isAlive
            }
        }
        return serveStepwise(&reader)
    }

    /// REGION_READ or REGION_WRITE.
    private static func isAccess(_ header: VFIOUserHeader) -> Bool {
        let number = header.command.rawValue
        return number == 9 || number == 10
    }

    /// Hands the next message to the session in the pieces that it wants.
    private func serveStepwise(_ reader: inout MessageReader) -> Bool {
        var isFirst = true
        repeat {
            guard let piece = reader.piece(byteCountMax: session.byteCountWanted) else { return false }
            let action = session.receive(
                piece,
                descriptorCount: isFirst ? reader.descriptors.count : 0,
                areDescriptorsLost: isFirst && reader.descriptors.areLost
            )
            isFirst = false
            reader.consume(piece.count)
            guard follow(action, &reader) else { return false }
            openClientMemory(stream)
        } while !session.isBetweenMessages
        return true
    }

    /// Returns whether the connection goes on.
    private func follow(_ action: VFIOUserServerAction, _ reader: inout MessageReader) -> Bool {
        switch action {
        case .more: return true
        case .send(let message, let attachment):
            if twin == nil, attachment == .twinSocket { return sendGreeting(message, &reader) }
            return send(message, attachment, &reader)
        case .perform(let operation, let header): return perform(operation, header, &reader)
        case .deliver(let header, let payload):
            guard let violation = clientMemory.deliver(header, payload) else { return true }
            self.violation = violation
            return false
        case .close(let message, let violation):
            self.violation = violation
            if let message { _ = send(message, .none, &reader) }
            return false
        }
    }

    private func send(
        _ message: [UInt8],
        _ attachment: VFIOUserAttachment,
        _ reader: inout MessageReader
    ) -> Bool {
        switch attachment {
        case .none, .twinSocket: return send(message, lending: [], &reader)
        case .region(let index):
            let descriptor = device.regionDescriptor(VFIOUserRegionIndex(rawValue: UInt32(index)))
            return send(message, lending: descriptor.map { [$0] } ?? [], &reader)
        case .ioEvents(let region, let count):
            do throws(Errno) {
                let watcher = try services.watcher()
                return send(
                    message,
                    lending: try events.descriptors(region, count, watcher, device),
                    &reader
                )
            } catch {
                guard let header = VFIOUserHeader(message) else { return false }
                let failure = header.failure(VFIOUserError(rawValue: UInt32(error.rawValue)))
                return send(failure, lending: [], &reader)
            }
        }
    }

    /// Sends the answer to VERSION with the client's end of a socket for our commands.
    private func sendGreeting(_ message: [UInt8], _ reader: inout MessageReader) -> Bool {
        do throws(Errno) {
            let twin = try TwinSocket(services.name, clientMemory, client: stream)
            self.twin = twin
            openClientMemory(twin.stream)
            return twin.sendingClientEnd { send(message, lending: [$0], &reader) }
        } catch {
            // Without the socket that it announces the answer would be wrong, and no other can be made any more.
            return false
        }
    }

    /// Once the client has said how much it takes at a time.
    private func openClientMemory(_ stream: any ClientStream) {
        guard !isGreeted, let client = session.client else { return }
        isGreeted = true
        clientMemory.open(stream, dataByteCountMax: client.dataByteCountMax ?? 0)
    }

    private func send(_ message: [UInt8], lending descriptors: [CInt], _ reader: inout MessageReader) -> Bool
    {
        // Before the answer, so that who has it knows that nothing of the message is left.
        reader.finishMessage()
        return message.withUnsafeBytes { stream.send($0, lending: descriptors, until: .never) }
    }

    // MARK: Accesses

    /// Carries an access out where its data lies, and answers it from a buffer that is there.
    private func serve(
        _ request: VFIOUserRegionRequest,
        _ message: UnsafeRawBufferPointer,
        _ reader: inout MessageReader
    ) -> Bool {
        let region = VFIOUserRegionIndex(rawValue: request.access.region)
        let data = 32
        do throws(VFIOUserError) {
            if request.isWrite {
                try write(.init(rebasing: message[data...]), to: region, at: request.access.offset)
            } else {
                let bytes = UnsafeMutableRawBufferPointer(
                    rebasing: reply[data..<data + Int(request.access.count)]
                )
                try device.readRegion(region, at: request.access.offset, into: bytes)
            }
        } catch {
            return !request.wantsReply || send(request.header.failure(error), lending: [], &reader)
        }
        guard request.wantsReply else { return true }
        let byteCount = request.writeSuccess(to: reply)
        return stream.send(.init(rebasing: reply[..<byteCount]), lending: [], until: .never)
    }

    private func write(_ data: UnsafeRawBufferPointer, to region: VFIOUserRegionIndex, at offset: UInt64)
        throws(VFIOUserError)
    {
        guard device.stopsDMA(byWriting: data, to: region, at: offset) else {
            return try device.writeRegion(region, at: offset, data)
        }
        try clientMemory.pausing { () throws(VFIOUserError) in
            try device.writeRegion(region, at: offset, data)
        }
    }

    // MARK: Operations

    private func perform(
        _ operation: VFIOUserOperation,
        _ header: VFIOUserHeader,
        _ reader: inout MessageReader
    ) -> Bool {
        let message: [UInt8]
        do throws(VFIOUserError) {
            message = header.success(payload: try carryOut(operation, &reader))
        } catch {
            message = header.failure(error)
        }
        return !header.wantsReply || send(message, lending: [], &reader)
    }

    /// Returns the reply's payload.
    private func carryOut(_ operation: VFIOUserOperation, _ reader: inout MessageReader)
        throws(VFIOUserError) -> [UInt8]
    {
        switch operation {
        case .mapDMA(let request, let hasDescriptor):
            try map(request, hasDescriptor, &reader)
            return []
        case .unmapDMA(let request):
            let bytes = request.address...request.address &+ (request.size &- 1)
            try clientMemory.unmapping(bytes) { () throws(VFIOUserError) in
                try memory.unmap(address: request.address, byteCount: request.size)
            }
            mapped = mapped.filter { !$0.isInside(bytes) }
            return request.bytes
        case .unmapAllDMA(let request):
            clientMemory.unmapping(0...UInt64.max) { memory.unmapAll() }
            mapped = []
            return request.bytes
        case .setInterrupts(let change):
            try interrupts.apply(change, &reader.descriptors)
            tellDevice(change)
            return []
        case .readRegion(let access):
            let region = VFIOUserRegionIndex(rawValue: access.region)
            var data = [UInt8](repeating: 0, count: Int(access.count))
            let error = data.withUnsafeMutableBytes { bytes in
                failure { () throws(VFIOUserError) in
                    try device.readRegion(region, at: access.offset, into: bytes)
                }
            }
            if let error { throw error }
            return access.bytes + data
        case .writeRegion(let access, let data):
            let region = VFIOUserRegionIndex(rawValue: access.region)
            let error = data.withUnsafeBytes { bytes in
                failure { () throws(VFIOUserError) in try write(bytes, to: region, at: access.offset) }
            }
            if let error { throw error }
            return access.bytes
        case .writeRegions(let writes): return carryOut(writes)
        case .reset:
            clientMemory.pausing { device.reset() }
            return []
        }
    }

    private func failure(_ body: () throws(VFIOUserError) -> Void) -> VFIOUserError? {
        do throws(VFIOUserError) {
            try body()
            return nil
        } catch {
            return error
        }
    }

    private func map(
        _ request: VFIOUserDMAMap,
        _ hasDescriptor: Bool,
        _ reader: inout MessageReader
    ) throws(VFIOUserError) {
        let range = VFIOUserMemoryRange(
            address: request.address,
            byteCount: request.size,
            isReadable: request.flags.contains(.readable),
            isWritable: request.flags.contains(.writable)
        )
        guard mapped.contains(range) || mapped.count < session.limits.mappingCountMax else { throw .noSpace }
        if hasDescriptor, let descriptor = reader.descriptors.takeFirst() {
            try memory.map(
                range,
                .descriptor(OwnedDescriptor(adopting: descriptor), offset: request.offset)
            )
            mapped.insert(range)
            return
        }
        let isKnown = clientMemory.isKnown(range)
        do throws(VFIOUserError) {
            try memory.map(range, .messages(clientMemory.range(range)))
            mapped.insert(range)
        } catch {
            if !isKnown { clientMemory.forget(range) }
            throw error
        }
    }

    private func tellDevice(_ change: VFIOUserInterruptChange) {
        let index: VFIOUserInterruptIndex
        switch change {
        case .disable(let changed), .bind(.trigger, let changed, _), .unbind(.trigger, let changed, _):
            index = changed
        default: return
        }
        device.interruptsChanged(index, boundVectors: interrupts.boundCount(index))
    }

    /// Carries writes out until one fails.
    private func carryOut(_ writes: [VFIOUserSmallWrite]) -> [UInt8] {
        var done: UInt64 = 0
        for write in writes {
            let region = VFIOUserRegionIndex(rawValue: write.region)
            let error = withUnsafeBytes(of: write.data.littleEndian) { bytes in
                failure { () throws(VFIOUserError) in
                    let data = UnsafeRawBufferPointer(rebasing: bytes[..<min(8, Int(write.count))])
                    try self.write(data, to: region, at: write.offset)
                }
            }
            guard error == nil else { break }
            done += 1
        }
        return withUnsafeBytes(of: done.littleEndian) { Array($0) }
    }
}
