// One ring of a DMA connection: the thread that serves it, and how it is woken and stopped.

import CLinux
import ControlProtocol
import GuestMemory
import HostIO
import Synchronization
import SystemPackage

/// A ring that is served; it ends when it is closed or let go of.
final class DMARing: Sendable {
    /// What the thread and its owner share.
    private final class Shared: Sendable {
        let isStopping = Atomic(false)
        let wake: WakeEvent
        /// Why the ring is served no further, once that is so.
        let breakage = Mutex<String?>(nil)

        init() throws(Errno) { wake = try WakeEvent() }
    }

    private let shared: Shared
    private let thread: SystemThread.Handle
    private let isJoined = Atomic(false)

    /// Starts to serve a ring.
    ///
    /// - Parameters:
    ///   - kick: What the client signals when it has made chains available.
    ///   - call: What the client is signalled by when chains are done.
    ///   - pollNanoseconds: How long to look for more before waiting for a signal; all ones is for ever.
    /// - Throws: A rejection: no eventfds, a ring that does not lie in the buffer, or no thread to be had.
    init(
        in memory: MemoryRegion,
        _ layout: DMARingLayout,
        kick: consuming OwnedDescriptor,
        call: consuming OwnedDescriptor,
        pollNanoseconds: UInt64,
        machine: Machine,
        limits: DMALimits
    ) throws(DMARejection) {
        guard smmud_is_eventfd(kick.rawValue), smmud_is_eventfd(call.rawValue) else {
            throw DMARejection(.parameter, "RING_OPEN takes two eventfds: to be signalled by, and to signal")
        }
        // Looked at here, so that what is wrong is the answer's.
        try RingQueue.check(memory, layout)
        smmud_prepare_eventfd_signals()
        let (kick, call) = (kick.release(), call.release())
        do throws(Errno) {
            let shared = try Shared()
            self.shared = shared
            thread = try SystemThread.start(named: "smmu-dma-ring") {
                let isStopping: @Sendable () -> Bool = { shared.isStopping.load(ordering: .relaxed) }
                var server = RingServer(
                    queue: RingQueue(memory, layout),
                    requests: RingRequests(machine, limits, isStopping: isStopping),
                    kick: OwnedDescriptor(adopting: kick),
                    call: OwnedDescriptor(adopting: call),
                    wake: shared.wake,
                    pollNanoseconds: pollNanoseconds
                )
                server.run(isStopping)
                shared.breakage.withLock { [reason = server.breakage] in $0 = reason }
            }
        } catch {
            _ = OwnedDescriptor(adopting: kick)
            _ = OwnedDescriptor(adopting: call)
            throw DMARejection(.failed, "the ring cannot be served: \(error)")
        }
    }

    deinit { stop() }

    /// Ends the ring: when it returns nobody touches its memory.
    func stop() {
        guard !isJoined.exchange(true, ordering: .sequentiallyConsistent) else { return }
        shared.isStopping.store(true, ordering: .relaxed)
        shared.wake.signal()
        SystemThread.join(thread)
    }

    /// Why the ring was served no further; nil where all was well.
    ///
    /// Known once it is stopped.
    var breakage: String? { shared.breakage.withLock { $0 } }
}

/// The thread's side of a ring.
private struct RingServer: ~Copyable {
    private var queue: RingQueue
    private var requests: RingRequests
    private let kick: OwnedDescriptor
    private let call: OwnedDescriptor
    private let wake: WakeEvent
    private let pollNanoseconds: UInt64
    private(set) var breakage: String?

    /// How many chains are done before the client is shown them, where more wait.
    private static var publishedCount: Int { 16 }

    init(
        queue: consuming RingQueue,
        requests: RingRequests,
        kick: consuming OwnedDescriptor,
        call: consuming OwnedDescriptor,
        wake: WakeEvent,
        pollNanoseconds: UInt64
    ) {
        self.queue = queue
        self.requests = requests
        self.kick = kick
        self.call = call
        self.wake = wake
        self.pollNanoseconds = pollNanoseconds
    }

    /// Serves until told to stop, or until the ring makes no sense.
    mutating func run(_ isStopping: () -> Bool) {
        let epoll = smmud_epoll_create()
        guard epoll >= 0, smmud_epoll_watch(epoll, kick.rawValue, 0) == 0,
            smmud_epoll_watch(epoll, wake.descriptor, 1) == 0
        else {
            breakage = "the daemon has no descriptors left"
            if epoll >= 0 { _ = OwnedDescriptor(adopting: epoll) }
            end()
            return
        }
        let poller = OwnedDescriptor(adopting: epoll)
        // The kernel watches the file, which the client has open too.
        defer { smmud_epoll_forget(poller.rawValue, kick.rawValue) }
        queue.setNotify(false)
        do throws(RingBreakage) {
            while !isStopping() {
                try serveAvailable(isStopping)
                guard !look(isStopping) else { continue }
                queue.setNotify(true)
                if !queue.hasMore, !isStopping() { Self.wait(poller) }
                queue.setNotify(false)
            }
        } catch {
            breakage = error.reason
            end()
        }
    }

    private func end() {
        queue.markBroken()
        smmud_signal_eventfd(call.rawValue)
    }

    private static func wait(_ poller: borrowing OwnedDescriptor) {
        var tokens: (UInt64, UInt64) = (0, 0)
        withUnsafeMutableBytes(of: &tokens) {
            _ = smmud_epoll_wait(poller.rawValue, $0.bindMemory(to: UInt64.self).baseAddress, 2)
        }
    }

    private mutating func serveAvailable(_ isStopping: () -> Bool) throws(RingBreakage) {
        var count = 0
        do throws(RingBreakage) {
            while queue.hasMore {
                let taken = try queue.take()
                guard taken > 0 else { break }
                for index in 0..<taken {
                    let chain = queue[index]
                    queue.complete(chain.head, byteCount: try requests.serve(chain))
                    count += 1
                }
                if count >= Self.publishedCount {
                    count = 0
                    publish()
                    guard !isStopping() else { return }
                }
            }
        } catch {
            // What is complete is shown whatever comes after it.
            if count > 0 { publish() }
            throw error
        }
        // Before anything else is looked at: somebody waits for it.
        if count > 0 { publish() }
        guard !queue.isLost else {
            throw RingBreakage(reason: "the buffer's file was truncated; share it again")
        }
    }

    @inline(__always)
    private func publish() { if queue.publish() { smmud_signal_eventfd(call.rawValue) } }

    /// Looks for more without waiting for a signal, as long as was agreed.
    ///
    /// - Returns: Whether there is some.
    private func look(_ isStopping: () -> Bool) -> Bool {
        guard pollNanoseconds > 0 else { return queue.hasMore }
        // Who works in turns with us has been answered just now: a pause would be longer than he needs.
        for _ in 0..<256 {
            if queue.hasMore { return true }
            queue.fetchExpected()
        }
        let start = smmud_monotonic_nanoseconds()
        while !isStopping() {
            for _ in 0..<64 {
                if queue.hasMore { return true }
                queue.fetchExpected()
                smmud_cpu_pause()
            }
            guard UInt64(clamping: smmud_monotonic_nanoseconds() - start) < pollNanoseconds else {
                return false
            }
        }
        return true
    }
}
