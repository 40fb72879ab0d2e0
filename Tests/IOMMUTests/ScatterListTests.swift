// Scatterlists: how buffers become segments, checked against layouts worked out by hand, and by DMA.

import AddressSpace
import DeviceModel
import IOPageTable
import SeededRandomness
import Testing

@testable import IOMMU

@Suite("Scatterlists")
struct ScatterListTests {
    struct Layout: Sendable {
        let name: String
        /// Physical address and length of each buffer.
        let buffers: [(UInt64, UInt64)]
        var boundary: UInt64 = 0xFFFF_FFFF
        var maxSegment: UInt64 = 0x1_0000
        /// Offset in the range and length of each segment.
        let segments: [(UInt64, UInt64)]
        let byteCount: UInt64
    }

    static let layouts: [Layout] = [
        Layout(
            name: "whole pages become one segment",
            buffers: [(0x1000, 0x1000), (0x9000, 0x2000), (0x3000, 0x1000)],
            segments: [(0, 0x4000)],
            byteCount: 0x4000
        ),
        Layout(
            name: "an offset in the first buffer is kept",
            buffers: [(0x1800, 0x800), (0x9000, 0x1000)],
            segments: [(0x800, 0x1800)],
            byteCount: 0x2000
        ),
        Layout(
            name: "a buffer that starts within a page starts a segment",
            buffers: [(0x1000, 0x1000), (0x9200, 0xE00)],
            segments: [(0, 0x1000), (0x1200, 0xE00)],
            byteCount: 0x2000
        ),
        Layout(
            name: "a buffer that ends within a page ends its segment",
            buffers: [(0x1000, 0x1000), (0x9000, 0x200), (0xA000, 0x1000)],
            segments: [(0, 0x1200), (0x2000, 0x1000)],
            byteCount: 0x3000
        ),
        Layout(
            name: "no segment is longer than the device takes",
            buffers: [(0x1000, 0x1000), (0x9000, 0x1000), (0xA000, 0x1000)],
            maxSegment: 0x2000,
            segments: [(0, 0x2000), (0x2000, 0x1000)],
            byteCount: 0x3000
        ),
        Layout(
            name: "a buffer that is too long stays what it is",
            buffers: [(0x1000, 0x3000), (0x9000, 0x1000)],
            maxSegment: 0x2000,
            segments: [(0, 0x3000), (0x3000, 0x1000)],
            byteCount: 0x4000
        ),
        Layout(
            name: "a segment ends at the boundary",
            buffers: [(0x1000, 0x2000), (0x9000, 0x2000), (0x5000, 0x1000)],
            boundary: 0x3FFF,
            segments: [(0, 0x4000), (0x4000, 0x1000)],
            byteCount: 0x5000
        ),
        Layout(
            name: "a buffer that would cross the boundary starts on it",
            buffers: [(0x1000, 0x3000), (0x9000, 0x2000)],
            boundary: 0x3FFF,
            segments: [(0, 0x3000), (0x4000, 0x2000)],
            byteCount: 0x6000
        ),
    ]

    @Test("buffers become segments", arguments: layouts)
    func layout(_ layout: Layout) throws {
        let found = try #require(
            ScatterLayout(
                layout.buffers.map { DMABuffer(PhysicalAddress($0.0), byteCount: $0.1) },
                granule: 0x1000,
                boundaryMask: layout.boundary,
                maxSegment: layout.maxSegment
            )
        )
        let base: UInt64 = 0xFFF0_0000
        #expect(found.byteCount == layout.byteCount, "\(layout.name)")
        #expect(
            found.segments(at: IOVirtualAddress(base))
                == layout.segments.map { DMASegment(IOVirtualAddress(base + $0.0), byteCount: $0.1) },
            "\(layout.name)"
        )
    }

    @Test func lengthsThatLeave64BitsAreRefused() throws {
        let huge = DMABuffer(PhysicalAddress(0), byteCount: .max)
        #expect(ScatterLayout([huge], granule: 0x1000, boundaryMask: .max, maxSegment: .max) == nil)
        let half = DMABuffer(PhysicalAddress(0), byteCount: 1 << 63)
        #expect(ScatterLayout([half, half], granule: 0x1000, boundaryMask: .max, maxSegment: .max) == nil)
        let bench = try DMABench(.dma)
        #expect(throws: DMAError.self) { _ = try bench.device.map([], .toDevice) }
        #expect(throws: DMAError.self) {
            _ = try bench.device.map([DMABuffer(PhysicalAddress(.max), byteCount: 2)], .toDevice)
        }
        #expect(throws: DMAError.noMemory(.iovasExhausted(byteCount: .max))) {
            _ = try bench.device.map([half, half], .toDevice)
        }
        // Larger than 32 bits of IOVA.
        #expect(throws: DMAError.noMemory(.iovasExhausted(byteCount: 1 << 63))) {
            _ = try bench.device.map([half], .toDevice)
        }
        #expect(bench.device.mappingCount == 0)
    }

    @Test("the device finds each buffer's bytes behind its segments", arguments: 1...6 as ClosedRange<UInt64>)
    func random(_ seed: UInt64) throws {
        var random = SplitMix(seed: seed)
        let bench = try DMABench(seed % 2 == 0 ? .dma : .dmaFQ)
        if seed % 3 == 0 { try bench.device.setSegmentBoundaryMask(0x3FFF) }
        for _ in 0..<20 {
            // Buffers of whole words on pages of their own, each word its own address.
            var next = ModelBench.buffers
            var buffers: [DMABuffer] = []
            for _ in 0..<Int.random(in: 1...8, using: &random) {
                let isWhole = Bool.random(using: &random)
                let offset = isWhole ? 0 : UInt64.random(in: 0..<512, using: &random) * 8
                let words = UInt64.random(in: 1...1024, using: &random)
                let length = isWhole ? (words * 8 + 0xFFF) & ~0xFFF : words * 8
                buffers.append(DMABuffer(PhysicalAddress(next + offset), byteCount: length))
                next += 0x4000
            }
            for buffer in buffers {
                try bench.put(buffer.physical.rawValue, buffer.physical.rawValue)
                try bench.put(buffer.physical.rawValue + buffer.byteCount - 8, ~buffer.physical.rawValue)
            }
            let mapping = try bench.device.map(buffers, .toDevice)
            #expect(mapping.segments.count <= buffers.count)
            // The stream of bytes of all segments is that of all buffers.
            var segments = mapping.segments[...]
            for buffer in buffers {
                let segment = try #require(segments.first)
                #expect(segment.byteCount >= buffer.byteCount)
                let first = buffer.byteCount == 8 ? ~buffer.physical.rawValue : buffer.physical.rawValue
                #expect(bench.port.read(segment.address.rawValue) == .ok(first))
                let last = segment.address.rawValue + buffer.byteCount - 8
                #expect(bench.port.read(last) == .ok(~buffer.physical.rawValue))
                segments[segments.startIndex].address = IOVirtualAddress(last + 8)
                segments[segments.startIndex].byteCount -= buffer.byteCount
                if segments[segments.startIndex].byteCount == 0 { segments.removeFirst() }
            }
            #expect(segments.isEmpty)
            let mask = bench.device.segmentBoundaryMask
            for segment in mapping.segments where segment.byteCount <= mask {
                let last = segment.address.rawValue + segment.byteCount - 1
                #expect(segment.address.rawValue & ~mask == last & ~mask)
            }
            try bench.device.unmap(mapping)
            try bench.domain.flushLazyUnmaps()
            for segment in mapping.segments {
                #expect(bench.port.read(segment.address.rawValue & ~7) == .translationFault)
            }
            #expect(throws: DMAError.self) { try bench.device.unmap(mapping) }
        }
        #expect(bench.device.mappingCount == 0)
        bench.domain.emptyIOVACache()
        #expect(bench.domain.iovaStatistics?.takenByteCount == 0x1000)
    }

    @Test func directBuffersAreSegmentsOfTheirOwn() throws {
        let bench = try DMABench(.identity)
        let buffers = [0, 0x1000, 0x8000].map {
            DMABuffer(PhysicalAddress(ModelBench.buffers + $0), byteCount: 0x1000)
        }
        let mapping = try bench.device.map(buffers, .bidirectional)
        #expect(mapping.segments.map(\.address.rawValue) == buffers.map(\.physical.rawValue))
        #expect(bench.device.mappingCount == 3)
        try bench.device.unmap(mapping)
        #expect(bench.device.mappingCount == 0)
    }
}
