// A function's view of memory through its ATC.

package import AddressSpace
package import DeviceModel
package import Glibc

/// A port of a function that translates its addresses itself where software has enabled that (ATS Control.Enable).
///
/// An address that the ATC has goes out translated; for one that it does not have a translation is asked for first.
/// Where that permits too little and page requests are enabled, software is asked for the page, and then the
/// translation again. What is still not permitted, or cannot be translated, goes out untranslated, as it would without
/// ATS: the SMMU then says what is wrong with it.
///
/// The last translations that the port used are its own, beside the ATC's entries, and good for as long as nothing at
/// all was invalidated there. A hit among them takes no lock.
package final class ATCPort: DMAPort {
    /// A translation of one 4 KiB page of untranslated addresses.
    private struct Lookaside {
        /// The untranslated address without its low 12 bits, or 1, which is no page, in an empty entry.
        var page: UInt64 = 1
        var context = AddressTranslationCache.Context(substreamID: nil, isPrivileged: false)
        var generation: UInt64 = 0
        var output: UInt64 = 0
        /// How many bytes the translation covers from the page's first byte on, less one.
        var lastOffset: UInt64 = 0
        var canRead = false
        var canWrite = false
        var canExecute = false
    }

    /// What a transaction needs of a translation.
    private struct Need {
        var context: AddressTranslationCache.Context
        var isWrite: Bool
        var isExecute: Bool

        init(_ direction: DMADirection, _ attributes: TransactionAttributes) {
            // Without a PASID there is neither privilege nor execution.
            let hasSubstream = attributes.substreamID != nil
            isWrite = direction == .write
            isExecute = hasSubstream && attributes.isInstruction && !isWrite
            context = AddressTranslationCache.Context(
                substreamID: attributes.substreamID,
                isPrivileged: hasSubstream && attributes.isPrivileged
            )
        }

        func isMet(read: Bool, write: Bool, execute: Bool) -> Bool {
            isWrite ? write : isExecute ? execute : read
        }
    }

    private static let lookasideCount = 64
    /// What one transaction moves at most.
    private static let largestTransaction: UInt64 = 1 << 20
    /// How often a translation is asked for that is dropped again before it is used.
    private static let attempts = 8
    /// How often a page is asked for that is not there afterwards.
    private static let pageRequestAttempts = 8

    private let cache: AddressTranslationCache
    private let port: any ATSPort
    private var lookaside = [Lookaside](repeating: Lookaside(), count: lookasideCount)

    /// - Parameters:
    ///   - cache: The function's ATC.
    ///   - port: To its translation agent, for this port alone.
    package init(_ cache: AddressTranslationCache, _ port: any ATSPort) {
        self.cache = cache
        self.port = port
    }

    // MARK: DMA

    package func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try transfer(.read, at: address, buffer.count, attributes) {
            (target, range, attributes) throws(DMAFault) in
            try port.read(
                at: target,
                into: UnsafeMutableRawBufferPointer(rebasing: buffer[range]),
                attributes
            )
        }
    }

    package func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        try transfer(.write, at: address, buffer.count, attributes) {
            (target, range, attributes) throws(DMAFault) in
            try port.write(UnsafeRawBufferPointer(rebasing: buffer[range]), at: target, attributes)
        }
    }

    package func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool {
        guard cache.isEnabled, !attributes.isTranslated, !attributes.isMessage else {
            return try port.lend(ranges, for: direction, attributes, body)
        }
        let need = Need(direction, attributes)
        // What the ATC has no room for, or does not stay there for as long as that, is copied.
        var fetchesLeft = cache.options.entryCount + Self.attempts
        for _ in 0..<Self.attempts {
            var missing = firstMissing(ranges, need)
            while let address = missing {
                guard fetchesLeft > 0, fetch(address, need) else { return false }
                fetchesLeft -= 1
                let next = firstMissing(ranges, need)
                guard next != address else { return false }
                missing = next
            }
            if let isLent = try lendTranslated(ranges, for: direction, need, body) { return isLent }
        }
        return false
    }

    /// Lends the memory behind what the ATC has; nil where it has not all of it any more.
    private func lendTranslated(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ need: Need,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool? {
        port.beginTransaction()
        defer { port.endTransaction() }
        guard let translated = translate(ranges, need) else { return nil }
        return try port.lend(translated, for: direction, TransactionAttributes(isTranslated: true), body)
    }

    package func rest() { port.rest() }

    /// Moves bytes, piece by piece: each is what one translation covers.
    @inline(__always)  // Its closure must not become a heap object.
    private func transfer(
        _ direction: DMADirection,
        at start: IOVirtualAddress,
        _ byteCount: Int,
        _ attributes: TransactionAttributes,
        _ access: (IOVirtualAddress, Range<Int>, TransactionAttributes) throws(DMAFault) -> Void
    ) throws(DMAFault) {
        guard cache.isEnabled, !attributes.isTranslated, !attributes.isMessage else {
            return try access(start, 0..<byteCount, attributes)
        }
        let need = Need(direction, attributes)
        var done = 0
        var attempts = 0
        while done < byteCount {
            let left = UInt64(byteCount - done)
            // Past the top of the address space: the port says what becomes of it.
            let address = start.advanced(by: UInt64(done))
            if let address {
                port.beginTransaction()
                if let hit = lookUp(address.rawValue, need) {
                    defer { port.endTransaction() }
                    let count = Int(min(left, hit.byteCount, Self.largestTransaction))
                    try rebasing(start, done, IOVirtualAddress(hit.output)) { (target) throws(DMAFault) in
                        try access(target, done..<(done + count), TransactionAttributes(isTranslated: true))
                    }
                    done += count
                    attempts = 0
                    continue
                }
                port.endTransaction()
                if attempts < Self.attempts, fetch(address.rawValue, need) {
                    attempts += 1
                    continue
                }
            }
            // To the end of the page: the next may have a translation.
            let page = address.map { 0x1000 - ($0.rawValue & 0xFFF) } ?? left
            let count = Int(min(left, page))
            let target = address ?? IOVirtualAddress(start.rawValue &+ UInt64(done))
            try rebasing(start, done, target) { (target) throws(DMAFault) in
                try access(target, done..<(done + count), attributes)
            }
            done += count
            attempts = 0
        }
    }

    /// Says of a fault in a piece where it is in the whole, by untranslated addresses.
    @inline(__always)  // Likewise.
    private func rebasing(
        _ start: IOVirtualAddress,
        _ done: Int,
        _ target: IOVirtualAddress,
        _ body: (IOVirtualAddress) throws(DMAFault) -> Void
    ) throws(DMAFault) {
        do throws(DMAFault) {
            try body(target)
        } catch {
            throw DMAFault(
                cause: error.cause,
                address: IOVirtualAddress(
                    start.rawValue &+ UInt64(done) &+ (error.address.rawValue &- target.rawValue)
                ),
                bytesTransferred: UInt64(done) &+ error.bytesTransferred
            )
        }
    }

    // MARK: Translations

    /// Looks an address up.
    ///
    /// Inside of a bracket: what it finds may be used until that ends, and no longer.
    private func lookUp(_ address: UInt64, _ need: Need) -> (output: UInt64, byteCount: UInt64)? {
        let page = address & ~0xFFF
        let offset = address & 0xFFF
        let index = Int(truncatingIfNeeded: (address >> 12) & UInt64(Self.lookasideCount - 1))
        let generation = cache.generation
        if lookaside[index].page != page || lookaside[index].generation != generation
            || lookaside[index].context != need.context
        {
            guard let entry = cache.lookUp(address, need.context), !entry.translation.isUntranslatedOnly
            else {
                return nil
            }
            // `generation` was read before: what is dropped since is worthless already.
            lookaside[index] = Lookaside(
                page: page,
                context: need.context,
                generation: generation,
                output: entry.translation.output &+ (page &- entry.base),
                lastOffset: entry.last &- page,
                canRead: entry.translation.canRead,
                canWrite: entry.translation.canWrite,
                canExecute: entry.translation.canExecute
            )
        }
        let found = lookaside[index]
        guard need.isMet(read: found.canRead, write: found.canWrite, execute: found.canExecute) else {
            return nil
        }
        let last = found.lastOffset &- offset
        return (found.output &+ offset, last == .max ? .max : last &+ 1)
    }

    /// The ranges, translated; nil where something is missing.
    ///
    /// Inside of a bracket, as ``lookUp(_:_:)``.
    private func translate(_ ranges: [DMARange], _ need: Need) -> [DMARange]? {
        var result: [DMARange] = []
        for range in ranges {
            var done = 0
            while done < range.byteCount {
                guard let address = range.address.advanced(by: UInt64(done)),
                    let hit = lookUp(address.rawValue, need)
                else { return nil }
                let count = Int(min(UInt64(range.byteCount - done), hit.byteCount))
                result.append(DMARange(address: IOVirtualAddress(hit.output), byteCount: count))
                done += count
            }
        }
        return result
    }

    /// The first address of ranges that the ATC has not what is needed for.
    private func firstMissing(_ ranges: [DMARange], _ need: Need) -> UInt64? {
        port.beginTransaction()
        defer { port.endTransaction() }
        for range in ranges {
            var done = 0
            while done < range.byteCount {
                let address = range.address.rawValue &+ UInt64(done)
                guard let hit = lookUp(address, need) else { return address }
                done += Int(min(UInt64(range.byteCount - done), hit.byteCount))
            }
        }
        return nil
    }

    /// Asks for a translation, and where it permits too little for the page, if the function may.
    ///
    /// - Returns: Whether there may be one now; otherwise the address is to go out untranslated.
    private func fetch(_ address: UInt64, _ need: Need) -> Bool {
        for attempt in 0...Self.pageRequestAttempts {
            let generation = cache.generation
            cache.countRequest()
            let answer = port.translate(
                ATSTranslationRequest(
                    address: IOVirtualAddress(address & ~0xFFF),
                    substreamID: need.context.substreamID,
                    noWrite: !need.isWrite,
                    isExecute: need.isExecute,
                    isPrivileged: need.context.isPrivileged
                )
            )
            guard case .success(let translation) = answer, !translation.isUntranslatedOnly else {
                return false
            }
            if need.isMet(
                read: translation.canRead,
                write: translation.canWrite,
                execute: translation.canExecute
            ) {
                let base = address & ~AddressTranslationCache.Entry.mask(max(12, translation.log2Bytes))
                cache.fill(
                    AddressTranslationCache.Entry(
                        base: base,
                        context: need.context,
                        translation: translation
                    ),
                    askedAt: generation
                )
                return true
            }
            guard attempt < Self.pageRequestAttempts, cache.pageRequests.isEnabled else { return false }
            let request = PageRequest(
                address: IOVirtualAddress(address & ~0xFFF),
                substreamID: need.context.substreamID,
                group: 0,
                wantsRead: !need.isWrite,
                wantsWrite: need.isWrite,
                wantsExecute: need.isExecute,
                isPrivileged: need.context.isPrivileged
            )
            guard cache.pageRequests.request(request, over: port) == .success else { return false }
        }
        return false
    }
}
