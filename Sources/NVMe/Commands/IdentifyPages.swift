// Identify's data structures, 4096 bytes each (Base Specification 1.4, section 5.15).

import BlockStorage
import PCIFunction

/// What Identify answers with.
enum IdentifyPages {
    static let byteCount = 4096

    /// log2 of what a command may transfer, in pages of 4 KiB: 1 MiB.
    static let transferSizeMax: UInt8 = 8
    static let firmwareRevision = "1.0"
    /// The most ranges, and the most blocks, that Dataset Management takes: all that it can say.
    static let rangeCountMax = 256

    /// CNS 01h.
    static func controller(_ parameters: NVMeParameters, _ identity: NamespaceIdentity) -> [UInt8] {
        var page = ByteBlock(byteCount: byteCount)
        page.set(UInt64(parameters.identity.vendorID), at: 0, byteCount: 2)
        page.set(UInt64(parameters.identity.subsystemVendorID), at: 2, byteCount: 2)
        page.set(parameters.serialNumber, at: 4, byteCount: 20, padding: 0x20)
        page.set(parameters.modelNumber, at: 24, byteCount: 40, padding: 0x20)
        page.set(firmwareRevision, at: 64, byteCount: 8, padding: 0x20)
        page.set(6, at: 72, byteCount: 1)  // RAB: bursts of 64 commands.
        page.set(UInt64(transferSizeMax), at: 77, byteCount: 1)  // MDTS
        page.set(UInt64(specificationVersion), at: 80, byteCount: 4)  // VER
        page.set(1, at: 111, byteCount: 1)  // CNTRLTYPE: an I/O controller.
        page.set(1 << 8, at: 256, byteCount: 2)  // OACS: Doorbell Buffer Config.
        page.set(3, at: 258, byteCount: 1)  // ACL
        page.set(UInt64(AsynchronousEvents.requestCountMax - 1), at: 259, byteCount: 1)  // AERL
        page.set(0x03, at: 260, byteCount: 1)  // FRMW: one slot, read-only.
        page.set(0x06, at: 261, byteCount: 1)  // LPA: commands and effects, offsets and long counts.
        page.set(UInt64(ErrorLog.entryCountMax - 1), at: 262, byteCount: 1)  // ELPE
        page.set(0x0157, at: 266, byteCount: 2)  // WCTEMP, in kelvin
        page.set(0x0175, at: 268, byteCount: 2)  // CCTEMP
        page.set(0x66, at: 512, byteCount: 1)  // SQES: 64 bytes.
        page.set(0x44, at: 513, byteCount: 1)  // CQES: 16 bytes.
        page.set(1, at: 516, byteCount: 4)  // NN
        // ONCS: Compare, Dataset Management, Write Zeroes, Save and Select of features.
        page.set(0x001D, at: 520, byteCount: 2)
        page.set(0x07, at: 525, byteCount: 1)  // VWC: there is one, and Flush takes the broadcast NSID.
        page.set(0x0001, at: 536, byteCount: 4)  // SGLS: SGLs, without alignment.
        page.set(identity.subsystemName, at: 768, byteCount: 256, padding: 0)  // SUBNQN
        page.set(900, at: 2048, byteCount: 2)  // PSD0: 9 W.
        return page.bytes
    }

    /// CNS 00h.
    static func namespace(_ image: RawImage, blockByteCount: Int, _ identity: NamespaceIdentity) -> [UInt8] {
        let blocks = image.byteCount / UInt64(blockByteCount)
        var page = ByteBlock(byteCount: byteCount)
        page.set(blocks, at: 0, byteCount: 8)  // NSZE
        page.set(blocks, at: 8, byteCount: 8)  // NCAP
        page.set(blocks, at: 16, byteCount: 8)  // NUSE
        // DLFEAT: deallocated blocks read as zeros, and Write Zeroes can deallocate.
        page.set(0x09, at: 33, byteCount: 1)
        page.set(image.isReadOnly ? 1 : 0, at: 99, byteCount: 1)  // NSATTR: write protected.
        page.set(identity.uuid, at: 104)  // NGUID
        page.set(UInt64(blockByteCount.trailingZeroBitCount) << 16, at: 128, byteCount: 4)  // LBAF0
        return page.bytes
    }

    /// CNS 02h: active namespaces above `namespace`.
    static func activeNamespaces(above namespace: UInt32) -> [UInt8] {
        var page = ByteBlock(byteCount: byteCount)
        if namespace < 1 { page.set(1, at: 0, byteCount: 4) }
        return page.bytes
    }

    /// CNS 03h.
    static func namespaceDescriptors(_ identity: NamespaceIdentity) -> [UInt8] {
        var page = ByteBlock(byteCount: byteCount)
        for (index, type) in [UInt8(2), 3].enumerated() {
            // NIDT 2 is the NGUID, 3 the UUID; both are 16 bytes long.
            page.set([type, 16], at: index * 20)
            page.set(identity.uuid, at: index * 20 + 4)
        }
        return page.bytes
    }
}
