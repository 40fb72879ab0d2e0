// Where the device's interrupts go.

import CLinux
import Glibc
import VFIOUserProtocol

/// An eventfd: counts signals, and is readable while there are any.
public final class VFIOUserEvent: Sendable {
    /// To lend to poll(2) and to a server.
    public let descriptor: Int32

    /// - Throws: ``VFIOUserClientError/local(_:)`` where the process may open no more.
    public init() throws(VFIOUserClientError) {
        let descriptor = smmud_eventfd()
        guard descriptor >= 0 else { throw .local("no eventfd: \(errorText(-descriptor))") }
        self.descriptor = descriptor
    }

    /// Takes over a descriptor that behaves as an eventfd.
    init(adopting descriptor: CInt) { self.descriptor = descriptor }

    deinit { _ = close(descriptor) }

    /// How many signals came since the last call; 0 for none.
    public func take() -> UInt64 {
        var count: UInt64 = 0
        return Glibc.read(descriptor, &count, 8) == 8 ? count : 0
    }

    /// Adds a signal, without waiting.
    public func signal() {
        var one: UInt64 = 1
        _ = Glibc.write(descriptor, &one, 8)
    }

    /// Waits for a signal.
    ///
    /// - Returns: Whether one came in time.
    public func wait(milliseconds: Int32) -> Bool {
        var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        while true {
            let result = poll(&entry, 1, milliseconds)
            if result >= 0 { return result > 0 }
            guard errno == EINTR else { return false }
        }
    }
}

extension VFIOUserClient {
    /// What is done with interrupts.
    public enum InterruptAction: Hashable, Sendable {
        case mask
        case unmask
        case trigger

        fileprivate var flag: VFIOUserInterruptSet.Flags {
            switch self {
            case .mask: .mask
            case .unmask: .unmask
            case .trigger: .trigger
            }
        }
    }

    /// Binds events to vectors from `start` on; nil lets go of what a vector had.
    ///
    /// In as many messages as the server's limit on descriptors makes it; where one fails, those before it stand.
    ///
    /// - Parameter action: What a signal means: ``InterruptAction/trigger`` that the device interrupts, the others
    ///   that an interrupt is to be masked or unmasked.
    public func bind(
        _ events: [VFIOUserEvent?],
        to kind: InterruptKind,
        from start: Int = 0,
        action: InterruptAction = .trigger
    ) throws(VFIOUserClientError) {
        guard start >= 0, UInt64(start) + UInt64(events.count) <= UInt64(UInt32.max) else {
            throw .invalid("vectors have 32-bit numbers")
        }
        guard descriptorsPerMessage > 0 || events.allSatisfy({ $0 == nil }) else {
            throw .unsupported("interrupts by descriptor")
        }
        var next = 0
        while next < events.count {
            // A message carries a descriptor for each of its vectors, or for none.
            let isBinding = events[next] != nil
            var run = events[next...].prefix { ($0 != nil) == isBinding }
            if isBinding { run = run.prefix(descriptorsPerMessage) }
            let request = VFIOUserInterruptSet(
                flags: [.eventfd, action.flag],
                index: kind.rawValue,
                start: UInt32(start + next),
                count: UInt32(run.count)
            )
            _ = try call(.setInterrupts(request, []), descriptors: run.compactMap { $0?.descriptor })
            next += run.count
        }
    }

    /// Lets go of all events of a kind: no more interrupts of it.
    public func disable(_ kind: InterruptKind) throws(VFIOUserClientError) {
        let request = VFIOUserInterruptSet(flags: [.none, .trigger], index: kind.rawValue)
        _ = try call(.setInterrupts(request, []))
    }

    /// Masks, unmasks or triggers vectors now.
    public func perform(_ action: InterruptAction, _ kind: InterruptKind, vectors: Range<Int>)
        throws(VFIOUserClientError)
    {
        guard !vectors.isEmpty, let start = UInt32(exactly: vectors.lowerBound),
            let count = UInt32(exactly: vectors.count)
        else { throw .invalid("vectors \(vectors)") }
        let request = VFIOUserInterruptSet(
            flags: [.none, action.flag],
            index: kind.rawValue,
            start: start,
            count: count
        )
        _ = try call(.setInterrupts(request, []))
    }

    /// Masks, unmasks or triggers those vectors from `start` on for which `isChosen` is true, now.
    public func perform(
        _ action: InterruptAction,
        _ kind: InterruptKind,
        from start: Int,
        where isChosen: [Bool]
    )
        throws(VFIOUserClientError)
    {
        guard !isChosen.isEmpty, isChosen.count <= 1 << 16, let start = UInt32(exactly: start) else {
            throw .invalid("\(isChosen.count) vectors from \(start)")
        }
        let request = VFIOUserInterruptSet(
            argsz: UInt32(VFIOUserInterruptSet.byteCount + isChosen.count),
            flags: [.bool, action.flag],
            index: kind.rawValue,
            start: start,
            count: UInt32(isChosen.count)
        )
        _ = try call(.setInterrupts(request, isChosen.map { $0 ? 1 : 0 }))
    }
}
