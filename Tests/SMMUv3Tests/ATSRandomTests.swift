// ATS over random tables: what a function is granted is what its transactions would have been.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import SeededRandomness
import Testing

@testable import SMMUv3

@Suite("ATS over random tables")
struct ATSRandomTests {
    private enum Access {
        case output(UInt64)
        case event(UInt64)
    }

    /// Where an unprivileged data access would go, by memory as it is.
    private static func access(
        _ guest: TestGuest,
        _ address: UInt64,
        _ kind: TransactionKind,
        _ isSplit: Bool
    ) -> Access {
        let transaction = Transaction(
            streamID: StreamID(UInt32(RandomStream.id)),
            attributes: .plain,
            kind: kind,
            address: IOVirtualAddress(address)
        )
        switch guest.smmu.probe(transaction) {
        case .translated(let translation):
            return .output(isSplit ? translation.intermediate ?? address : translation.output.rawValue)
        case .fault(let fault):
            return .event(UInt64(fault.event?.rawValue ?? 0))
        }
    }

    /// The permissions that the accesses give; nil is Completer Abort.
    private static func expected(_ read: Access, _ write: Access, noWrite: Bool)
        -> (r: Bool, w: Bool, output: UInt64)?
    {
        let denied = (false, false, 0 as UInt64)
        var writable = false
        if !noWrite {
            switch write {
            case .output: writable = true
            case .event(0x13): break
            case .event(0x10...0x12): return denied
            case .event: return nil
            }
        }
        switch (read, write) {
        case (.output(let output), .output): return (true, true, output)
        case (.output(let output), .event): return (true, false, output)
        case (.event, .output(let output)) where writable: return (false, true, output)
        case (.event(0x10...0x13), _): return denied
        case (.event, _): return nil
        }
    }

    @Test(
        "a translation request is answered as transactions to the whole range would end",
        arguments: [(0b101, 1), (0b110, 1), (0b111, 1), (0b111, 2)] as [(UInt64, UInt64)]
    )
    func agreement(_ config: UInt64, _ eats: UInt64) throws {
        var grants = 0
        var refusals = 0
        for seed in 1...40 as ClosedRange<UInt64> {
            var random = SplitMix(seed: seed &* 104_729 &+ config)
            let stream = try RandomStream(config: config, &random)
            let guest = stream.guest
            try guest.setATS()
            let ste = try guest.steAddress(RandomStream.id)
            try guest.poke(ste + 8, try guest.peek(ste + 8) | eats << 28)
            try guest.sync(Raw.cfgiSTE(RandomStream.id), Raw.tlbiNHAll(vmid: RandomStream.vmid))
            let isSplit = eats == 2
            for address in stream.addresses {
                let noWrite = random.next() % 2 == 0
                let place = "seed \(seed) address \(String(address, radix: 16)) NW \(noWrite)"
                let expected = Self.expected(
                    Self.access(guest, address, .read, isSplit),
                    Self.access(guest, address, .write, isSplit),
                    noWrite: noWrite
                )
                let answer = guest.ask(UInt32(RandomStream.id), address, nw: noWrite)
                guard case .success(let translation) = answer else {
                    #expect(answer == .completerAbort && expected == nil, "\(place)")
                    continue
                }
                guard let expected else {
                    Issue.record("\(place): \(translation), not Completer Abort")
                    continue
                }
                #expect(translation.canRead == expected.r, "\(place)")
                #expect(translation.canWrite == expected.w, "\(place)")
                guard !translation.isDenied else {
                    refusals += 1
                    continue
                }
                grants += 1
                let mask = (1 << UInt64(translation.log2Bytes)) - 1 as UInt64
                #expect(translation.output | address & mask == expected.output, "\(place)")
                // Anywhere else in the range it is the same.
                for _ in 0..<4 {
                    let other = address & ~mask | random.next() & mask
                    let kind: TransactionKind = expected.r ? .read : .write
                    guard case .output(let output) = Self.access(guest, other, kind, isSplit) else {
                        Issue.record("\(place): no access at \(String(other, radix: 16))")
                        continue
                    }
                    #expect(output == translation.output | other & mask, "\(place)")
                }
            }
            #expect(try guest.takeEvents() == [])
        }
        #expect(grants > 50)
        #expect(refusals > 50)
    }
}
