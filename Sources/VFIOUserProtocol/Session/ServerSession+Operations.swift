// Commands that change something, checked before anybody carries them out.

extension VFIOUserServerSession {
    // MARK: Memory

    func mapDMA(_ payload: [UInt8]) throws(VFIOUserError) -> VFIOUserOperation {
        guard let request = VFIOUserDMAMap(payload), request.argsz >= VFIOUserDMAMap.byteCount,
            request.flags.isSubset(of: .known),
            Self.isRange(request.address, request.size), Self.isRange(request.offset, request.size)
        else { throw .invalid }
        let hasDescriptor = descriptorCount > 0
        let modes = request.flags.intersection([.mapped, .fileAccess])
        guard modes.isEmpty || hasDescriptor, modes != [.mapped, .fileAccess] else { throw .invalid }
        guard !modes.contains(.fileAccess) else { throw .notSupported }
        guard request.size <= limits.mappingByteCountMax else { throw .noSpace }
        return .mapDMA(request, hasDescriptor: hasDescriptor)
    }

    func unmapDMA(_ payload: [UInt8]) throws(VFIOUserError) -> VFIOUserOperation {
        guard let request = VFIOUserDMAUnmap(payload), request.argsz >= VFIOUserDMAUnmap.byteCount,
            request.argsz <= limits.dataByteCountMax
        else { throw .invalid }
        switch request.flags {
        case []:
            guard Self.isRange(request.address, request.size) else { throw .invalid }
            return .unmapDMA(request)
        case .all:
            guard request.address == 0, request.size == 0 else { throw .invalid }
            return .unmapAllDMA(request)
        default: throw .invalid
        }
    }

    /// Whether there are bytes, all of them below 2^64.
    private static func isRange(_ start: UInt64, _ byteCount: UInt64) -> Bool {
        byteCount > 0 && !start.addingReportingOverflow(byteCount - 1).overflow
    }

    // MARK: Regions

    func readRegion(_ payload: [UInt8]) throws(VFIOUserError) -> VFIOUserOperation? {
        guard payload.count == VFIOUserRegionAccess.byteCount, let access = VFIOUserRegionAccess(payload),
            isPermitted(access), device.regions[Int(access.region)].isReadable
        else { throw .invalid }
        return access.count == 0 ? nil : .readRegion(access)
    }

    func writeRegion(_ payload: [UInt8]) throws(VFIOUserError) -> VFIOUserOperation? {
        guard let access = VFIOUserRegionAccess(payload),
            payload.count - VFIOUserRegionAccess.byteCount == Int(access.count),
            isPermitted(access), device.regions[Int(access.region)].isWritable
        else { throw .invalid }
        guard access.count > 0 else { return nil }
        return .writeRegion(access, Array(payload.dropFirst(VFIOUserRegionAccess.byteCount)))
    }

    func writeRegions(_ payload: [UInt8]) throws(VFIOUserError) -> [VFIOUserSmallWrite] {
        guard client?.writeMultiple == true, limits.takesMultipleWrites,
            let count = payload.word(at: 0, as: UInt64.self),
            count <= UInt64((payload.count - 8) / VFIOUserSmallWrite.byteCount)
        else { throw .invalid }
        var writes: [VFIOUserSmallWrite] = []
        for index in 0..<Int(count) {
            let start = 8 + index * VFIOUserSmallWrite.byteCount
            guard
                let write = VFIOUserSmallWrite(Array(payload[start..<start + VFIOUserSmallWrite.byteCount])),
                (1...8).contains(write.count),
                isPermitted(
                    VFIOUserRegionAccess(offset: write.offset, region: write.region, count: write.count)
                ),
                device.regions[Int(write.region)].isWritable
            else {
                guard !writes.isEmpty else { throw .invalid }
                return writes
            }
            writes.append(write)
        }
        return writes
    }

    /// Whether the bytes are in a region that there is, and no more than a message may ask for.
    private func isPermitted(_ access: VFIOUserRegionAccess) -> Bool {
        guard access.region < device.regions.count, access.count <= limits.dataByteCountMax else {
            return false
        }
        let size = device.regions[Int(access.region)].size
        // No bytes are in every region that is there.
        if access.count == 0 { return size > 0 }
        return access.offset <= size && UInt64(access.count) <= size - access.offset
    }

    // MARK: Interrupts

    func interruptChange(_ payload: [UInt8]) throws(VFIOUserError) -> VFIOUserInterruptChange {
        guard let request = VFIOUserInterruptSet(payload), request.argsz >= VFIOUserInterruptSet.byteCount,
            request.index < device.interrupts.count,
            let action = VFIOUserInterruptChange.Action(request.flags)
        else { throw .invalid }
        let data = request.flags.intersection([.none, .bool, .eventfd])
        guard request.flags == data.union(action.flag), descriptorCount == 0 || data == .eventfd else {
            throw .invalid
        }
        let index = VFIOUserInterruptIndex(rawValue: request.index)
        guard request.count > 0 else {
            guard request.start == 0, data == .none, action == .trigger else { throw .invalid }
            return .disable(index)
        }
        let vectors = try vectors(of: request)
        if index == .error || index == .request {
            guard action == .trigger, request.count == 1 else { throw .invalid }
        }
        switch data {
        case .none: return .perform(action, index, vectors: Array(vectors))
        case .bool:
            let chosen = payload.dropFirst(VFIOUserInterruptSet.byteCount)
            guard chosen.count == vectors.count else { throw .invalid }
            let pairs = zip(vectors, chosen)
            return .perform(action, index, vectors: pairs.filter { $0.1 != 0 }.map(\.0))
        case .eventfd:
            guard descriptorCount > 0 else { return .unbind(action, index, vectors: vectors) }
            guard descriptorCount == vectors.count else { throw .invalid }
            return .bind(action, index, vectors: vectors)
        default: throw .invalid
        }
    }

    private func vectors(of request: VFIOUserInterruptSet) throws(VFIOUserError) -> Range<Int> {
        let count = device.interrupts[Int(request.index)].count
        guard request.start < count, request.count <= count - request.start else { throw .invalid }
        return Int(request.start)..<Int(request.start) + Int(request.count)
    }
}

extension VFIOUserInterruptChange.Action {
    /// The one action that is asked for; nil where it is none or several.
    fileprivate init?(_ flags: VFIOUserInterruptSet.Flags) {
        switch flags.intersection([.mask, .unmask, .trigger]) {
        case .mask: self = .mask
        case .unmask: self = .unmask
        case .trigger: self = .trigger
        default: return nil
        }
    }

    fileprivate var flag: VFIOUserInterruptSet.Flags {
        switch self {
        case .mask: .mask
        case .unmask: .unmask
        case .trigger: .trigger
        }
    }
}
