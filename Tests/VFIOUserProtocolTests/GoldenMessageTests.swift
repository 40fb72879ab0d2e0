// Every message against bytes typed from the specification's tables of offsets.

import Testing

@testable import VFIOUserProtocol

@Suite("Messages have the specification's bytes")
struct GoldenMessageTests {
    @Test("The header's fields stand at 0, 2, 4, 8 and 12")
    func headerBytes() {
        let header = VFIOUserHeader(
            messageID: 0x1234,
            command: .readRegion,
            payloadByteCount: 16,
            flags: .noReply,
            error: 0
        )
        let bytes = hex("34 12  09 00  20 00 00 00  10 00 00 00  00 00 00 00")
        #expect(header.bytes == bytes)
        #expect(VFIOUserHeader(bytes) == header)
    }

    @Test("A success is type 1, a failure type 1 with the error bit, 16 bytes and a positive number")
    func replies() {
        let header = VFIOUserHeader(messageID: 0xbeef, command: .reset)
        #expect(header.success() == hex("efbe 0d00 10000000 01000000 00000000"))
        #expect(header.failure(.exists) == hex("efbe 0d00 10000000 21000000 11000000"))
        #expect(header.failure(VFIOUserError(rawValue: 0)) == hex("efbe 0d00 10000000 21000000 05000000"))
    }

    @Test(
        "The commands have the specification's numbers",
        arguments: [
            (VFIOUserCommand.version, 1), (.mapDMA, 2), (.unmapDMA, 3), (.deviceInfo, 4), (.regionInfo, 5),
            (.regionIODescriptors, 6), (.interruptInfo, 7), (.setInterrupts, 8), (.readRegion, 9),
            (.writeRegion, 10), (.readDMA, 11), (.writeDMA, 12), (.reset, 13), (.writeRegions, 15),
            (.deviceFeature, 16), (.readMigrationData, 17), (.writeMigrationData, 18),
        ] as [(VFIOUserCommand, UInt16)]
    )
    func commandNumbers(_ command: VFIOUserCommand, _ number: UInt16) {
        #expect(command.rawValue == number)
    }

    @Test("DMA_MAP: 32 bytes")
    func mapDMA() {
        let bytes = hex(
            """
            20000000 03000000 0010000000000000 0000004000000000 0000200000000000
            """
        )
        let message = VFIOUserDMAMap(
            flags: [.readable, .writable],
            offset: 0x1000,
            address: 0x4000_0000,
            size: 0x20_0000
        )
        #expect(message.bytes == bytes)
        #expect(VFIOUserDMAMap(bytes) == message)
        #expect(VFIOUserDMAMap(Array(bytes.dropLast())) == nil)
    }

    @Test("DMA_UNMAP: 24 bytes")
    func unmapDMA() {
        let bytes = hex("18000000 02000000 0000004000000000 0000200000000000")
        let message = VFIOUserDMAUnmap(flags: .all, address: 0x4000_0000, size: 0x20_0000)
        #expect(message.bytes == bytes)
        #expect(VFIOUserDMAUnmap(bytes) == message)
        #expect(VFIOUserDMAUnmap(Array(bytes.dropLast())) == nil)
    }

    @Test("DMA_READ and DMA_WRITE: the count has 64 bits")
    func accessDMA() {
        let bytes = hex("8877665544332211 0800000001000000")
        let message = VFIOUserDMAAccess(address: 0x1122_3344_5566_7788, count: 0x1_0000_0008)
        #expect(message.bytes == bytes)
        #expect(VFIOUserDMAAccess(bytes) == message)
        #expect(VFIOUserDMAAccess(Array(bytes.dropLast())) == nil)
    }

    @Test("DEVICE_GET_INFO: 16 bytes")
    func deviceInfo() {
        let bytes = hex("10000000 03000000 09000000 05000000")
        let message = VFIOUserDeviceInfo(flags: [.reset, .pci], regionCount: 9, interruptCount: 5)
        #expect(message.bytes == bytes)
        #expect(VFIOUserDeviceInfo(bytes) == message)
        #expect(VFIOUserDeviceInfo(Array(bytes.dropLast())) == nil)
    }

    @Test("DEVICE_GET_REGION_INFO: 32 bytes")
    func regionInfo() {
        let bytes = hex("50000000 0f000000 02000000 20000000 0080000000000000 0000010000000000")
        let message = VFIOUserRegionInfo(
            argsz: 80,
            flags: [.read, .write, .mmap, .capabilities],
            index: 2,
            capabilityOffset: 32,
            size: 0x8000,
            offset: 0x10000
        )
        #expect(message.bytes == bytes)
        #expect(VFIOUserRegionInfo(bytes) == message)
        #expect(VFIOUserRegionInfo(Array(bytes.dropLast())) == nil)
    }

    @Test("DEVICE_GET_REGION_IO_FDS: 16 bytes and 40 for each entry")
    func ioDescriptors() {
        let head = hex("60000000 00000000 02000000 02000000")
        #expect(VFIOUserRegionIODescriptors(argsz: 96, index: 2, count: 2).bytes == head)
        #expect(VFIOUserRegionIODescriptors(head)?.count == 2)
        let entry = hex(
            "2000000000000000 0200000000000000 01000000 00000000 01000000 00000000 0300000000000000"
        )
        let message = VFIOUserIOEvent(offset: 0x20, size: 2, descriptorIndex: 1, flags: 1, dataMatch: 3)
        #expect(message.bytes == entry)
        #expect(VFIOUserIOEvent(entry) == message)
        #expect(VFIOUserIOEvent(Array(entry.dropLast())) == nil)
    }

    @Test("DEVICE_GET_IRQ_INFO: 16 bytes")
    func interruptInfo() {
        let bytes = hex("10000000 07000000 02000000 00080000")
        let message = VFIOUserInterruptInfo(
            flags: [.eventfd, .maskable, .automasked],
            index: 2,
            count: 2048
        )
        #expect(message.bytes == bytes)
        #expect(VFIOUserInterruptInfo(bytes) == message)
        #expect(VFIOUserInterruptInfo(Array(bytes.dropLast())) == nil)
    }

    @Test("DEVICE_SET_IRQS: 20 bytes")
    func setInterrupts() {
        let bytes = hex("14000000 24000000 02000000 08000000 10000000")
        let message = VFIOUserInterruptSet(flags: [.eventfd, .trigger], index: 2, start: 8, count: 16)
        #expect(message.bytes == bytes)
        #expect(VFIOUserInterruptSet(bytes) == message)
        #expect(VFIOUserInterruptSet(Array(bytes.dropLast())) == nil)
        #expect(VFIOUserInterruptSet.Flags.mask.rawValue == 8)
        #expect(VFIOUserInterruptSet.Flags.unmask.rawValue == 16)
    }

    @Test("REGION_READ and REGION_WRITE: 16 bytes")
    func accessRegion() {
        let bytes = hex("1000000000000000 07000000 04000000")
        let message = VFIOUserRegionAccess(offset: 0x10, region: 7, count: 4)
        #expect(message.bytes == bytes)
        #expect(VFIOUserRegionAccess(bytes) == message)
        #expect(VFIOUserRegionAccess(Array(bytes.dropLast())) == nil)
    }

    @Test("REGION_WRITE_MULTI: 24 bytes for each write")
    func smallWrite() {
        let bytes = hex("1000000000000000 00000000 04000000 efbeadde00000000")
        let message = VFIOUserSmallWrite(offset: 0x10, region: 0, count: 4, data: 0xdead_beef)
        #expect(message.bytes == bytes)
        #expect(VFIOUserSmallWrite(bytes) == message)
        #expect(VFIOUserSmallWrite(Array(bytes.dropLast())) == nil)
        let request = VFIOUserClientRequest.writeRegions([message])
        #expect(request.payload == hex("0100000000000000") + bytes)
    }

    @Test("DEVICE_FEATURE and MIG_DATA: 8 bytes")
    func features() {
        #expect(VFIOUserDeviceFeature(argsz: 16, flags: 0x10001).bytes == hex("10000000 01000100"))
        #expect(VFIOUserDeviceFeature(hex("10000000 01000100"))?.flags == 0x10001)
        #expect(VFIOUserMigrationData(argsz: 8, size: 4096).bytes == hex("08000000 00100000"))
        #expect(VFIOUserMigrationData(hex("08000000 00100000"))?.size == 4096)
        #expect(VFIOUserDeviceFeature([0, 0, 0, 0, 0, 0, 0]) == nil)
        #expect(VFIOUserMigrationData([0, 0, 0, 0, 0, 0, 0]) == nil)
    }

    @Test("VERSION: two halfwords, a text and a zero")
    func version() {
        let text =
            #"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"#
            + #""pgsizes":4096,"write_multiple":true}}"#
        let message = VFIOUserVersion(
            minor: 1,
            capabilities: VFIOUserCapabilities(
                descriptorCountMax: 16,
                dataByteCountMax: 1 << 20,
                mappingCountMax: 65535,
                pageSizes: 4096,
                writeMultiple: true
            )
        )
        let bytes = hex("0000 0100") + Array(text.utf8) + [0]
        #expect(message.bytes == bytes)
        #expect(VFIOUserVersion(bytes) == message)
        #expect(VFIOUserVersion(hex("0000 0200")) == VFIOUserVersion(minor: 2, capabilities: nil))
    }

    @Test("Region capabilities: 8 bytes and what follows, offsets from the region's information")
    func capabilities() {
        let bytes = hex(
            """
            0100 0100 40000000 01000000 00000000 0010000000000000 0020000000000000
            0200 0100 50000000 05000000 06000000
            0300 0100 00000000
            """
        )
        let capabilities: [VFIOUserRegionCapability] = [
            .sparseMapping([VFIOUserMappableArea(offset: 0x1000, size: 0x2000)]),
            .type(5, subtype: 6), .msixMappable,
        ]
        #expect(VFIOUserRegionCapability.chain(capabilities) == bytes)
        let payload = [UInt8](repeating: 0, count: 32) + bytes
        #expect(VFIOUserRegionCapability.parse(payload, from: 32) == capabilities)
    }

    @Test("A chain of capabilities that runs backwards, into itself or out of the reply is no chain")
    func badChains() {
        let head = [UInt8](repeating: 0, count: 32)
        let parse = { (chain: String) in VFIOUserRegionCapability.parse(head + hex(chain), from: 32) }
        #expect(parse("0300 0100 20000000") == nil)
        #expect(parse("0300 0100 00000080") == nil)
        #expect(parse("0300 0100 28000000") == nil)
        #expect(parse("0300 0100") == nil)
        #expect(parse("0100 0100 00000000 ffffffff 00000000") == nil)
        #expect(parse("0180 0100 00000000 01") == [.unknown(id: 0x8001, version: 1, [1])])
        #expect(VFIOUserRegionCapability.parse(head, from: 8) == nil)
    }
}
