// Options by name, as a command line has them.

/// One option of an SMMU by name: what it is, what it takes, and how to set it.
package struct NamedSMMUOption: Sendable {
    /// Such as `tlb-entries`.
    package let name: String
    /// What values it takes, in words.
    package let values: String
    /// What it chooses, in one sentence.
    package let summary: String
    /// Sets it from text.
    ///
    /// - Returns: false where the text is none of the values.
    fileprivate let set: @Sendable (inout SMMUv3Options, String) -> Bool
}

/// Why an option could not be set.
package struct SMMUOptionError: Error, Equatable, CustomStringConvertible, Sendable {
    package let description: String
}

extension SMMUv3Options {
    /// Sets one option from `NAME=VALUE`.
    package mutating func set(_ argument: String) throws(SMMUOptionError) {
        let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let name = parts.first.map(String.init) ?? ""
        guard let option = Self.named.first(where: { $0.name == name }) else {
            let names = Self.named.map(\.name).joined(separator: ", ")
            throw SMMUOptionError(description: "there is no SMMU option '\(name)'; there are \(names)")
        }
        guard parts.count == 2 else {
            throw SMMUOptionError(description: "'\(name)' needs a value: \(name)=\(option.values)")
        }
        guard option.set(&self, String(parts[1])) else {
            throw SMMUOptionError(
                description: "'\(parts[1])' is no value of '\(name)', which takes \(option.values)"
            )
        }
    }

    /// Every option that has a name, in the order in which to show them.
    package static var named: [NamedSMMUOption] {
        [
            count(
                "tlb-entries",
                "How many translations the TLB holds; 0 is none.",
                0...1 << 24
            ) { $0.tlbEntries = $1 },
            count(
                "walk-cache-entries",
                "How many translation tables the walk cache knows; 0 is none, as where tlb-entries is 0.",
                0...1 << 20
            ) { $0.walkCacheEntries = $1 },
            count(
                "config-cache-entries",
                "How many STEs, and how many CDs, the configuration cache holds; 0 is none.",
                0...1 << 20
            ) { $0.configurationCacheEntries = $1 },
            count(
                "event-log",
                "How many events are kept for people to look at.",
                0...1 << 20
            ) { $0.eventLogCapacity = $1 },
            choice(
                "contiguous",
                "Whether the Contiguous bit, a hint, makes one TLB entry of a group.",
                "ignore",
                "group"
            ) { $0.cachesContiguousGroups = $1 },
            choice(
                "invalid-structures",
                "Whether an STE or CD that is invalid is cached when it was fetched.",
                "drop",
                "cache"
            ) { $0.cachesInvalidStructures = $1 },
            choice(
                "prefetch",
                "Whether CMD_PREFETCH_CONFIG and CMD_PREFETCH_ADDR, hints, fill the caches.",
                "ignore",
                "fill"
            ) { $0.executesPrefetches = $1 },
            choice(
                "page1-alias",
                "Whether page 0 shows the queue pointers of page 1.",
                "no",
                "yes"
            ) { $0.aliasesPage1InPage0 = $1 },
            choice(
                "gbpa-reset",
                "What becomes of transactions after a reset, until software says.",
                "bypass",
                "abort"
            ) { $0.abortsAtReset = $1 },
            choice(
                "illegal-accesses",
                "What becomes of register accesses of 8 or 16 bits, or misaligned ones.",
                "ignore",
                "abort"
            ) { $0.refusesIllegalAccesses = $1 },
            choice(
                "processor-events",
                "Whether SMMU_IDR0.SEV says that the SMMU wakes processors, which the machine only counts.",
                "no",
                "yes"
            ) { $0.sendsProcessorEvents = $1 },
        ]
    }

    private static func count(
        _ name: String,
        _ summary: String,
        _ range: ClosedRange<Int>,
        _ set: @escaping @Sendable (inout SMMUv3Options, Int) -> Void
    ) -> NamedSMMUOption {
        NamedSMMUOption(
            name: name,
            values: "a number from \(range.lowerBound) to \(range.upperBound)",
            summary: summary
        ) { options, text in
            guard let value = Int(text), range.contains(value) else { return false }
            set(&options, value)
            return true
        }
    }

    private static func choice(
        _ name: String,
        _ summary: String,
        _ off: String,
        _ on: String,
        _ set: @escaping @Sendable (inout SMMUv3Options, Bool) -> Void
    ) -> NamedSMMUOption {
        NamedSMMUOption(name: name, values: "\(off) or \(on)", summary: summary) { options, text in
            guard text == off || text == on else { return false }
            set(&options, text == on)
            return true
        }
    }
}
