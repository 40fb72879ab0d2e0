// Commands beside those that every device has: ioeventfds, features, migration data.

import VFIOUserProtocol

extension VFIOUserClient {
    /// Writes to an offset that can be signals instead (DEVICE_GET_REGION_IO_FDS).
    public struct IOEvent: Sendable {
        /// Where in the region.
        public var offset: UInt64
        /// How wide the writes are; 0 for any.
        public var byteCount: UInt64
        /// Whether it is an ioregionfd, which takes messages, instead of an ioeventfd.
        public var isIORegion: Bool
        /// KVM_IOEVENTFD's: 1 where only writes of one value count.
        public var flags: UInt32
        /// What is to be signalled; nil where the server gave none.
        public var event: VFIOUserEvent?
    }

    /// Asks for a region's ioeventfds; none, where it has none.
    public func ioEvents(of region: RegionIndex) throws(VFIOUserClientError) -> [IOEvent] {
        var room = UInt32(VFIOUserRegionIODescriptors.byteCount)
        var answer = try call(.regionIODescriptors(index: region.rawValue, argsz: room))
        if case .ioEvents(let needed, _) = answer.reply, needed > room {
            guard needed <= 1 << 16 else { throw badIOEvents("\(needed) bytes of them") }
            room = needed
            answer = try call(.regionIODescriptors(index: region.rawValue, argsz: room))
        }
        guard case .ioEvents(let needed, let events) = answer.reply else {
            throw unexpectedReply(.regionIODescriptors)
        }
        guard needed <= room else { throw badIOEvents("they grew") }
        // Several entries may share one descriptor.
        let received = (0..<(answer.descriptors?.count ?? 0)).map { index in
            answer.descriptors?.take(index).map(VFIOUserEvent.init(adopting:))
        }
        var result: [IOEvent] = []
        for event in events {
            var own: VFIOUserEvent?
            if event.descriptorIndex != UInt32.max {
                guard Int(event.descriptorIndex) < received.count else {
                    throw badIOEvents("descriptor \(event.descriptorIndex) of \(received.count)")
                }
                own = received[Int(event.descriptorIndex)]
            }
            result.append(
                IOEvent(
                    offset: event.offset,
                    byteCount: event.size,
                    isIORegion: event.type == 1,
                    flags: event.flags,
                    event: own
                )
            )
        }
        return result
    }

    private func badIOEvents(_ reason: String) -> VFIOUserClientError {
        .violation(command: VFIOUserCommand.regionIODescriptors.name, reason: reason)
    }

    /// What is asked of a feature.
    public struct FeatureMethods: OptionSet, Hashable, Sendable {
        public var rawValue: UInt32

        public init(rawValue: UInt32) { self.rawValue = rawValue }

        public static let get = Self(rawValue: VFIOUserDeviceFeature.get)
        public static let set = Self(rawValue: VFIOUserDeviceFeature.set)
        /// Whether the others are there; nothing is done.
        public static let probe = Self(rawValue: VFIOUserDeviceFeature.probe)
    }

    /// Asks for a feature, or sets it (DEVICE_FEATURE); the data is the feature's own, as VFIO has it.
    ///
    /// - Parameters:
    ///   - number: 0 to 65535: 1 is migration, 2 the migration state, 6 to 8 the logging of DMA.
    ///   - data: What goes with the question.
    ///   - replyByteCountMax: How many bytes of data the answer may have.
    /// - Returns: The answer's data.
    public func feature(
        _ number: UInt16,
        _ methods: FeatureMethods,
        _ data: [UInt8] = [],
        replyByteCountMax: Int = 4096
    ) throws(VFIOUserClientError) -> [UInt8] {
        let room = VFIOUserDeviceFeature.byteCount + max(data.count, replyByteCountMax)
        guard data.count <= dataBytesPerMessage, let argsz = UInt32(exactly: room) else {
            throw .invalid("\(data.count) bytes of a feature")
        }
        let asked = VFIOUserDeviceFeature(argsz: argsz, flags: methods.rawValue | UInt32(number))
        let payload = try passThrough(.deviceFeature, asked.bytes + data)
        guard let answer = VFIOUserDeviceFeature(payload), answer.flags == asked.flags,
            Int(answer.argsz) >= VFIOUserDeviceFeature.byteCount, payload.count <= room
        else { throw contradiction(.deviceFeature) }
        return Array(payload.dropFirst(VFIOUserDeviceFeature.byteCount))
    }

    /// Reads of what a device in migration has to say (MIG_DATA_READ); less than was asked for is the end of it.
    public func readMigrationData(_ byteCountMax: Int) throws(VFIOUserClientError) -> [UInt8] {
        guard (0...dataBytesPerMessage).contains(byteCountMax) else {
            throw .invalid("\(byteCountMax) bytes: one message carries up to \(dataBytesPerMessage)")
        }
        let size = UInt32(truncatingIfNeeded: byteCountMax)
        let lead = UInt32(VFIOUserMigrationData.byteCount)
        let asked = VFIOUserMigrationData(argsz: lead + size, size: size)
        let payload = try passThrough(.readMigrationData, asked.bytes)
        let data = payload.dropFirst(VFIOUserMigrationData.byteCount)
        guard let answer = VFIOUserMigrationData(payload), answer.size <= size,
            data.count == Int(answer.size)
        else { throw contradiction(.readMigrationData) }
        return Array(data)
    }

    /// Tells a device that resumes what another said (MIG_DATA_WRITE).
    public func writeMigrationData(_ data: [UInt8]) throws(VFIOUserClientError) {
        guard data.count <= dataBytesPerMessage else {
            throw .invalid("\(data.count) bytes: one message carries up to \(dataBytesPerMessage)")
        }
        let size = UInt32(truncatingIfNeeded: data.count)
        let asked = VFIOUserMigrationData(argsz: UInt32(VFIOUserMigrationData.byteCount) + size, size: size)
        _ = try passThrough(.writeMigrationData, asked.bytes + data)
    }

    private func passThrough(_ command: VFIOUserCommand, _ payload: [UInt8]) throws(VFIOUserClientError)
        -> [UInt8]
    {
        guard case .payload(let payload) = try call(.other(command, payload)).reply else {
            throw unexpectedReply(command)
        }
        return payload
    }

    private func contradiction(_ command: VFIOUserCommand) -> VFIOUserClientError {
        .violation(command: command.name, reason: "it contradicts itself or the question")
    }
}
