// CMD_ATC_INV: what functions are sent, what CMD_SYNC waits for, and what becomes of those who do not answer.

import AddressSpace
import DeviceModel
import Glibc
import SMMUv3Spec
import Synchronization
import SystemBus
import Testing

@testable import SMMUv3

@Suite("Invalidation of functions' ATCs", .serialized)
struct ATCInvalidationTests {
    /// By bit number (IHI 0070, 4.5.1): Global 9, SSV 11, SubstreamID 31:12, StreamID 63:32, Size 69:64.
    static func atcInv(
        _ streamID: UInt64,
        _ address: UInt64,
        size: UInt64,
        ssid: UInt64? = nil,
        global: Bool = false
    ) -> RawCommand {
        RawCommand(
            low: 0x40 | bit(global, 9) | bit(ssid != nil, 11) | field(ssid ?? 0, 12) | field(streamID, 32),
            high: (address & ~0xFFF) | size
        )
    }

    @Test("ranges, PASIDs and Global as the function is sent them")
    func requests() throws {
        let guest = try TestGuest.full()
        let endpoint = RecordingEndpoint()
        let other = RecordingEndpoint()
        guest.smmu.connect(endpoint, at: StreamID(6))
        guest.smmu.connect(other, at: StreamID(7))
        try guest.issue(
            Self.atcInv(6, 0x1234_5000, size: 0),
            Self.atcInv(6, 0x1234_5000, size: 9),
            Self.atcInv(6, 0xFFFF_FFFF_FFFF_F000, size: 0, ssid: 0xF_FFFF),
            Self.atcInv(6, 0, size: 52, ssid: 3, global: true),
            Self.atcInv(6, 0x1234_5000, size: 51, global: true),
            Raw.sync()
        )
        #expect(
            endpoint.invalidations == [
                ATCInvalidation(range: 0x1234_5000...0x1234_5FFF),
                ATCInvalidation(range: 0x1220_0000...0x123F_FFFF),
                ATCInvalidation(
                    substreamID: SubstreamID(0xF_FFFF),
                    range: 0xFFFF_FFFF_FFFF_F000...UInt64.max
                ),
                ATCInvalidation(substreamID: SubstreamID(3), isGlobal: true, range: 0...UInt64.max),
                // Global is IGNORED without SSV.
                ATCInvalidation(range: 0...0x7FFF_FFFF_FFFF_FFFF),
            ]
        )
        #expect(other.invalidations == [])
        #expect(try guest.activeErrors == 0)
        // Nobody is there: as one that answers Unsupported Request.
        try guest.issue(Self.atcInv(99, 0, size: 52), Raw.sync())
        #expect(try guest.activeErrors == 0)
        // SMMUEN is 0: IGNORED.
        try guest.write32(0x20, 0b1100)
        try guest.issue(Self.atcInv(6, 0, size: 52), Raw.sync())
        #expect(endpoint.invalidations.count == 5)
    }

    @Test("ILLEGAL: Size above 52, and everything where there is no ATS")
    func illegal() throws {
        let guest = try TestGuest.full()
        try guest.issue(Self.atcInv(6, 0, size: 53))
        #expect(try guest.commandError == 1)
        #expect(try guest.activeErrors == 1)
        let without = try TestGuest()
        try without.issue(Self.atcInv(6, 0, size: 0))
        #expect(try without.commandError == 1)
    }

    private func threadGuest(timeout: UInt32) throws -> (guest: TestGuest, endpoint: RecordingEndpoint) {
        let guest = try TestGuest.full {
            $0.options.commandExecution = .thread
            $0.options.atcInvalidationTimeoutMilliseconds = timeout
        }
        let endpoint = RecordingEndpoint()
        guest.smmu.connect(endpoint, at: StreamID(6))
        return (guest, endpoint)
    }

    @Test("CMD_SYNC completes when the function has, and not before")
    func syncWaits() throws {
        let (guest, endpoint) = try threadGuest(timeout: 60_000)
        endpoint.setSilent(true)
        let sync = guest.commandProd + 3
        try InFlightTests.post(
            guest,
            Self.atcInv(6, 0, size: 0),
            Self.atcInv(6, 0x1000, size: 0),
            Raw.cfgiAll,
            Raw.sync(cs: 1)
        )
        while try guest.commandCons != sync { sched_yield() }
        for _ in 0..<200 {
            #expect(try guest.commandCons == sync)
            sched_yield()
        }
        #expect(endpoint.invalidations.count == 2)
        #expect(guest.syncLine.count == 0)
        endpoint.setSilent(false)
        try guest.waitForCommands()
        #expect(try guest.activeErrors == 0)
        #expect(eventually { guest.syncLine.count == 1 })
    }

    @Test("no answer in time: CERROR_ATC_INV_SYNC at the CMD_SYNC, which the next attempt completes")
    func timeout() throws {
        let (guest, endpoint) = try threadGuest(timeout: 5)
        endpoint.setSilent(true)
        try guest.issue(Self.atcInv(6, 0, size: 0), Self.atcInv(6, 0x1000, size: 0))
        #expect(try guest.activeErrors == 0)
        let sync = guest.commandProd
        try InFlightTests.post(guest, Raw.sync(cs: 1), Self.atcInv(6, 0x2000, size: 0))
        #expect(try eventually { try guest.activeErrors == 1 })
        #expect(try guest.commandError == 3)
        #expect(try guest.commandCons == sync)
        #expect(guest.errorLine.count == 1)
        #expect(guest.syncLine.count == 0)
        #expect(endpoint.invalidations.count == 2, "what comes after the CMD_SYNC has not begun")
        // Linux acknowledges, and the same CMD_SYNC is executed again. Late completions disturb nobody.
        endpoint.setSilent(false)
        try guest.write32(0x64, 1)
        try guest.waitForCommands()
        #expect(eventually { guest.syncLine.count == 1 })
        #expect(endpoint.invalidations.count == 3)
        try guest.issue(Self.atcInv(6, 0x3000, size: 0), Raw.sync())
        #expect(try guest.activeErrors == 0)
    }

    @Test("an SMMU that stops waits for no function")
    func stop() throws {
        let (guest, endpoint) = try threadGuest(timeout: 60_000)
        endpoint.setSilent(true)
        let sync = guest.commandProd + 1
        try InFlightTests.post(guest, Self.atcInv(6, 0, size: 0), Raw.sync())
        while try guest.commandCons != sync { sched_yield() }
        guest.smmu.stop()
        #expect(endpoint.invalidations.count == 1)
    }
}
