// DMA of real threads against unmap.

import AddressSpace
import ControlProtocol
import DeviceModel
import Glibc
import Machine
import Synchronization
import SystemBus
import Testing

@Suite("DMA against unmap: nothing lands once unmap has returned")
struct RaceTests {
    /// Threads that write through ports of their own until they are told to stop.
    private final class Writers: @unchecked Sendable {
        // Unchecked: everything that changes is atomic.
        let isStopping = Atomic(false)
        let landed = Atomic<UInt64>(0)
        let refused = Atomic<UInt64>(0)
        private let machine: Machine
        private let identity: RequesterIdentity
        private let address: IOVirtualAddress
        private let byteCount: Int
        private var threads: [pthread_t] = []

        init(_ machine: Machine, _ identity: RequesterIdentity, _ address: IOVirtualAddress, byteCount: Int) {
            self.machine = machine
            self.identity = identity
            self.address = address
            self.byteCount = byteCount
        }

        func start(_ count: Int) {
            for _ in 0..<count {
                var thread = pthread_t()
                pthread_create(
                    &thread,
                    nil,
                    { context in
                        guard let context else { return nil }
                        Unmanaged<Writers>.fromOpaque(context).takeRetainedValue().run()
                        return nil
                    },
                    Unmanaged.passRetained(self).toOpaque()
                )
                threads.append(thread)
            }
        }

        private func run() {
            let port = machine.makePort(for: identity)
            let data = [UInt8](repeating: 0xDD, count: byteCount)
            while !isStopping.load(ordering: .relaxed) {
                do {
                    try data.withUnsafeBytes { try port.write($0, at: address, .plain) }
                    landed.wrappingAdd(1, ordering: .relaxed)
                } catch {
                    refused.wrappingAdd(1, ordering: .relaxed)
                }
            }
        }

        func stop() {
            isStopping.store(true, ordering: .relaxed)
            for thread in threads { pthread_join(thread, nil) }
        }
    }

    @Test("after unmap has returned, its memory holds what was put there", arguments: [64, 4096, 16384])
    func nothingLandsAfterUnmap(_ byteCount: Int) throws {
        let machine = try Machine(board: try TestBoard.load(TestBoard.small))
        machine.startDriver()
        defer { machine.stop() }
        let client = TestClient(machine)
        let endpoint = try #require(machine.endpoint(named: "dma@40000000"))
        let identity = RequesterIdentity(smmuIndex: endpoint.smmuIndex, streamID: endpoint.streams[0])
        let physical: UInt64 = 0x8800_0000
        let iova: UInt64 = 0x40_0000
        let writers = Writers(machine, identity, IOVirtualAddress(iova), byteCount: byteCount)
        writers.start(2)
        defer { writers.stop() }

        for round in 0..<150 {
            _ = try client.call(
                Methods.IOMMUMap.self,
                .init(device: "dma@40000000", iova: Hex(iova), address: Hex(physical), length: 0x4000)
            )
            let before = writers.landed.load(ordering: .relaxed)
            while writers.landed.load(ordering: .relaxed) < before + 3 { sched_yield() }
            _ = try client.call(Methods.IOMMUUnmap.self, .init(device: "dma@40000000", iova: Hex(iova)))
            let canary = UInt8(truncatingIfNeeded: round & 0x7F)
            try machine.bus.fill(canary, byteCount: 0x4000, at: PhysicalAddress(physical))
            // The writers go on trying meanwhile, and are refused.
            let refused = writers.refused.load(ordering: .relaxed)
            while writers.refused.load(ordering: .relaxed) < refused + 20 { sched_yield() }
            let bytes = try machine.bus.read(0x4000, at: PhysicalAddress(physical))
            let isUntouched = bytes.allSatisfy { $0 == canary }
            #expect(isUntouched, "a write landed after unmap in round \(round)")
            guard isUntouched else { return }
        }
    }
}
