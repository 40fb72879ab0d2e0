// A ring of DMA requests in shared memory: no system call for a request while both sides are at work.

import CLinux
package import ControlProtocol
import Glibc

/// Requests and answers of one ring (docs/dma-ring.md).
///
/// The ring's memory is cut into slots, each with a request, its data and its answer; so many requests can be
/// outstanding. Belongs to one thread at a time. It outlives neither its connection nor the daemon.
package final class DMARingClient {
    private let client: DMAClient
    /// The daemon writes it at any time.
    let mapping: SharedMapping
    let layout: DMARingLayout
    private let buffer: UInt32
    private let handle: UInt32
    private let kick: CInt
    private let call: CInt
    private let dataByteCount: Int
    private let firstSlot: Int
    private let slotByteCount: Int
    private let base: UnsafeMutableRawPointer
    private let available: UnsafeMutableRawPointer
    private let used: UnsafeMutableRawPointer
    private let mask: UInt16
    /// What this side knows of its slots; nothing of it is read from the descriptors, which the daemon can write.
    private let slots: UnsafeMutablePointer<Slot>
    /// Slots that hold no request: the first ``unusedCount`` entries, the next to be taken last.
    private let free: UnsafeMutablePointer<UInt16>
    private var nextAvailable: UInt16 = 0
    private var publishedAvailable: UInt16 = 0
    private var nextUsed: UInt16 = 0
    private var wantsInterrupt = true
    /// The slot that was submitted last.
    private var lastSlot: UInt16 = 0

    private struct Slot {
        /// Where its answer is; 0 where it holds no request.
        var answer = 0
        /// What its descriptors say.
        ///
        /// They are written anew only where that changes, and stay in both processors' caches.
        var payloadByteCount = -1
        var answerByteCount = -1
    }

    /// How many requests can be outstanding.
    package let slotCount: Int
    /// How many are.
    package var outstandingCount: Int { slotCount - unusedCount }
    /// How many may still be submitted.
    package var freeCount: Int { unusedCount }
    /// The same.
    //
    // Private: each access to what others can see is checked at run time.
    private var unusedCount: Int

    /// Makes a ring and has the daemon serve it.
    ///
    /// - Parameters:
    ///   - client: The connection that it belongs to.
    ///   - slotCount: How many requests can be outstanding: a power of two, 1 to 16384.
    ///   - dataByteCount: How many bytes of data each can have; rounded up to cache lines.
    ///   - pollNanoseconds: How long the daemon looks for more before it waits for a signal; all ones is for ever.
    package init(
        _ client: DMAClient,
        slotCount: Int,
        dataByteCount: Int,
        pollNanoseconds: UInt64 = 0
    ) throws(ClientError) {
        guard (1...16384).contains(slotCount), slotCount & (slotCount - 1) == 0,
            (0...(1 << 30)).contains(dataByteCount)
        else {
            throw .local("a ring has a power of two of slots, up to 16384, of up to 1 GiB each")
        }
        do throws(DMARejection) {
            layout = try DMARingLayout(size: UInt64(slotCount) * 2, at: 0)
        } catch { throw .local(error.message) }
        self.client = client
        self.slotCount = slotCount
        // A refusal's sentence needs some room too.
        self.dataByteCount = max(192, (dataByteCount + 63) & ~63)
        slotByteCount = 2 * DMAProtocol.headerByteCount + self.dataByteCount
        firstSlot = (Int(layout.end) + 63) & ~63
        mapping = try SharedMapping(byteCount: firstSlot + slotCount * slotByteCount)
        base = mapping.base
        available = base + Int(layout.available)
        used = base + Int(layout.used)
        mask = layout.size - 1
        slots = .allocate(capacity: slotCount)
        slots.initialize(repeating: Slot(), count: slotCount)
        free = .allocate(capacity: slotCount)
        for slot in 0..<slotCount { free[slot] = UInt16(slotCount - 1 - slot) }
        unusedCount = slotCount
        kick = smmud_eventfd()
        call = smmud_eventfd()
        do throws(ClientError) {
            guard kick >= 0, call >= 0 else { throw .local("no eventfd: \(errorText(-min(kick, call)))") }
            buffer = try client.attach(mapping)
            handle = try client.openRing(
                in: buffer,
                size: layout.size,
                pollNanoseconds: pollNanoseconds,
                kick: kick,
                call: call
            )
        } catch {
            for descriptor in [kick, call] where descriptor >= 0 { closeDescriptor(descriptor) }
            slots.deallocate()
            free.deallocate()
            throw error
        }
        setInterrupt(false)
    }

    deinit {
        for descriptor in [kick, call] { closeDescriptor(descriptor) }
        slots.deallocate()
        free.deallocate()
    }

    /// Ends the ring; nobody touches its memory any more.
    ///
    /// - Throws: ``ClientError/rejected(status:message:)`` where the daemon found the ring broken: why.
    package func close() throws(ClientError) {
        do throws(ClientError) {
            try client.closeRing(handle)
        } catch {
            try client.detach(buffer)
            throw error
        }
        try client.detach(buffer)
    }

    // MARK: Submitting

    /// Where the data of the slot that ``submit(_:)`` takes next is written to, for a WRITE.
    package func nextPayload() -> UnsafeMutableRawBufferPointer? {
        guard unusedCount > 0 else { return nil }
        return UnsafeMutableRawBufferPointer(
            start: base + offset(of: free[unusedCount - 1]) + DMAProtocol.headerByteCount,
            count: dataByteCount
        )
    }

    /// Queues a request; its payload, if any, was put into ``nextPayload()``.
    ///
    /// The daemon sees it after ``flush()``. Its header's `id` is what ``reap(_:)`` gives back.
    ///
    /// - Parameters:
    ///   - request: With ``DMARequest/payloadByteCount`` bytes of payload.
    ///   - answerByteCount: How many bytes follow the answer's header: a READ's count.
    /// - Returns: Whether there was a slot free, and as large.
    package func submit(_ request: DMARequest, answerByteCount: Int = 0) -> Bool {
        let payloadByteCount = request.payloadByteCount
        guard max(payloadByteCount, answerByteCount) <= dataByteCount, unusedCount > 0 else { return false }
        unusedCount -= 1
        let slot = free[unusedCount]
        lastSlot = slot
        let start = offset(of: slot)
        // A line that the daemon has: on its way while this one is filled.
        if unusedCount > 0 { smmud_prefetch_to_write(base + offset(of: free[unusedCount - 1])) }
        request.write(
            to: UnsafeMutableRawBufferPointer(start: base + start, count: DMAProtocol.headerByteCount)
        )
        let known = slots + Int(slot)
        // The answer comes after the payload, in a line of its own.
        known.pointee.answer = start + DMAProtocol.headerByteCount + ((payloadByteCount + 63) & ~63)
        if known.pointee.payloadByteCount != payloadByteCount
            || known.pointee.answerByteCount != answerByteCount
        {
            describe(slot, payloadByteCount, answerByteCount)
        }
        smmud_store_u16(available + 4 + 2 * Int(nextAvailable & mask), (2 * slot).littleEndian)
        nextAvailable &+= 1
        return true
    }

    /// Writes a slot's descriptors.
    private func describe(_ slot: UInt16, _ payloadByteCount: Int, _ answerByteCount: Int) {
        slots[Int(slot)].payloadByteCount = payloadByteCount
        slots[Int(slot)].answerByteCount = answerByteCount
        let head = 2 * slot
        put(
            DMARingDescriptor(
                offset: UInt64(offset(of: slot)),
                byteCount: UInt32(DMAProtocol.headerByteCount + payloadByteCount),
                flags: DMARingLayout.hasNext,
                next: head + 1
            ),
            at: head
        )
        put(
            DMARingDescriptor(
                offset: UInt64(slots[Int(slot)].answer),
                byteCount: UInt32(
                    DMAProtocol.headerByteCount + max(answerByteCount, sentenceRoom(payloadByteCount))
                ),
                flags: DMARingLayout.isWritable
            ),
            at: head + 1
        )
    }

    /// A refusal comes with a sentence, for which there is the room that the payload leaves.
    private func sentenceRoom(_ payloadByteCount: Int) -> Int {
        dataByteCount - ((payloadByteCount + 63) & ~63)
    }

    /// Shows the daemon all that was submitted, and wakes it if it sleeps.
    package func flush() {
        guard nextAvailable != publishedAvailable else { return }
        publishedAvailable = nextAvailable
        smmud_store_u16(available + 2, nextAvailable.littleEndian)
        // The index before the flag is looked at: the daemon clears it, and then looks at the index.
        smmud_fence_seq_cst()
        if usedFlags & DMARingLayout.noNotify == 0 { smmud_signal_eventfd(kick) }
    }

    // MARK: Answers

    /// Takes all answers that are there.
    ///
    /// - Parameter body: Gets each answer and its payload, which is good until it returns.
    /// - Returns: How many there were.
    /// - Throws: ``ClientError/violation(_:)`` where the daemon found the ring broken, or broke it.
    @discardableResult
    package func reap(_ body: (DMAResponse, UnsafeRawBufferPointer) -> Void) throws(ClientError) -> Int {
        let end = UInt16(littleEndian: smmud_load_u16(used + 2))
        var count = 0
        while nextUsed != end {
            let place = used + 4 + 8 * Int(nextUsed & mask)
            let head = UInt32(littleEndian: smmud_load_u32(place))
            guard head < UInt32(layout.size), head & 1 == 0, slots[Int(head / 2)].answer != 0 else {
                throw .violation("chain \(head) is done, which was not submitted")
            }
            let slot = UInt16(head / 2)
            let answer = slots[Int(slot)].answer
            if outstandingCount > 1 { prefetchAnswer(at: nextUsed &+ 2) }
            let response = DMAResponse(
                header: UnsafeRawBufferPointer(start: base + answer, count: DMAProtocol.headerByteCount)
            )
            let room = offset(of: slot) + slotByteCount - answer - DMAProtocol.headerByteCount
            let payloadByteCount = response.payloadByteCount
            guard payloadByteCount <= room else {
                throw .violation("an answer of \(response.byteCount) bytes")
            }
            body(
                response,
                UnsafeRawBufferPointer(
                    start: base + answer + DMAProtocol.headerByteCount,
                    count: payloadByteCount
                )
            )
            slots[Int(slot)].answer = 0
            free[unusedCount] = slot
            unusedCount += 1
            nextUsed &+= 1
            count += 1
        }
        guard usedFlags & DMARingLayout.broken == 0 else {
            throw .violation("the daemon finds the ring broken; RING_CLOSE says why")
        }
        return count
    }

    /// Asks for the lines of an answer that is looked at soon, as it seems.
    @inline(__always)
    private func prefetchAnswer(at index: UInt16) {
        let slot = UInt32(littleEndian: smmud_load_u32(used + 4 + 8 * Int(index & mask))) / 2
        guard slot < UInt32(slotCount) else { return }
        let answer = base + slots[Int(slot)].answer
        smmud_prefetch(answer)
        smmud_prefetch(answer + 64)
    }

    /// Asks for the lines of the one answer that is waited for, so that they come along with the used ring's index and
    /// not after it.
    @inline(__always)
    private func fetchExpected() {
        let slot = slots[Int(lastSlot)]
        smmud_prefetch(base + slot.answer)
        if slot.answerByteCount > 0 { smmud_prefetch(base + slot.answer + DMAProtocol.headerByteCount) }
        smmud_prefetch(used + 4 + 8 * Int(nextUsed & mask))
    }

    /// Waits for an answer: looks for it at first, and then for a signal.
    ///
    /// - Parameters:
    ///   - spins: How often to look.
    ///   - timeoutMilliseconds: How long to wait then; nil is for ever.
    /// - Throws: ``ClientError/timedOut``.
    package func wait(spins: Int = 0, timeoutMilliseconds: Int? = nil) throws(ClientError) {
        setInterrupt(false)
        let isAlone = outstandingCount == 1
        for spin in 0..<spins {
            if hasAnswer { return }
            if isAlone { fetchExpected() }
            // The daemon answers sooner than a pause of some processors ends.
            if spin >= 256 { smmud_cpu_pause() }
        }
        while !hasAnswer {
            setInterrupt(true)
            defer { setInterrupt(false) }
            guard !hasAnswer else { return }
            var entry = pollfd(fd: call, events: Int16(POLLIN), revents: 0)
            let result = poll(&entry, 1, timeoutMilliseconds.map { Int32(clamping: $0) } ?? -1)
            guard result != 0 else { throw .timedOut }
            var count: UInt64 = 0
            _ = read(call, &count, MemoryLayout<UInt64>.size)
        }
    }

    /// Whether ``reap(_:)`` has something to say.
    private var hasAnswer: Bool {
        UInt16(littleEndian: smmud_load_u16(used + 2)) != nextUsed
            || usedFlags & DMARingLayout.broken != 0
    }

    /// Says whether signals are wanted, where that is new: the daemon looks at the line all the time.
    @inline(__always)
    private func setInterrupt(_ isWanted: Bool) {
        guard isWanted != wantsInterrupt else { return }
        wantsInterrupt = isWanted
        smmud_store_u16(
            available,
            isWanted ? 0 : DMARingLayout.noInterrupt.littleEndian
        )
        smmud_fence_seq_cst()
    }

    // MARK: Memory

    private var usedFlags: UInt16 {
        UInt16(littleEndian: smmud_load_u16(used))
    }

    private func offset(of slot: UInt16) -> Int { firstSlot + Int(slot) * slotByteCount }

    private func put(_ descriptor: DMARingDescriptor, at index: UInt16) {
        let place = base + Int(layout.descriptor(index))
        smmud_store_u64(place, descriptor.offset.littleEndian)
        smmud_store_u64(place + 8, descriptor.high.littleEndian)
    }
}

extension DMAClient {
    /// Has the daemon serve a ring at the start of an attached buffer.
    fileprivate func openRing(
        in buffer: UInt32,
        size: UInt16,
        pollNanoseconds: UInt64,
        kick: CInt,
        call: CInt
    )
        throws(ClientError) -> UInt32
    {
        let request = DMARequest(
            .ringOpen,
            id: nextID(),
            buffer: buffer,
            iova: pollNanoseconds,
            count: UInt64(size)
        )
        return try self.call(request, descriptors: [kick, call]).handle
    }

    fileprivate func closeRing(_ handle: UInt32) throws(ClientError) {
        _ = try call(DMARequest(.ringClose, id: nextID(), endpoint: handle), descriptors: [])
    }
}
