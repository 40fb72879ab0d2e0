// Endpoints: attached, moved, blocked, bypassing, and gone.

import AddressSpace
import IOMMU
import SMMUv3Spec

extension ConformanceCase {
    static let attachment = [
        Self("a stream without an endpoint has no entry, and one with has one that aborts", unattached),
        Self("an identity domain passes DMA on as it is", identity),
        Self("a blocked domain aborts without an event", blocked),
        Self("an endpoint that is attached reaches what its domain maps, and nothing else", attach),
        Self("from one domain to the next, and back", moves),
        Self("an endpoint that is removed reaches nothing; its stream can be used again", removes),
        Self("several devices have the same IOVA for different memory", severalDevices),
        Self("several devices share a domain", sharedDomain),
        Self("SubstreamIDs have domains of their own", about: .substreams, substreams),
    ]

    private static func unattached(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        // No level-2 table yet: C_BAD_STREAMID, which CR2.RECINVSID has recorded.
        try rig.expectAborts(2, BoardLayout.buffers, BoardLayout.buffers)
        try rig.expectEvents([.cBadStreamID], 2, BoardLayout.buffers, isRead: false)
        _ = try rig.addEndpoint(2)
        try rig.driver.attach(try rig.addEndpoint(0), to: rig.driver.identityDomain)
        // No CFGI came for it, only for its neighbour in another table: what was not there must not be kept.
        try rig.expectAbortsSilently(2, BoardLayout.buffers, BoardLayout.buffers)
    }

    private static func identity(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let endpoint = try rig.addEndpoint(0)
        try rig.driver.attach(endpoint, to: rig.driver.identityDomain)
        try rig.expectReaches(0, BoardLayout.buffers, BoardLayout.buffers, drain: Rig.drainMemory)
        try rig.driver.attach(endpoint, to: rig.driver.blockedDomain)
        try rig.expectAbortsSilently(0, BoardLayout.buffers, BoardLayout.buffers)
        try rig.driver.attach(endpoint, to: rig.driver.identityDomain)
        try rig.expectReaches(0, BoardLayout.buffers, BoardLayout.buffers, drain: Rig.drainMemory)
    }

    private static func blocked(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let endpoint = try rig.addEndpoint(1)
        let domain = try rig.makeDomain()
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        try rig.driver.attach(endpoint, to: domain)
        try rig.expectReaches(1, 0x1000, BoardLayout.buffers)
        try rig.driver.attach(endpoint, to: rig.driver.blockedDomain)
        try rig.expectAbortsSilently(1, 0x1000, BoardLayout.buffers)
        try rig.expectAbortsSilently(1, BoardLayout.buffers, BoardLayout.buffers)
        try rig.driver.attach(endpoint, to: domain)
        try rig.expectReaches(1, 0x1000, BoardLayout.buffers)
    }

    private static func attach(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain()
        try rig.driver.attach(try rig.addEndpoint(0), to: domain)
        try rig.expectFaults(0, 0x1_2340, BoardLayout.buffers + 0x340, .fTranslation)
        try rig.map(domain, 0x1_2000, to: BoardLayout.buffers)
        // Invalid descriptors are not cached: no command between the fault and this.
        try rig.expectReaches(0, 0x1_2340, BoardLayout.buffers + 0x340)
        try rig.expectFaults(0, 0x1_3000, BoardLayout.buffers + 0x1000, .fTranslation)
        try rig.expectFaults(0, 0x1_1FFC, BoardLayout.buffers + 0x1000, .fTranslation)
        // The last page of the address space, and beyond it.
        try rig.map(domain, 0xFFFF_FFFF_F000, to: BoardLayout.buffers + 0x2000)
        try rig.expectReaches(0, 0xFFFF_FFFF_FFFC, BoardLayout.buffers + 0x2FFC)
        try rig.expectFaults(0, 0x1_0000_0000_0000, BoardLayout.buffers + 0x2000, .fTranslation)
    }

    private static func moves(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let endpoint = try rig.addEndpoint(0)
        let domains = try (0..<2).map { _ in try rig.makeDomain() }
        for (index, domain) in domains.enumerated() {
            try rig.map(domain, 0x1000, to: BoardLayout.buffers + UInt64(index) << 12)
        }
        for round in 0..<4 {
            try rig.driver.attach(endpoint, to: domains[round % 2])
            try rig.expectReaches(0, 0x1000, BoardLayout.buffers + UInt64(round % 2) << 12)
        }
        try rig.driver.attach(endpoint, to: rig.driver.identityDomain)
        try rig.expectReaches(0, BoardLayout.buffers, BoardLayout.buffers, drain: Rig.drainMemory)
        try rig.driver.attach(endpoint, to: domains[1])
        try rig.expectReaches(0, 0x1000, BoardLayout.buffers + 0x1000)
    }

    private static func removes(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let endpoint = try rig.addEndpoint(2)
        let domain = try rig.makeDomain()
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        try rig.driver.attach(endpoint, to: domain)
        try rig.expectReaches(2, 0x1000, BoardLayout.buffers)
        try rig.driver.removeEndpoint(endpoint)
        try rig.expectAbortsSilently(2, 0x1000, BoardLayout.buffers)
        try expect(
            rig.driver.endpoint(of: StreamID(BoardLayout.streams[2])) == nil,
            "the stream has an owner"
        )
        try rig.driver.attach(try rig.addEndpoint(2), to: domain)
        try rig.expectReaches(2, 0x1000, BoardLayout.buffers)
    }

    private static func severalDevices(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domains = try BoardLayout.streams.indices.map { requester in
            let domain = try rig.makeDomain()
            try rig.map(domain, 0x1000, to: BoardLayout.buffers + UInt64(requester) << 12)
            try rig.driver.attach(try rig.addEndpoint(requester), to: domain)
            return domain
        }
        for _ in 0..<2 {
            for requester in BoardLayout.streams.indices {
                try rig.expectReaches(requester, 0x1000, BoardLayout.buffers + UInt64(requester) << 12)
            }
        }
        // What one domain loses the others keep.
        try rig.unmap(domains[1], 0x1000)
        try rig.expectFaults(1, 0x1000, BoardLayout.buffers + 0x1000, .fTranslation)
        try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
        try rig.expectReaches(2, 0x1000, BoardLayout.buffers + 0x2000)
    }

    private static func sharedDomain(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let domain = try rig.makeDomain()
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        for requester in BoardLayout.streams.indices {
            try rig.driver.attach(try rig.addEndpoint(requester), to: domain)
            try rig.expectReaches(requester, 0x1000, BoardLayout.buffers)
        }
        try rig.unmap(domain, 0x1000)
        for requester in BoardLayout.streams.indices {
            try rig.expectFaults(requester, 0x1000, BoardLayout.buffers, .fTranslation)
        }
    }

    private static func substreams(_ bench: any ConformanceBench) throws {
        let rig = try Rig(bench)
        let endpoint = try rig.driver.addEndpoint(
            "device 0",
            streams: [StreamID(BoardLayout.streams[0])],
            substreamBits: 5
        )
        let domain = try rig.makeDomain()
        try rig.map(domain, 0x1000, to: BoardLayout.buffers)
        try rig.driver.attach(endpoint, to: domain)
        guard try Capability.substreams.isThere(on: bench) else {
            // One CD alone: the driver refuses a SubstreamID, and the stream goes on without.
            try expectEqual(endpoint.substreamBits, 0, "the endpoint's bits of SubstreamIDs")
            do {
                try rig.driver.attach(endpoint, substream: SubstreamID(1), to: domain)
                throw ConformanceFailure("a SubstreamID that the SMMU does not have was attached")
            } catch let error as SMMUDriverError {
                try expectEqual(error, .substreamOutOfRange(SubstreamID(1), bits: 0), "the error")
            }
            try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
            return
        }
        try expectEqual(endpoint.substreamBits, 5, "the endpoint's bits of SubstreamIDs")
        let other = try rig.makeDomain()
        try rig.driver.attach(endpoint, substream: SubstreamID(1), to: other)
        // What has no SubstreamID goes on with its own domain, S1CDMax and all.
        try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
        try rig.driver.detach(endpoint, substream: SubstreamID(1))
        try rig.expectReaches(0, 0x1000, BoardLayout.buffers)
    }
}
