// Software's accesses to configuration space, and what they set off.

import Synchronization

extension PCIFunction {
    /// Reads 1 to 4 bytes of configuration space; beyond its end are 1s.
    package func readConfiguration(at offset: Int, byteCount: Int) -> UInt32 {
        if isLive(offset), (1...4).contains(byteCount),
            let value = model.readLiveCapability(at: offset, byteCount: byteCount)
        {
            return value
        }
        let own = state.withLock { $0.space.read(at: offset, byteCount: byteCount) }
        return foreign?.read(at: offset, byteCount: byteCount, own: own) ?? own
    }

    /// What is stored of configuration space, without asking the model for its live capabilities.
    package func readStoredConfiguration(at offset: Int, byteCount: Int) -> UInt32 {
        state.withLock { $0.space.read(at: offset, byteCount: byteCount) }
    }

    /// Writes 1 to 4 bytes of configuration space.
    package func writeConfiguration(_ value: UInt32, at offset: Int, byteCount: Int) {
        guard offset >= 0, offset < configurationByteCount, (1...4).contains(byteCount) else { return }
        let isReset = initiatesReset(value, at: offset, byteCount: byteCount)
        let resetsPageRequests = resetsPageRequests(value, at: offset, byteCount: byteCount)
        let isPowerChange = state.withLock { state in
            let wasAwake = isAwake(state)
            state.space.write(
                value,
                at: offset,
                byteCount: byteCount,
                powerManagement: offsets.powerManagement
            )
            let isAwake = isAwake(state)
            gate.set(state.space.bit(2, at: Register.command) && isAwake)
            updatePin(&state)
            updatePageRequestStatus(&state)
            return wasAwake != isAwake
        }
        if isReset { return reset() }
        if let cache = translationCache {
            cache.configure(pageServices)
            if resetsPageRequests { cache.pageRequests.reset() }
        }
        if isLive(offset) {
            model.liveCapabilityWritten(at: offset, byteCount: byteCount)
        }
        // All of it, also what is kept here: the other side's Command is to say what this one's does.
        foreign?.configuration.writeForeignConfiguration(value, at: offset, byteCount: byteCount)
        model.configurationChanged()
        if offset < 0x40 || isPowerChange { hostIfAny?.configurationChanged(of: self) }
        sendUnmasked()
    }

    private func isLive(_ offset: Int) -> Bool { offsets.live.contains { $0.contains(offset) } }

    /// Whether a write of 1 to 4 bytes sets Device Control.Initiate Function Level Reset.
    package func initiatesReset(_ value: UInt32, at offset: Int, byteCount: Int) -> Bool {
        guard let express = offsets.express else { return false }
        // Bit 15 of Device Control is bit 7 of its second byte.
        let place = express + 9
        guard place >= offset, place &- offset < byteCount, byteCount <= 4 else { return false }
        return value >> UInt32(8 * (place - offset)) & 0x80 != 0
    }

    /// What ATS, PRI and PASID are set to, where the function has them.
    package var pageServices: PCIPageServices {
        state.withLock { state in
            PCIPageServices(
                isATSEnabled: offsets.ats.map { state.space.bit(15, at: $0 + 6) } ?? false,
                isPRIEnabled: offsets.pri.map { state.space.bit(0, at: $0 + 4) } ?? false,
                isPASIDEnabled: offsets.pasid.map { state.space.bit(0, at: $0 + 6) } ?? false,
                outstandingRequests: offsets.pri.map { state.space.read32(at: $0 + 12) } ?? 0
            )
        }
    }
}

/// What software enabled of address translation services.
package struct PCIPageServices: Equatable, Sendable {
    /// ATS Control.Enable.
    package var isATSEnabled: Bool
    /// Page Request Control.Enable.
    package var isPRIEnabled: Bool
    /// PASID Control.PASID Enable.
    package var isPASIDEnabled: Bool
    /// Outstanding Page Request Allocation.
    package var outstandingRequests: UInt32

    package init(
        isATSEnabled: Bool = false,
        isPRIEnabled: Bool = false,
        isPASIDEnabled: Bool = false,
        outstandingRequests: UInt32 = 0
    ) {
        self.isATSEnabled = isATSEnabled
        self.isPRIEnabled = isPRIEnabled
        self.isPASIDEnabled = isPASIDEnabled
        self.outstandingRequests = outstandingRequests
    }
}
