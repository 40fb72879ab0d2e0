// Questions about the device, answered from its description.

extension VFIOUserServerSession {
    func deviceInfo(_ payload: [UInt8]) throws(VFIOUserError) -> [UInt8] {
        guard let request = VFIOUserDeviceInfo(payload), request.argsz >= VFIOUserDeviceInfo.byteCount else {
            throw .invalid
        }
        return VFIOUserDeviceInfo(
            flags: device.flags,
            regionCount: UInt32(truncatingIfNeeded: device.regions.count),
            interruptCount: UInt32(truncatingIfNeeded: device.interrupts.count)
        ).bytes
    }

    func regionInfo(_ payload: [UInt8]) throws(VFIOUserError) -> ([UInt8], VFIOUserAttachment) {
        guard let request = VFIOUserRegionInfo(payload), request.argsz >= VFIOUserRegionInfo.byteCount,
            request.index < device.regions.count
        else { throw .invalid }
        let index = Int(request.index)
        let region = device.regions[index]
        let capabilities = region.capabilityBytes
        let byteCount = UInt32(truncatingIfNeeded: VFIOUserRegionInfo.byteCount + capabilities.count)
        var info = VFIOUserRegionInfo(
            argsz: byteCount,
            flags: region.flags,
            index: request.index,
            size: region.size,
            offset: region.size > 0 ? region.mapping?.fileOffset ?? 0 : 0
        )
        // Who has no room for all gets no descriptor either: the client asks again and takes it then.
        guard request.argsz >= byteCount else { return (info.bytes, .none) }
        if !capabilities.isEmpty {
            info.flags.insert(.capabilities)
            info.capabilityOffset = UInt32(VFIOUserRegionInfo.byteCount)
        }
        return (info.bytes + capabilities, region.flags.contains(.mmap) ? .region(index) : .none)
    }

    func ioDescriptors(_ payload: [UInt8]) throws(VFIOUserError) -> ([UInt8], VFIOUserAttachment) {
        guard let request = VFIOUserRegionIODescriptors(payload),
            (VFIOUserRegionIODescriptors.byteCount...limits.dataByteCountMax).contains(Int(request.argsz)),
            request.flags == 0, request.count == 0, request.index < device.regions.count
        else { throw .invalid }
        let index = Int(request.index)
        guard device.regions[index].size > 0 else { throw .invalid }
        // No more descriptors than the client can receive, and the entries that name them.
        let room = client?.descriptorCountMax ?? 1
        let events = device.regions[index].ioEvents.filter { UInt64($0.descriptorIndex) < room }
        let byteCount = VFIOUserRegionIODescriptors.byteCount + events.count * VFIOUserIOEvent.byteCount
        var answer = VFIOUserRegionIODescriptors(
            argsz: UInt32(truncatingIfNeeded: byteCount),
            index: request.index
        )
        guard Int(request.argsz) >= byteCount else { return (answer.bytes, .none) }
        answer.count = UInt32(truncatingIfNeeded: events.count)
        var bytes = answer.bytes
        for event in events { event.append(to: &bytes) }
        let count = events.map { Int($0.descriptorIndex) + 1 }.max() ?? 0
        return (bytes, count > 0 ? .ioEvents(region: index, count: count) : .none)
    }

    func interruptInfo(_ payload: [UInt8]) throws(VFIOUserError) -> [UInt8] {
        guard let request = VFIOUserInterruptInfo(payload), request.argsz >= VFIOUserInterruptInfo.byteCount,
            request.index < device.interrupts.count
        else { throw .invalid }
        let interrupt = device.interrupts[Int(request.index)]
        return VFIOUserInterruptInfo(flags: interrupt.flags, index: request.index, count: interrupt.count)
            .bytes
    }

    /// No feature is there; a request that makes no sense is told so first.
    func featureError(_ payload: [UInt8]) -> VFIOUserError {
        guard let request = VFIOUserDeviceFeature(payload), request.argsz >= VFIOUserDeviceFeature.byteCount
        else { return .invalid }
        let methods = request.flags & ~0xffff
        let both = VFIOUserDeviceFeature.get | VFIOUserDeviceFeature.set
        guard methods != 0, methods & ~(both | VFIOUserDeviceFeature.probe) == 0,
            methods & VFIOUserDeviceFeature.probe != 0 || methods != both
        else { return .invalid }
        return .noSuchFeature
    }
}
