// Page requests: the PRI queue, its registers, overflow and aborts, and the responses.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import SystemBus
import Testing

@testable import SMMUv3

@Suite("PRI")
struct PageRequestTests {
    static let priqen: UInt32 = 0b1_1111
    typealias Response = PageRequestGroupResponse

    /// A guest with a PRI queue, enabled, and its interrupt.
    private struct Setup {
        let guest: TestGuest
        let endpoint = RecordingEndpoint()
        let queue: UInt64
        let log2: UInt64
        var cons: UInt64 = 0

        init(log2: UInt64 = 2, lo: Bool = false, pps: Bool = true, at place: UInt64? = nil) throws {
            guest = try TestGuest.full { $0.identification.idr3.pps = pps }
            self.log2 = log2
            queue = place ?? guest.allocate(16 << log2, alignment: max(32, 16 << log2))
            try guest.write64(0xC0, queue | log2)
            try guest.write32(0x1_00C8, 0)
            try guest.write32(0x1_00CC, 0)
            try guest.write32(0xDC, lo ? 0x8000_0000 : 0)
            try guest.write32(0x20, PageRequestTests.priqen)
            try guest.write32(0x50, 0b111)
            guest.smmu.connect(endpoint, at: StreamID(6))
        }

        func request(
            _ address: UInt64,
            group: UInt16,
            pasid: UInt32? = nil,
            last: Bool = true,
            w: Bool = false
        ) {
            guest.port(6).sendPageRequest(
                PageRequest(
                    address: IOVirtualAddress(address),
                    substreamID: pasid.map { SubstreamID($0) },
                    group: group,
                    isLast: last,
                    wantsRead: true,
                    wantsWrite: w
                )
            )
        }

        var prod: UInt32 { get throws { try guest.read32(0x1_00C8) } }

        /// Takes every entry out of the queue, and acknowledges an overflow.
        mutating func take() throws -> [[UInt64]] {
            var entries: [[UInt64]] = []
            let mask: UInt64 = (2 << log2) - 1
            while UInt64(try prod) & mask != cons {
                let entry = queue + (cons & (mask >> 1)) * 16
                entries.append([try guest.peek(entry), try guest.peek(entry + 8)])
                cons = (cons + 1) & mask
            }
            try guest.write32(0x1_00CC, UInt32(cons) | (try prod & 0x8000_0000))
            return entries
        }
    }

    @Test("entries of the queue, to the bit")
    func goldenWords() throws {
        var setup = try Setup(log2: 3)
        func send(_ request: PageRequest) { setup.guest.port(6).sendPageRequest(request) }
        let address = IOVirtualAddress(0x1234_5678_9ABC_DEF0)
        send(PageRequest(address: address, group: 0x1FF, isLast: false, wantsRead: true, wantsWrite: false))
        // X and Priv mean nothing without a PASID; the group has 9 bits.
        send(
            PageRequest(
                address: address,
                group: 0xFE03,
                wantsRead: false,
                wantsWrite: true,
                wantsExecute: true,
                isPrivileged: true
            )
        )
        send(
            PageRequest(
                address: address,
                substreamID: SubstreamID(0xABCDE),
                group: 1,
                wantsRead: true,
                wantsWrite: true,
                wantsExecute: true,
                isPrivileged: true
            )
        )
        // A stop marker.
        send(
            PageRequest(
                address: IOVirtualAddress(0),
                substreamID: SubstreamID(5),
                group: 0,
                wantsRead: false,
                wantsWrite: false
            )
        )
        #expect(
            try setup.take() == [
                [0x1000_0000_0000_0006, 0x1234_5678_9ABC_D1FF],
                [0x6000_0000_0000_0006, 0x1234_5678_9ABC_D003],
                [0xFC0A_BCDE_0000_0006, 0x1234_5678_9ABC_D001],
                [0xC000_0005_0000_0006, 0],
            ]
        )
        #expect(setup.endpoint.responses == [], "that is for software to do")
        #expect(try setup.guest.takeEvents() == [])
    }

    @Test("CMD_PRI_RESP: each code as PCIe has it, with PASID and without; its illegal forms")
    func responses() throws {
        let setup = try Setup()
        let guest = setup.guest
        // SSV 11, SubstreamID 31:12, StreamID 63:32, PRGIndex 72:64, Resp 77:76.
        func response(_ code: UInt64, group: UInt64, pasid: UInt64? = nil, stream: UInt64 = 6) -> RawCommand {
            RawCommand(
                low: 0x41 | bit(pasid != nil, 11) | field(pasid ?? 0, 12) | field(stream, 32),
                high: group | code << 12
            )
        }
        try guest.issue(
            response(0, group: 0x1FF),
            response(1, group: 7, pasid: 0xF_FFFF),
            response(2, group: 0),
            response(2, group: 0, stream: 77)
        )
        #expect(
            setup.endpoint.responses == [
                Response(group: 0x1FF, substreamID: nil, code: .responseFailure),
                Response(group: 7, substreamID: SubstreamID(0xF_FFFF), code: .invalidRequest),
                Response(group: 0, substreamID: nil, code: .success),
            ]
        )
        #expect(Response.Code.responseFailure.rawValue == 0b1111)
        #expect(Response.Code.invalidRequest.rawValue == 0b0001)
        #expect(Response.Code.success.rawValue == 0b0000)
        // SMMUEN is 0: IGNORED, but ILLEGAL comes first.
        try guest.write32(0x20, 0b1_1110)
        try guest.issue(response(2, group: 0))
        #expect(setup.endpoint.responses.count == 3)
        try guest.issue(response(3, group: 0))
        #expect(try guest.commandError == 1)
        let without = try TestGuest()
        try without.issue(response(2, group: 0))
        #expect(try without.commandError == 1)
    }

    @Test("overflow: nothing is written until it is acknowledged; the last of a group is told to try again")
    func overflow() throws {
        var setup = try Setup(log2: 1)
        setup.request(0x1000, group: 1)
        setup.request(0x2000, group: 2)
        #expect(try setup.prod == 2)
        setup.request(0x3000, group: 3, last: false)
        #expect(try setup.prod == 0x8000_0002, "OVFLG")
        #expect(setup.endpoint.responses == [])
        setup.request(0x4000, group: 3)
        setup.request(0x5000, group: 4, pasid: 9)
        // A stop marker is dropped.
        setup.guest.port(6).sendPageRequest(
            PageRequest(
                address: IOVirtualAddress(0),
                substreamID: SubstreamID(9),
                group: 5,
                wantsRead: false,
                wantsWrite: false
            )
        )
        let expected = [
            Response(group: 3, substreamID: nil, code: .success),
            Response(group: 4, substreamID: SubstreamID(9), code: .success),
        ]
        #expect(setup.endpoint.responses == expected)
        // There is room, but the overflow is not acknowledged.
        try setup.guest.write32(0x1_00CC, 1)
        setup.request(0x6000, group: 6)
        #expect(try setup.prod == 0x8000_0002)
        #expect(setup.endpoint.responses.count == 3)
        #expect(try setup.take().count == 2)
        setup.request(0x7000, group: 7)
        #expect(try setup.prod == 0x8000_0003)
        #expect(try setup.take() == [[0x5000_0000_0000_0006, 0x7007]])
        // The next overflow toggles it back.
        for group in 0..<3 as Range<UInt16> { setup.request(0x8000, group: group) }
        #expect(try setup.prod == 1)
    }

    @Test("without PPS the PASID of an overflow's response is the stream's choice")
    func overflowWithoutPPS() throws {
        for ppar in [false, true] {
            let setup = try Setup(log2: 0, pps: false)
            var ste = STEWords.bypass
            // PPAR, bit 82.
            ste.extra[1] = bit(ppar, 82 - 64)
            try setup.guest.setSTE(6, ste)
            setup.request(0x1000, group: 1)
            setup.request(0x2000, group: 2, pasid: 4)
            setup.request(0x2000, group: 3)
            #expect(
                setup.endpoint.responses == [
                    Response(group: 2, substreamID: ppar ? SubstreamID(4) : nil, code: .success),
                    Response(group: 3, substreamID: nil, code: .success),
                ]
            )
            try setup.guest.setSTE(6, STEWords(v: false))
            setup.request(0x2000, group: 4, pasid: 4)
            #expect(
                setup.endpoint.responses.last == Response(group: 4, substreamID: nil, code: .responseFailure)
            )
            #expect(try setup.guest.takeEvents() == [])
        }
    }

    @Test("where the queue is off, every request fails at once: PRIQEN, SMMUEN, PRIQ_ABT_ERR, no PRI at all")
    func refusals() throws {
        let failure = Response(group: 1, substreamID: nil, code: .responseFailure)
        for cr0 in [0b1_1101, 0b1_1110] as [UInt32] {
            let setup = try Setup()
            try setup.guest.write32(0x20, cr0)
            #expect(try setup.guest.read32(0x24) == cr0)
            setup.request(0x1000, group: 1, pasid: 3, last: false)
            #expect(setup.endpoint.responses == [failure])
            #expect(try setup.prod == 0)
        }
        // Nobody takes the write.
        let setup = try Setup(at: 0x44_0000_0000)
        setup.request(0x1000, group: 1)
        #expect(setup.endpoint.responses == [failure])
        #expect(try setup.guest.activeErrors == 1 << 3, "PRIQ_ABT_ERR")
        #expect(setup.guest.errorLine.count == 1)
        #expect(setup.guest.pageRequestLine.count == 0)
        #expect(try setup.prod == 0)
        setup.request(0x1000, group: 1)
        #expect(setup.endpoint.responses == [failure, failure])
        #expect(setup.guest.errorLine.count == 1, "active already")
        try setup.guest.write32(0x64, 1 << 3)
        #expect(try setup.guest.activeErrors == 0)

        let without = try TestGuest()
        let endpoint = RecordingEndpoint()
        without.smmu.connect(endpoint, at: StreamID(6))
        without.port(6).sendPageRequest(
            PageRequest(address: IOVirtualAddress(0), group: 1, wantsRead: true, wantsWrite: false)
        )
        #expect(endpoint.responses == [failure])
    }

    @Test("the interrupt: when the queue becomes non-empty, or with LO for each last of a group")
    func interrupts() throws {
        var setup = try Setup(log2: 1)
        setup.request(0x1000, group: 1, last: false)
        setup.request(0x1000, group: 1)
        #expect(setup.guest.pageRequestLine.count == 1)
        setup.request(0x1000, group: 2)
        #expect(setup.guest.pageRequestLine.count == 1)
        _ = try setup.take()
        setup.request(0x1000, group: 3)
        #expect(setup.guest.pageRequestLine.count == 2)

        let last = try Setup(log2: 1, lo: true)
        last.request(0x1000, group: 1, last: false)
        #expect(last.guest.pageRequestLine.count == 0)
        last.request(0x1000, group: 1)
        #expect(last.guest.pageRequestLine.count == 1)
        last.request(0x1000, group: 2)
        #expect(last.guest.pageRequestLine.count == 2, "dropped by the overflow, and told all the same")
        try last.guest.write32(0x50, 0b101)
        last.request(0x1000, group: 2)
        #expect(last.guest.pageRequestLine.count == 2)
        try last.guest.write32(0x50, 0b111)
        try last.guest.write32(0x20, 0b1_1101)
        last.request(0x1000, group: 2)
        #expect(last.guest.pageRequestLine.count == 2, "not where the queue is off")
    }

    @Test("the message of the PRI queue, and what becomes of one that nobody takes")
    func messages() throws {
        var setup = try Setup()
        let guest = setup.guest
        let doorbell = try MessageTests.ring(guest)
        try guest.write32(0x50, 0b101)
        try guest.write64(0xD0, MessageTests.doorbell + 0x40)
        try guest.write64(0xD8, 0x7654_3210)
        try guest.write32(0x50, 0b111)
        // While its enable is 1 they take no writes.
        try guest.write64(0xD0, 0)
        #expect(try guest.read64(0xD0) == MessageTests.doorbell + 0x40)
        setup.request(0x1000, group: 1)
        #expect(doorbell.messages == [.init(offset: 0x40, data: 0x7654_3210, width: .word)])
        #expect(guest.pageRequestLine.count == 1)
        _ = try setup.take()
        try guest.write32(0x50, 0b101)
        try guest.write64(0xD0, MessageTests.nowhere)
        try guest.write32(0x50, 0b111)
        setup.request(0x1000, group: 2)
        #expect(try guest.activeErrors == 1 << 6, "MSI_PRIQ_ABT_ERR")
        #expect(try guest.read32(0x54) == 0b111)
        #expect(try setup.take().count == 1)
    }

    @Test("registers: writable bits, guards, and RES0 where there is no PRI")
    func registers() throws {
        let guest = try TestGuest.full { $0.boots = false }
        try guest.write64(0xC0, ~0)
        try guest.write64(0xD0, ~0)
        try guest.write64(0xD8, ~0)
        try guest.write32(0x1_00C8, ~0)
        try guest.write32(0x1_00CC, ~0)
        #expect(try guest.read64(0xC0) == 0x400F_FFFF_FFFF_FFFF)
        #expect(try guest.read64(0xD0) == 0x000F_FFFF_FFFF_FFFC)
        #expect(try guest.read64(0xD8) == 0x8000_003F_FFFF_FFFF)
        #expect(try guest.read32(0x1_00C8) == 0x8000_07FF, "10 bits of index, and the wrap flag")
        #expect(try guest.read32(0x1_00CC) == 0x800F_FFFF)
        // PRIQEN guards BASE and PROD, though SMMUEN is 0; CONS it does not.
        try guest.write32(0x20, 0b10)
        #expect(try guest.read32(0x24) == 0b10)
        try guest.write64(0xC0, 0)
        try guest.write32(0x1_00C8, 0)
        try guest.write32(0x1_00CC, 5)
        #expect(try guest.read64(0xC0) == 0x400F_FFFF_FFFF_FFFF)
        #expect(try guest.read32(0x1_00C8) == 0x8000_07FF)
        #expect(try guest.read32(0x1_00CC) == 5)
        // CR1.QUEUE_* waits for it, too.
        try guest.write32(0x28, 0x3F)
        #expect(try guest.read32(0x28) == 0)

        let without = try TestGuest()
        for offset in [0xC0, 0xC4, 0xD0, 0xD4, 0xD8, 0xDC, 0x1_00C8, 0x1_00CC] as [UInt64] {
            try without.write32(offset, ~0)
            #expect(try without.read32(offset) == 0)
        }
        try without.write32(0x20, 0b1_1111)
        #expect(try without.read32(0x24) == 0b0_1101)
        try without.write32(0x50, 0b111)
        #expect(try without.read32(0x50) == 0b101)
    }

    @Test("LO is there without messages, too")
    func lastOnlyWithoutMessages() throws {
        let guest = try TestGuest.full {
            $0.boots = false
            $0.identification.idr0.msi = false
        }
        try guest.write64(0xD0, ~0)
        try guest.write64(0xD8, ~0)
        #expect(try guest.read64(0xD0) == 0)
        #expect(try guest.read64(0xD8) == 0x8000_0000_0000_0000)
    }

    @Test("page 0 has the queue's pointers, too, where it aliases page 1")
    func page1Alias() throws {
        let guest = try TestGuest.full {
            $0.boots = false
            $0.options.aliasesPage1InPage0 = true
        }
        try guest.write64(0xC0, 3)
        try guest.write32(0xC8, 0x8000_0005)
        try guest.write32(0xCC, 7)
        #expect(try guest.read32(0x1_00C8) == 0x8000_0005)
        #expect(try guest.read32(0xC8) == 0x8000_0005)
        #expect(try guest.read32(0x1_00CC) == 7)
        #expect(try guest.read32(0xCC) == 7)
    }
}
