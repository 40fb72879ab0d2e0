// A function's ATC: translations that it has asked its translation agent for.

import AddressSpace
package import DeviceModel
import Synchronization

/// How large a function's ATC is, and how patient its page requests are.
package struct AddressTranslationCacheOptions: Equatable, Sendable {
    /// How many translations it holds; with 0 the function asks for none.
    package var entryCount = 64
    /// How long a transaction waits for the response to a page request, until it is given up.
    package var pageResponseTimeoutMilliseconds: UInt32 = 10_000

    package init() {}
}

/// The address translation cache of one function, with its page request interface.
///
/// The ports of the function share it (``ATCPort``). Its translation agent knows it as the ``ATSEndpoint`` of the
/// function's StreamID.
///
/// Locks: one, a leaf; the page request interface's is another leaf.
package final class AddressTranslationCache: Sendable {
    /// What a translation was asked for beside its address.
    struct Context: Hashable, Sendable {
        var substreamID: SubstreamID?
        var isPrivileged: Bool
    }

    struct Entry: Sendable {
        /// The first untranslated address.
        var base: UInt64
        var context: Context
        var translation: ATSTranslation

        var last: UInt64 { base | Self.mask(translation.log2Bytes) }

        static func mask(_ log2Bytes: UInt8) -> UInt64 { (1 << UInt64(log2Bytes)) &- 1 }

        func covers(_ address: UInt64) -> Bool { base <= address && address <= last }
    }

    private struct State: Sendable {
        var entries: [Entry] = []
        /// The next one to go when there is no room.
        var oldest = 0
        var generation: UInt64 = 0
        var requests: UInt64 = 0
        var invalidations: UInt64 = 0
    }

    package let options: AddressTranslationCacheOptions
    let pageRequests: PageRequestInterface
    private let state = Mutex(State())
    /// Counts what was dropped: what a port keeps is worthless at any other count.
    private let published = Atomic<UInt64>(0)
    private let enabled = Atomic(false)

    package init(options: AddressTranslationCacheOptions = AddressTranslationCacheOptions()) {
        self.options = options
        pageRequests = PageRequestInterface(timeoutMilliseconds: options.pageResponseTimeoutMilliseconds)
    }

    /// ATS Control.Enable, and there is a cache.
    // Relaxed: a write of the register that a transaction overtakes is one that came a little later.
    var isEnabled: Bool { enabled.load(ordering: .relaxed) }

    /// Counts what was dropped.
    ///
    /// Whoever looks something up reads it first. Inside of a bracket (``ATSPort/beginTransaction()``), or what is
    /// found may be dropped by an invalidation that is over before it is used.
    var generation: UInt64 { published.load(ordering: .acquiring) }

    /// What software has set the function's registers to.
    func configure(_ services: PCIPageServices) {
        let isEnabled = services.isATSEnabled && options.entryCount > 0
        // Clearing Enable invalidates the ATC.
        if enabled.exchange(isEnabled, ordering: .relaxed), !isEnabled { drop { _ in true } }
        pageRequests.configure(
            isEnabled: services.isATSEnabled && services.isPRIEnabled,
            limit: services.outstandingRequests
        )
    }

    /// Lets nobody wait for a page response any more.
    package func stop() { pageRequests.stop() }

    /// Named counters, in the order in which to show them.
    package var statistics: [(name: String, value: UInt64)] {
        let (requests, invalidations, resident) = state.withLock {
            ($0.requests, $0.invalidations, UInt64($0.entries.count))
        }
        return [
            ("ats-requests", requests), ("atc-invalidations", invalidations), ("atc-resident", resident),
            ("page-requests", pageRequests.count),
        ]
    }

    /// The translation that covers an address.
    func lookUp(_ address: UInt64, _ context: Context) -> Entry? {
        state.withLock { state in
            state.entries.first { $0.context == context && $0.covers(address) }
        }
    }

    func countRequest() { state.withLock { $0.requests &+= 1 } }

    /// Keeps a translation.
    ///
    /// - Parameter generation: ``generation`` before it was asked for: nothing is kept if something was dropped since.
    func fill(_ entry: Entry, askedAt generation: UInt64) {
        guard options.entryCount > 0 else { return }
        state.withLock { state in
            guard state.generation == generation else { return }
            // Those that say less, or less far.
            state.entries.removeAll {
                $0.context == entry.context && $0.last >= entry.base && $0.base <= entry.last
            }
            if state.entries.count < options.entryCount {
                state.entries.append(entry)
            } else {
                state.oldest = (state.oldest + 1) % state.entries.count
                state.entries[state.oldest] = entry
            }
        }
    }

    private func drop(where isMeant: (Entry) -> Bool) {
        state.withLock { state in
            state.entries.removeAll(where: isMeant)
            state.generation &+= 1
            // Releasing: who sees the new count finds nothing that was dropped.
            published.store(state.generation, ordering: .releasing)
        }
    }
}

extension AddressTranslationCache: ATSEndpoint {
    package func invalidate(_ request: ATCInvalidation, completion: @escaping @Sendable () -> Void) {
        state.withLock { $0.invalidations &+= 1 }
        drop { entry in
            guard entry.last >= request.range.lowerBound, entry.base <= request.range.upperBound else {
                return false
            }
            // Without a PASID, entries of every PASID are meant, too.
            guard let substreamID = request.substreamID else { return true }
            return request.isGlobal || entry.context.substreamID == substreamID
        }
        completion()
    }

    package func receive(_ response: PageRequestGroupResponse) { pageRequests.receive(response) }
}
