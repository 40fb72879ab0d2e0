// Capabilities as bytes in configuration space, and where each landed.

/// Where the registers stand that the function itself looks at; offsets in configuration space.
struct CapabilityOffsets: Sendable {
    var msi: Int?
    /// Message Control, 64-bit address capable: where not, the data stands where the upper address would.
    var isMSIWide = true
    /// Message Control, per-vector masking capable.
    var hasMSIMasks = true
    var msix: Int?
    var express: Int?
    var powerManagement: Int?
    var ats: Int?
    var pri: Int?
    var pasid: Int?
    var vendor: [Int] = []
    /// Ranges that the model answers.
    var live: [Range<Int>] = []
}

/// Lays capabilities out: the list from 0x40, the extended one from 0x100.
struct CapabilityWriter {
    private(set) var space: ConfigurationSpace
    private(set) var offsets = CapabilityOffsets()
    private var next = 0x40
    private var nextExtended = 0x100
    /// Where the offset of the next capability goes.
    private var link = 0x34
    private var extendedLink: Int?

    init(_ space: ConfigurationSpace) { self.space = space }

    mutating func add(_ capability: PCICapability) {
        switch capability {
        case .powerManagement: addPowerManagement()
        case .msi(let vectorCount): addMSI(vectorCount)
        case .msix(let layout): addMSIX(layout)
        case .express(let kind): addExpress(kind, slotNumber: nil)
        case .vendor(let bytes, let writable, let isLive): addVendor(bytes, writable, isLive)
        case .ats(let depth):
            let start = beginExtended(0x000F, version: 1, byteCount: 8)
            offsets.ats = start
            // Page Aligned Request; addresses of requests are pages.
            space.set(UInt64(depth & 0x1F) | 1 << 5, at: start + 4, byteCount: 2)
            space.permit(0x801F, at: start + 6, byteCount: 2)
        case .pri(let outstanding):
            let start = beginExtended(0x0013, version: 1, byteCount: 16)
            offsets.pri = start
            space.permit(0x0001, at: start + 4, byteCount: 2)
            // Stopped; PRG Response PASID Required.
            space.set(0x8100, at: start + 6, byteCount: 2)
            space.permitClearing(0x0003, at: start + 6, byteCount: 2)
            space.set(UInt64(outstanding), at: start + 8, byteCount: 4)
            space.permit(0xFFFF_FFFF, at: start + 12, byteCount: 4)
        case .pasid(let bits):
            let start = beginExtended(0x001B, version: 1, byteCount: 8)
            offsets.pasid = start
            space.set(0x0006 | UInt64(bits & 0x1F) << 8, at: start + 4, byteCount: 2)
            space.permit(0x0007, at: start + 6, byteCount: 2)
        case .acs(let bits):
            let start = beginExtended(0x000D, version: 1, byteCount: 8)
            space.set(UInt64(bits), at: start + 4, byteCount: 2)
            space.permit(UInt64(bits), at: start + 6, byteCount: 2)
        }
    }

    private mutating func begin(_ id: UInt8, byteCount: Int) -> Int {
        let start = next
        precondition(start + byteCount <= 0x100, "capabilities end below 0x100")
        space.set(UInt64(start), at: link, byteCount: 1)
        space.set(UInt64(id), at: start, byteCount: 1)
        // Status: Capabilities List.
        space.setBit(4, at: 0x06, to: true)
        link = start + 1
        next = (start + byteCount + 3) & ~3
        return start
    }

    private mutating func beginExtended(_ id: UInt16, version: UInt32, byteCount: Int) -> Int {
        let start = nextExtended
        precondition(start + byteCount <= space.bytes.count, "extended capabilities end with the space")
        space.set(UInt64(id) | UInt64(version) << 16, at: start, byteCount: 4)
        if let extendedLink {
            let header = UInt64(space.read32(at: extendedLink)) | UInt64(start) << 20
            space.set(header, at: extendedLink, byteCount: 4)
        }
        extendedLink = start
        nextExtended = (start + byteCount + 3) & ~3
        return start
    }

    private mutating func addPowerManagement() {
        let start = begin(0x01, byteCount: 8)
        offsets.powerManagement = start
        // Version 3 of the specification, no PME.
        space.set(0x0003, at: start + 2, byteCount: 2)
        // No_Soft_Reset: going from D3hot to D0 keeps the state.
        space.set(0x0008, at: start + 4, byteCount: 2)
        space.permit(0x0003, at: start + 4, byteCount: 2)
    }

    private mutating func addMSI(_ vectorCount: Int) {
        precondition([1, 2, 4, 8, 16, 32].contains(vectorCount), "MSI has 1 to 32 vectors, a power of two")
        let start = begin(0x05, byteCount: 24)
        offsets.msi = start
        // Multiple Message Capable; 64-bit addresses; per-vector masking.
        space.set(
            UInt64(vectorCount.trailingZeroBitCount) << 1 | 1 << 7 | 1 << 8,
            at: start + 2,
            byteCount: 2
        )
        space.permit(0x0071, at: start + 2, byteCount: 2)
        space.permit(0xFFFF_FFFF_FFFF_FFFC, at: start + 4, byteCount: 8)
        space.permit(0xFFFF, at: start + 12, byteCount: 2)
        space.permit(
            vectorCount == 32 ? 0xFFFF_FFFF : (1 << UInt64(vectorCount)) - 1,
            at: start + 16,
            byteCount: 4
        )
    }

    private mutating func addMSIX(_ layout: PCIMSIXLayout) {
        precondition((1...2048).contains(layout.vectorCount), "MSI-X has 1 to 2048 vectors")
        let start = begin(0x11, byteCount: 12)
        offsets.msix = start
        space.set(UInt64(layout.vectorCount - 1), at: start + 2, byteCount: 2)
        // Function Mask and MSI-X Enable.
        space.permit(0xC000, at: start + 2, byteCount: 2)
        space.set(UInt64(layout.tableOffset) | UInt64(layout.tableBAR), at: start + 4, byteCount: 4)
        space.set(UInt64(layout.pendingOffset) | UInt64(layout.pendingBAR), at: start + 8, byteCount: 4)
    }

    /// Adds the PCI Express capability (ID 0x10, version 2).
    ///
    /// - Parameter slotNumber: Physical Slot Number of a root port's slot, 0...8191; nil where it has none.
    mutating func addExpress(_ kind: PCIExpressKind, slotNumber: UInt16?) {
        let start = begin(0x10, byteCount: 60)
        offsets.express = start
        let isRootPort = kind == .rootPort
        // Bit 8: Slot Implemented.
        let slot: UInt64 = slotNumber == nil ? 0 : 1 << 8
        space.set(2 | UInt64(kind.rawValue) << 4 | slot, at: start + 2, byteCount: 2)
        // Device Capabilities: payloads of 128 bytes, 8-bit tags, role-based error reporting, function-level reset
        // (which a root port has not).
        let functionLevelReset: UInt64 = isRootPort ? 0 : 1 << 28
        space.set(1 << 5 | 1 << 15 | functionLevelReset, at: start + 4, byteCount: 4)
        // Device Control: all but Initiate Function Level Reset, which reads as 0 and is looked for apart.
        space.permit(0x7FFF, at: start + 8, byteCount: 2)
        space.set(0x2810, at: start + 8, byteCount: 2)
        space.permitClearing(0x000F, at: start + 10, byteCount: 2)
        // Completion Timeout Disable, which whoever issues requests has to offer.
        space.set(1 << 4, at: start + 36, byteCount: 4)
        space.permit(1 << 4, at: start + 40, byteCount: 2)
        guard kind != .rootComplexIntegratedEndpoint else { return }
        // 2.5 GT/s, one lane, up. A root port says when its link is (Data Link Layer Link Active Reporting).
        space.set(0x0011 | (isRootPort ? 1 << 20 : 0), at: start + 12, byteCount: 4)
        // ASPM Control, common clock, extended synch; Read Completion Boundary of endpoints, Link Disable of ports.
        // Retrain Link reads as 0.
        space.permit(isRootPort ? 0x00D3 : 0x00CB, at: start + 16, byteCount: 2)
        space.set(0x0011, at: start + 18, byteCount: 2)
        space.set(0x0002, at: start + 44, byteCount: 4)
        space.set(0x0001, at: start + 48, byteCount: 2)
        space.permit(0x000F, at: start + 48, byteCount: 2)
        guard isRootPort else { return }
        space.set(UInt64((slotNumber ?? 0) & 0x1FFF) << 19, at: start + 20, byteCount: 4)
        // Root Control: system errors, and the interrupt of power management events.
        space.permit(0x000F, at: start + 28, byteCount: 2)
    }

    /// Adds the Subsystem ID and Subsystem Vendor ID capability (ID 0x0D), where a bridge has what a header of type 0
    /// has at 0x2C.
    mutating func addSubsystem(_ identity: PCIIdentity) {
        guard identity.subsystemVendorID != 0 else { return }
        let start = begin(0x0D, byteCount: 8)
        space.set(UInt64(identity.subsystemVendorID), at: start + 4, byteCount: 2)
        space.set(UInt64(identity.subsystemID), at: start + 6, byteCount: 2)
    }

    /// Says that TLPs can have a prefix, as those with a PASID do: without it software does not enable PASID.
    mutating func supportEndToEndPrefixes() {
        guard let express = offsets.express else { return }
        // Device Capabilities 2: End-End TLP Prefix Supported, and one of them at most.
        let capabilities = UInt64(space.read32(at: express + 36)) | 1 << 21 | 1 << 22
        space.set(capabilities, at: express + 36, byteCount: 4)
    }

    private mutating func addVendor(_ bytes: [UInt8], _ writable: [UInt8], _ isLive: Bool) {
        // The identifier and the pointer to the next stand before the given bytes.
        let start = begin(0x09, byteCount: bytes.count + 2)
        offsets.vendor.append(start)
        for (index, byte) in bytes.enumerated() {
            space.set(UInt64(byte), at: start + 2 + index, byteCount: 1)
        }
        for (index, mask) in writable.enumerated() {
            space.permit(UInt64(mask), at: start + 2 + index, byteCount: 1)
        }
        if isLive { offsets.live.append(start..<start + 2 + bytes.count) }
    }
}
