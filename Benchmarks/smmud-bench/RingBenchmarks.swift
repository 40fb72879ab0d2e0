// DMA by a ring in shared memory: between two CPUs, and what the daemon alone does for a request.

import CLinux
import ControlProtocol
import Glibc
import GuestMemory
import Machine
import SMMUClient
import SMMUv3

/// A word that goes to another CPU and comes back, both polling without a pause.
private final class RoundTrip {
    private let companion = Companion()
    private let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 64)

    deinit { words.deallocate() }

    /// Nanoseconds for there and back.
    func sample(_ count: Int) -> Double {
        // In lines of their own, which no prefetcher takes for neighbours.
        let (there, back) = (words + 16, words + 48)
        let target = UInt64(count)
        there.initialize(to: 0)
        back.initialize(to: 0)
        nonisolated(unsafe) let (theirIn, theirOut) = (there, back)
        let time = companion.together {
            for turn in 1...target {
                while smmud_load_u64(theirIn) != turn {}
                smmud_store_u64(theirOut, turn)
            }
        } mine: {
            for turn in 1...target {
                smmud_store_u64(there, turn)
                while smmud_load_u64(back) != turn {}
            }
        }
        return time / Double(count)
    }
}

/// READs of 64 bytes over a ring that both sides poll, so many outstanding at a time.
private final class PolledRing {
    private let daemon: RunningDaemon
    private let ring: DMARingClient
    private let request: DMARequest

    init(_ board: ServedBoard, outstanding: Int) throws {
        daemon = try RunningDaemon(board)
        let client = try DMAClient(path: daemon.dmaPath)
        ring = try DMARingClient(
            client,
            slotCount: outstanding,
            dataByteCount: 64,
            // It sleeps while the other side is measured.
            pollNanoseconds: 50_000
        )
        let requester = DMARequester.stream(smmu: 0, stream: ServedBoard.stream)
        request = client.transferRequest(.read, requester, RunningDaemon.iova, 64, DMAAttributes())
    }

    func run(_ count: Int) throws {
        var (submitted, answered, failed) = (0, 0, 0)
        while answered < count {
            while submitted < count, ring.submit(request, answerByteCount: 64) { submitted += 1 }
            ring.flush()
            try ring.wait(spins: .max)
            answered += try ring.reap { response, _ in if response.status != .ok { failed += 1 } }
        }
        guard failed == 0 else { throw SocketBenchmarkError(description: "a READ over the ring failed") }
    }
}

/// Reads over a ring against the bare hand-over between the same two CPUs.
private func ringReads(outstanding: Int) throws -> Benchmark.Samplers {
    let (cpus, (ring, roundTrip)) = try Affinity.two {
        (try PolledRing(ServedBoard(), outstanding: outstanding), RoundTrip())
    }
    // The daemon may have to wake up: that is not to count for much.
    return Benchmark.Samplers(
        subject: { count in try withExtendedLifetime(cpus) { try timed(ring.run, count) } },
        floor: { roundTrip.sample($0) },
        leastCount: 4096
    )
}

/// The same against another daemon, likewise on two CPUs.
func ringReads(_ subject: ServedBoard, against floor: ServedBoard, outstanding: Int) throws
    -> Benchmark.Samplers
{
    let (cpus, (subject, floor)) = try Affinity.two {
        (
            try PolledRing(subject, outstanding: outstanding),
            try PolledRing(floor, outstanding: outstanding)
        )
    }
    return Benchmark.Samplers(
        subject: { count in try withExtendedLifetime(cpus) { try timed(subject.run, count) } },
        floor: { try timed(floor.run, $0) },
        leastCount: 4096
    )
}

/// The daemon's side of a ring without its thread: 64 chains are made available, served, and published.
private final class ServedRing {
    private static let slotCount = 64
    private let board: DrivenBoard
    private let memory: MemoryRegion
    private let layout: DMARingLayout
    // Behind pointers, as accesses to an object's properties are checked and would count.
    private let queue = UnsafeMutablePointer<RingQueue>.allocate(capacity: 1)
    private let requests = UnsafeMutablePointer<RingRequests>.allocate(capacity: 1)
    private var index: UInt16 = 0

    init(_ opcode: DMAOpcode) throws {
        // Inline: how often a driver polls for a thread is in no two runs the same, and counts would say so.
        board = try DrivenBoard(pageCount: 1) { $0.commandExecution = .inline }
        layout = try DMARingLayout(size: UInt64(2 * Self.slotCount), at: 0)
        memory = try MemoryRegion.anonymous(byteCount: 64 << 10, name: "bench-ring")
        queue.initialize(to: RingQueue(memory, layout))
        requests.initialize(to: RingRequests(board.machine, DMALimits()) { false })
        for slot in 0..<UInt16(Self.slotCount) { try describe(slot, opcode) }
    }

    deinit {
        queue.deinitialize(count: 1).deallocate()
        requests.deinitialize(count: 1).deallocate()
    }

    private func describe(_ slot: UInt16, _ opcode: DMAOpcode) throws {
        let start = (16 << 10) + Int(slot) * 256
        let payloadByteCount = opcode == .write ? 64 : 0
        let request = DMARequest(
            opcode,
            id: UInt64(slot),
            flags: .direct,
            stream: GeneratedBoard.stream(of: 0),
            iova: DrivenBoard.pages,
            count: 64,
            payloadByteCount: payloadByteCount
        )
        request.write(to: UnsafeMutableRawBufferPointer(start: memory.base + start, count: 64))
        let descriptors = [
            DMARingDescriptor(
                offset: UInt64(start),
                byteCount: UInt32(64 + payloadByteCount),
                flags: DMARingLayout.hasNext,
                next: 2 * slot + 1
            ),
            DMARingDescriptor(
                offset: UInt64(start + 128),
                byteCount: 128,
                flags: DMARingLayout.isWritable
            ),
        ]
        for (number, descriptor) in descriptors.enumerated() {
            let place = memory.base + Int(layout.descriptor(2 * slot + UInt16(number)))
            smmud_store_u64(place, descriptor.offset)
            smmud_store_u64(place + 8, descriptor.high)
        }
        // Entries that no round changes: the ring has two for each slot.
        for half in [slot, slot + UInt16(Self.slotCount)] {
            smmud_store_u16(memory.base + Int(layout.availableEntry(half)), 2 * slot)
        }
    }

    /// Serves at least so many requests.
    func run(_ count: Int) throws {
        var done = 0
        while done < count {
            index &+= UInt16(Self.slotCount)
            smmud_store_u16(memory.base + Int(layout.available) + 2, index)
            while true {
                let taken = try queue.pointee.take()
                guard taken > 0 else { break }
                for place in 0..<taken {
                    let chain = queue.pointee[place]
                    queue.pointee.complete(chain.head, byteCount: try requests.pointee.serve(chain))
                }
                done += taken
            }
            _ = queue.pointee.publish()
        }
        // One answer stands for all: they are the same.
        let answer = DMAResponse(
            header: UnsafeRawBufferPointer(start: memory.base + (16 << 10) + 128, count: 64)
        )
        guard answer.status == .ok, answer.transferred == 64 else {
            throw SocketBenchmarkError(description: "a request of the ring failed")
        }
    }
}

private func served(_ name: String, _ opcode: DMAOpcode) -> Benchmark {
    Benchmark(
        name: name,
        subject: "\(opcode == .read ? "read" : "write") of 64 B, the daemon's side of a ring",
        floor: "memcpy of the same 64 B",
        prepare: {
            let ring = try ServedRing(opcode)
            let memory = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 64)
            memory.initializeMemory(as: UInt8.self, repeating: 1, count: 128)
            return (
                { try ring.run($0) },
                { count in
                    for _ in 0..<count {
                        memcpy(memory, memory + 64, 64)
                        smmud_compiler_barrier()
                    }
                }
            )
        }
    )
}

var ringBenchmarks: [Benchmark] {
    [
        Benchmark(
            name: "dma-ring",
            subject: "read of 64 B over a ring, both sides polling",
            floor: "a word to the other CPU and back",
            samplers: { try ringReads(outstanding: 1) }
        ),
        Benchmark(
            name: "dma-ring-64",
            subject: "the same, 64 outstanding: one of them",
            floor: "a word to the other CPU and back",
            samplers: { try ringReads(outstanding: 64) }
        ),
        served("ring-serve", .read),
        served("ring-serve-write", .write),
    ]
}
