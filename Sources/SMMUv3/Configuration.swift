// What one SMMUv3 is built as beside its identification registers: cache sizes and choices.

/// Where the architecture leaves a choice, and how large the caches are.
package struct SMMUv3Options: Equatable, Sendable {
    /// Where commands are executed.
    package enum CommandExecution: String, Sendable {
        /// On a thread of the SMMU's own: a register write returns at once (the default).
        case thread
        /// Inside the register write that makes them visible: one input gives one run, bit for bit.
        case inline
    }

    package var commandExecution = CommandExecution.thread
    /// How many translations the TLB holds; 0 is none, and then no port keeps any either.
    package var tlbEntries = 32768
    /// How many translation tables the walk cache knows the place of; 0 is none.
    ///
    /// nil is as many as there are by default, and none where the TLB has no entries. Walks begin at the last table
    /// that is known, so a driver that changes a table descriptor and forgets the CMD_TLBI without Leaf is found out.
    package var walkCacheEntries: Int?
    /// ``walkCacheEntries`` with the default in its place.
    package var effectiveWalkCacheEntries: Int { walkCacheEntries ?? (tlbEntries > 0 ? 1024 : 0) }
    /// Whether a leaf with the Contiguous bit is kept as one translation of its whole group.
    ///
    /// The bit is a hint, and either is permitted. Taking it shows a driver the group that it filled unevenly.
    package var cachesContiguousGroups = false
    /// How many STEs, and how many CDs, the configuration cache holds; 0 is none.
    package var configurationCacheEntries = 1024
    /// Whether a structure that was fetched but is invalid (V = 0, or ILLEGAL) is kept until it is
    /// invalidated.
    ///
    /// The architecture permits either. Keeping it shows a driver the CMD_CFGI that it forgot.
    package var cachesInvalidStructures = true
    /// Whether page 0 offsets 0xA8, 0xAC, 0xC8 and 0xCC alias the queue pointers of page 1
    /// (`cavium,cn9900-broken-page1-regspace`).
    package var aliasesPage1InPage0 = false
    /// Whether CMD_PREFETCH_* fill the caches; they are hints.
    package var executesPrefetches = true
    /// What SMMU_GBPA is after a reset, which is IMPLEMENTATION DEFINED: whether transactions pass or are aborted
    /// until software says otherwise.
    package var abortsAtReset = false
    /// Whether 8- and 16-bit accesses to registers, and misaligned ones, are refused by an abort.
    ///
    /// The architecture permits that, and reading as zero and ignoring writes (IHI 0070, 6.2).
    package var refusesIllegalAccesses = true
    /// How many event records are kept for people to look at, whether or not the queue took them.
    package var eventLogCapacity = 1024
    /// Whether SMMU_IDR0.SEV says that SIG_SEV, and room in a command queue that was full, wake processors that
    /// wait for an event.
    ///
    /// The SMMU sends the event then: it is counted, and goes to ``SMMUv3/Interrupts/processorEvent``. Whoever connects
    /// nobody there should leave this off: software that relies on the event sleeps until something else wakes it.
    package var sendsProcessorEvents = false
    /// How long a function may take to complete an ATS invalidate request, until CMD_SYNC gives it up.
    ///
    /// PCIe gives it a minute.
    package var atcInvalidationTimeoutMilliseconds: UInt32 = 60_000

    package init() {}
}
