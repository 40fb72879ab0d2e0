// A client's commands, and what their answers say.

/// A command of a client.
package enum VFIOUserClientRequest: Equatable, Sendable {
    /// Beside it goes a descriptor, or none.
    case mapDMA(VFIOUserDMAMap)
    case unmapDMA(VFIOUserDMAUnmap)
    case deviceInfo
    /// Room for a reply of so many bytes, 32 at least.
    case regionInfo(index: UInt32, argsz: UInt32)
    case interruptInfo(index: UInt32)
    /// Room for a reply of so many bytes, 16 at least.
    case regionIODescriptors(index: UInt32, argsz: UInt32)
    /// The bytes go with ``VFIOUserInterruptSet/Flags/bool``; descriptors beside it.
    case setInterrupts(VFIOUserInterruptSet, [UInt8])
    case readRegion(VFIOUserRegionAccess)
    /// The access's count is the data's.
    case writeRegion(offset: UInt64, region: UInt32, [UInt8])
    case writeRegions([VFIOUserSmallWrite])
    case reset
    /// Any other, with its payload.
    case other(VFIOUserCommand, [UInt8])

    /// Its number.
    package var command: VFIOUserCommand {
        switch self {
        case .mapDMA: .mapDMA
        case .unmapDMA: .unmapDMA
        case .deviceInfo: .deviceInfo
        case .regionInfo: .regionInfo
        case .interruptInfo: .interruptInfo
        case .regionIODescriptors: .regionIODescriptors
        case .setInterrupts: .setInterrupts
        case .readRegion: .readRegion
        case .writeRegion: .writeRegion
        case .writeRegions: .writeRegions
        case .reset: .reset
        case .other(let command, _): command
        }
    }

    /// What follows the header.
    package var payload: [UInt8] {
        switch self {
        case .mapDMA(let request): return request.bytes
        case .unmapDMA(let request): return request.bytes
        case .deviceInfo: return VFIOUserDeviceInfo().bytes
        case .regionInfo(let index, let argsz): return VFIOUserRegionInfo(argsz: argsz, index: index).bytes
        case .interruptInfo(let index): return VFIOUserInterruptInfo(index: index).bytes
        case .regionIODescriptors(let index, let argsz):
            return VFIOUserRegionIODescriptors(argsz: argsz, index: index).bytes
        case .setInterrupts(let request, let chosen): return request.bytes + chosen
        case .readRegion(let access): return access.bytes
        case .writeRegion(let offset, let region, let data):
            let count = UInt32(truncatingIfNeeded: data.count)
            return VFIOUserRegionAccess(offset: offset, region: region, count: count).bytes + data
        case .writeRegions(let writes):
            var bytes: [UInt8] = []
            bytes.append(word: UInt64(writes.count))
            for write in writes { write.append(to: &bytes) }
            return bytes
        case .reset: return []
        case .other(_, let payload): return payload
        }
    }
}

/// What a server answered, checked against what it was asked.
package enum VFIOUserClientReply: Equatable, Sendable {
    /// It succeeded; there is no more to say.
    case done
    case deviceInfo(VFIOUserDeviceInfo)
    /// With an `argsz` that is larger than what was asked for the capabilities are missing: ask again.
    case regionInfo(VFIOUserRegionInfo, [VFIOUserRegionCapability])
    case interruptInfo(VFIOUserInterruptInfo)
    /// With an `argsz` that is larger than what was asked for the entries are missing: ask again.
    case ioEvents(argsz: UInt32, [VFIOUserIOEvent])
    /// At most as many bytes as were asked for.
    case data([UInt8])
    /// How many of REGION_WRITE_MULTI's writes were done.
    case wroteRegions(count: UInt64)
    /// What another command's reply carries.
    case payload([UInt8])

    /// Reads the payload of a reply to `request`.
    ///
    /// - Returns: Nil where it contradicts itself or the request.
    init?(to request: VFIOUserClientRequest, _ payload: [UInt8]) {
        switch request {
        case .mapDMA, .setInterrupts, .reset: self = .done
        case .unmapDMA(let unmap):
            // One server that does no DMA answers with a header alone.
            guard payload.isEmpty || VFIOUserDMAUnmap(payload)?.address == unmap.address else { return nil }
            self = .done
        case .writeRegion(let offset, let region, let data):
            // Some answer an access of no bytes with a header alone.
            let asked = VFIOUserRegionAccess(
                offset: offset,
                region: region,
                count: UInt32(truncatingIfNeeded: data.count)
            )
            guard data.isEmpty && payload.isEmpty || VFIOUserRegionAccess(payload) == asked else {
                return nil
            }
            self = .done
        case .deviceInfo:
            guard let info = VFIOUserDeviceInfo(payload) else { return nil }
            self = .deviceInfo(info)
        case .regionInfo(let index, let argsz):
            guard let info = Self.regionInfo(payload, index: index, argsz: argsz) else { return nil }
            self = info
        case .interruptInfo(let index):
            guard let info = VFIOUserInterruptInfo(payload), info.index == index else { return nil }
            self = .interruptInfo(info)
        case .regionIODescriptors(let index, let argsz):
            guard let events = Self.ioEvents(payload, index: index, argsz: argsz) else { return nil }
            self = events
        case .readRegion(let access):
            // Some answer an access of no bytes with a header alone.
            guard access.count > 0 || !payload.isEmpty else {
                self = .data([])
                return
            }
            guard let answer = VFIOUserRegionAccess(payload), answer.offset == access.offset,
                answer.region == access.region, answer.count <= access.count,
                payload.count - VFIOUserRegionAccess.byteCount == Int(answer.count)
            else { return nil }
            self = .data(Array(payload.dropFirst(VFIOUserRegionAccess.byteCount)))
        case .writeRegions(let writes):
            guard let count = payload.word(at: 0, as: UInt64.self), count <= UInt64(writes.count) else {
                return nil
            }
            self = .wroteRegions(count: count)
        case .other: self = .payload(payload)
        }
    }

    private static func regionInfo(_ payload: [UInt8], index: UInt32, argsz: UInt32) -> Self? {
        guard let info = VFIOUserRegionInfo(payload), info.index == index,
            info.argsz >= VFIOUserRegionInfo.byteCount, payload.count <= max(32, Int(argsz))
        else { return nil }
        guard info.flags.contains(.capabilities), info.capabilityOffset != 0 else {
            return .regionInfo(info, [])
        }
        guard info.argsz <= payload.count,
            let capabilities = VFIOUserRegionCapability.parse(payload, from: info.capabilityOffset)
        else { return nil }
        return .regionInfo(info, capabilities)
    }

    private static func ioEvents(_ payload: [UInt8], index: UInt32, argsz: UInt32) -> Self? {
        let start = VFIOUserRegionIODescriptors.byteCount
        guard let answer = VFIOUserRegionIODescriptors(payload), answer.index == index,
            Int(answer.argsz) >= start
        else { return nil }
        // Without room for all there are none, whatever their count.
        guard answer.count > 0, answer.argsz <= argsz else { return .ioEvents(argsz: answer.argsz, []) }
        guard payload.count >= Int(answer.argsz) else { return nil }
        // One server's entries have 48 bytes; what they differ in is not used here.
        let stride = (Int(answer.argsz) - start) / Int(answer.count)
        guard stride >= VFIOUserIOEvent.byteCount else { return nil }
        var events: [VFIOUserIOEvent] = []
        for number in 0..<Int(answer.count) {
            let entry = Array(payload[(start + number * stride)...].prefix(stride))
            guard let event = VFIOUserIOEvent(entry) else { return nil }
            events.append(event)
        }
        return .ioEvents(argsz: answer.argsz, events)
    }
}
