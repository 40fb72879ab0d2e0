// Bounce buffers: what an untrusted device sees of a buffer that shares its pages, and what it does not.

import AddressSpace
import DeviceModel
import IOPageTable
import SystemBus
import Testing

@testable import IOMMU

@Suite("Bounce buffers")
struct BounceBufferTests {
    private static let buffer = ModelBench.buffers
    private static let poolByteCount: UInt64 = 1 << 20

    /// A page full of others' secrets, in whose middle are 16 bytes for the device.
    private static func secrets(_ bench: DMABench) throws -> PhysicalAddress {
        try bench.model.bus.fill(0x5E, byteCount: 0x3000, at: PhysicalAddress(buffer))
        try bench.put(buffer + 0x808, 0x1111)
        try bench.put(buffer + 0x810, 0x2222)
        return PhysicalAddress(buffer + 0x808)
    }

    @Test("the neighbours of a buffer cannot be read or written", arguments: PageTableGranule.allCases)
    func neighbours(_ granule: PageTableGranule) throws {
        let bench = try DMABench(.dma, granule: granule, bounceByteCount: Self.poolByteCount) {
            $0.isUntrusted = true
        }
        let pool = try #require(bench.device.bounceBuffers)
        let start = try Self.secrets(bench)
        // Something else was in the slots before.
        let range = try #require(pool.range)
        try bench.model.bus.fill(0x77, byteCount: range.byteCount, at: PhysicalAddress(range.first))
        let address = try bench.device.map(start, byteCount: 16, .bidirectional)
        #expect(bench.port.read(address.rawValue) == .ok(0x1111))
        #expect(bench.port.read(address.rawValue + 8) == .ok(0x2222))
        let page = address.rawValue & ~(granule.byteCount - 1)
        for iova in stride(from: page, to: page + granule.byteCount, by: 8)
        where iova != address.rawValue && iova != address.rawValue + 8 {
            let found = bench.port.read(iova)
            if found != .ok(0) {
                Issue.record("0x\(String(iova, radix: 16)): \(found)")
                break
            }
        }
        #expect(bench.port.read(page &- 8) == .translationFault)
        #expect(bench.port.read(page + granule.byteCount) == .translationFault)
        // What it writes beside the buffer is gone.
        for iova in stride(from: page, to: page + granule.byteCount, by: 8) {
            #expect(bench.port.write(iova, 0xBAD) == .ok(0))
        }
        try bench.device.unmap(address, byteCount: 16, .bidirectional)
        #expect(try bench.get(Self.buffer + 0x808) == 0xBAD && bench.get(Self.buffer + 0x810) == 0xBAD)
        #expect(try bench.get(Self.buffer + 0x800) == 0x5E5E_5E5E_5E5E_5E5E)
        #expect(try bench.get(Self.buffer + 0x818) == 0x5E5E_5E5E_5E5E_5E5E)
        #expect(pool.usedSlotCount == 0)
    }

    @Test func wholePagesAndTrustedDevicesAreMappedThemselves() throws {
        let bench = try DMABench(.dma, bounceByteCount: Self.poolByteCount) { $0.isUntrusted = true }
        let page = try bench.device.map(PhysicalAddress(Self.buffer), byteCount: 0x1000, .toDevice)
        #expect(try bench.domain.translate(page)?.physical == PhysicalAddress(Self.buffer))
        let trusted = try DMABench(.dma, bounceByteCount: Self.poolByteCount)
        let part = try trusted.device.map(PhysicalAddress(Self.buffer + 8), byteCount: 8, .toDevice)
        #expect(try trusted.domain.translate(part)?.physical == PhysicalAddress(Self.buffer + 8))
        let none = try DMABench(.dma) { $0.isUntrusted = true }
        #expect(throws: DMAError.bounceBuffersInactive) {
            _ = try none.device.map(PhysicalAddress(Self.buffer + 8), byteCount: 8, .toDevice)
        }
        #expect(
            none.messages == ["nic: DMA bounce buffers are inactive, unable to map unaligned transaction."]
        )
    }

    @Test func bytesAreCopiedByDirectionAtMapSyncAndUnmap() throws {
        let bench = try DMABench(.dma, bounceByteCount: Self.poolByteCount) { $0.isUntrusted = true }
        let start = try Self.secrets(bench)
        // From the device: what it does not write stays what it was.
        let from = try bench.device.map(start, byteCount: 16, .fromDevice)
        #expect(bench.port.write(from.rawValue, 0x3333) == .ok(0))
        #expect(try bench.get(Self.buffer + 0x808) == 0x1111)
        try bench.device.syncForCPU(from, offset: 8, byteCount: 8, .fromDevice)
        #expect(try bench.get(Self.buffer + 0x808) == 0x1111)
        try bench.device.syncForCPU(from, byteCount: 8, .fromDevice)
        #expect(try bench.get(Self.buffer + 0x808) == 0x3333)
        try bench.put(Self.buffer + 0x808, 4)
        try bench.device.syncForDevice(from, byteCount: 16, .fromDevice)
        try bench.device.unmap(from, byteCount: 16, .fromDevice)
        #expect(try bench.get(Self.buffer + 0x808) == 0x3333)
        #expect(try bench.get(Self.buffer + 0x810) == 0x2222)

        // To the device: later changes need a sync, and nothing comes back.
        let to = try bench.device.map(start, byteCount: 16, .toDevice)
        try bench.put(Self.buffer + 0x810, 0x4444)
        #expect(bench.port.read(to.rawValue + 8) == .ok(0x2222))
        try bench.device.syncForDevice(to, byteCount: 16, .toDevice)
        #expect(bench.port.read(to.rawValue + 8) == .ok(0x4444))
        try bench.device.unmap(to, byteCount: 16, .toDevice)

        // Who skips the synchronisation at unmap gets nothing back.
        let skipped = try bench.device.map(start, byteCount: 16, .bidirectional)
        #expect(bench.port.write(skipped.rawValue, 0x5555) == .ok(0))
        try bench.device.unmap(skipped, byteCount: 16, .bidirectional, .skipCPUSync)
        #expect(try bench.get(Self.buffer + 0x808) == 0x3333)
    }

    @Test func lowAddressBitsAreKeptWhereTheDeviceNeedsThem() throws {
        let bench = try DMABench(.dma, bounceByteCount: Self.poolByteCount) { $0.isUntrusted = true }
        let start = try Self.secrets(bench)
        let plain = try bench.device.map(start, byteCount: 16, .toDevice)
        #expect(plain.rawValue & 0xFFF == 0)
        try bench.device.setMinAlignMask(0xFFF)
        #expect(throws: DMAError.self) { try bench.device.setMinAlignMask(0xFF0) }
        let kept = try bench.device.map(start, byteCount: 16, .toDevice)
        #expect(kept.rawValue & 0xFFF == 0x808)
        #expect(bench.port.read(kept.rawValue) == .ok(0x1111))
        #expect(bench.port.read(kept.rawValue - 8) == .ok(0))
    }

    @Test func aFullPoolIsTheKernelsMessageAndLaterThereIsRoomAgain() throws {
        let bench = try DMABench(.dma, bounceByteCount: 256 << 10) { $0.isUntrusted = true }
        let pool = try #require(bench.device.bounceBuffers)
        #expect(pool.slotCount == 128)
        #expect(bench.device.maxMappingByteCount == 256 << 10)
        // Each takes a page: two slots.
        let part = PhysicalAddress(Self.buffer + 8)
        let held = try (0..<64).map { _ in try bench.device.map(part, byteCount: 16, .toDevice) }
        #expect(throws: DMAError.bounceBuffersFull(byteCount: 16, slotCount: 128, usedCount: 128)) {
            _ = try bench.device.map(part, byteCount: 16, .toDevice)
        }
        #expect(
            bench.messages == [
                "nic: swiotlb buffer is full (sz: 16 bytes), total 128 (slots), used 128 (slots)"
            ]
        )
        try bench.device.unmap(held[7], byteCount: 16, .toDevice)
        _ = try bench.device.map(part, byteCount: 16, .toDevice)
        // Larger than a segment of 128 slots is always full.
        #expect(throws: DMAError.self) {
            _ = try bench.device.map(part, byteCount: 256 << 10, .toDevice, .noWarn)
        }
        #expect(bench.messages.count == 1)
        #expect(bench.device.mappingCount == 64)
    }

    @Test func aSlotThatALazyUnmapLeftIsNotUsedBeforeTheFlush() throws {
        let bench = try DMABench(.dmaFQ, bounceByteCount: 256 << 10) { $0.isUntrusted = true }
        let pool = try #require(bench.device.bounceBuffers)
        let part = PhysicalAddress(Self.buffer + 8)
        let first = try bench.device.map(part, byteCount: 16, .toDevice)
        #expect(bench.port.read(first.rawValue) == .ok(0))
        try bench.device.unmap(first, byteCount: 16, .toDevice)
        #expect(pool.usedSlotCount == 2)
        // All others; the last one needs what waits, so the queue is flushed.
        for _ in 0..<63 { _ = try bench.device.map(part, byteCount: 16, .toDevice) }
        #expect(bench.domain.lazyUnmapCount == 2)
        let last = try bench.device.map(part, byteCount: 16, .toDevice)
        #expect(pool.usedSlotCount == 128)
        #expect(bench.port.read(first.rawValue) == .translationFault)
        #expect(bench.port.read(last.rawValue) == .ok(0))
    }

    @Test func scatterlistsBounceBufferByBuffer() throws {
        let bench = try DMABench(.dma, bounceByteCount: Self.poolByteCount) { $0.isUntrusted = true }
        let start = try Self.secrets(bench)
        let buffers = [
            DMABuffer(PhysicalAddress(Self.buffer + 0x1_0000), byteCount: 0x1000),
            DMABuffer(start, byteCount: 16),
        ]
        let mapping = try bench.device.map(buffers, .bidirectional)
        #expect(mapping.segments.map(\.byteCount) == [0x1000, 16])
        #expect(bench.port.write(mapping.segments[1].address.rawValue, 7) == .ok(0))
        #expect(bench.port.read(mapping.segments[1].address.rawValue + 16) == .ok(0))
        try bench.device.syncForCPU(mapping)
        #expect(try bench.get(start.rawValue) == 7)
        try bench.put(start.rawValue, 8)
        try bench.device.syncForDevice(mapping)
        #expect(bench.port.read(mapping.segments[1].address.rawValue) == .ok(8))
        try bench.device.unmap(mapping)
        #expect(bench.device.mappingCount == 0)
        #expect(bench.device.bounceBuffers?.usedSlotCount == 0)
        // One that does not fit takes the others with it.
        let large = DMABuffer(PhysicalAddress(Self.buffer + 8), byteCount: 1 << 20)
        #expect(throws: DMAError.self) { _ = try bench.device.map(buffers + [large], .toDevice) }
        #expect(bench.device.mappingCount == 0)
        #expect(bench.device.bounceBuffers?.usedSlotCount == 0)
    }

    @Test func aDirectDeviceBouncesWhatItCannotAddress() throws {
        // The pool is above 2 GiB, the buffer at 1 GiB: a device that drives 31 bits reaches neither.
        let bench = try DMABench(.identity, bounceByteCount: Self.poolByteCount) { $0.busLimit = 0x3FFF_FFFF }
        #expect(throws: DMAError.self) {
            _ = try bench.device.map(PhysicalAddress(Self.buffer), byteCount: 64, .toDevice)
        }
        #expect(bench.device.bounceBuffers?.usedSlotCount == 0)
        let range = try #require(bench.device.bounceBuffers?.range)
        let reaching = DMADevice(
            "nic",
            domain: bench.domain,
            memory: bench.device.memory,
            traits: {
                var traits = DMADevice.Traits()
                traits.busLimit = range.last
                return traits
            }(),
            bounceBuffers: bench.device.bounceBuffers
        )
        try bench.put(0x83FF_F000, 0xAB)
        let address = try reaching.map(PhysicalAddress(0x83FF_F000), byteCount: 8, .bidirectional)
        #expect(range.contains(address.rawValue))
        #expect(bench.port.read(address.rawValue) == .ok(0xAB))
        #expect(bench.port.write(address.rawValue, 0xCD) == .ok(0))
        try reaching.unmap(address, byteCount: 8, .bidirectional)
        #expect(try bench.get(0x83FF_F000) == 0xCD)
    }
}
