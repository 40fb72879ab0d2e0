// What QEMU's walks and records do otherwise than the architecture says, one by one.

/// Ways in which QEMU's walks and records are its own.
///
/// Each was followed to its cause.
struct Quirks: OptionSet, Hashable {
    let rawValue: UInt32

    /// Stage 2 with concatenated first tables walks the first of them alone.
    ///
    /// It aligns the base to the size of all after it has added the number of the one.
    static let firstTableAlone = Quirks(rawValue: 1 << 0)
    /// Nested: stage 2 translates where a stage-1 table begins, and the descriptor's offset is added after it.
    ///
    /// Of the first table's physical address CD.IPS takes the upper bits away.
    static let tableBaseTranslated = Quirks(rawValue: 1 << 1)
    /// Nested: stage 2 translates TTB0 and TTB1 when the CD is decoded, before anything is known of the input.
    static let rootTranslatedWithCD = Quirks(rawValue: 1 << 2)
    /// No Address Size check on table descriptors.
    static let tableSizeUnchecked = Quirks(rawValue: 1 << 3)
    /// A leaf's access flag and permissions are looked at before its address size.
    static let addressSizeLast = Quirks(rawValue: 1 << 4)
    /// Type 0b01 is a block at every level below 3.
    static let blocksEverywhere = Quirks(rawValue: 1 << 5)
    /// TBI0 decides for both halves.
    static let tbi0ForBoth = Quirks(rawValue: 1 << 6)
    /// APTable[1] refuses a write where the table descriptor is, whatever is below it.
    static let apTableAtOnce = Quirks(rawValue: 1 << 7)
    /// Every access is privileged: AP[1] and APTable[0] refuse nothing.
    static let alwaysPrivileged = Quirks(rawValue: 1 << 8)
    /// Stage 2's input beyond IAS, or a stage-1 table beyond IPS, is F_ADDR_SIZE of stage 1 with its IPA.
    ///
    /// CD.R says whether it is recorded: without stage 1 it is not.
    static let beyondIASAsStage1 = Quirks(rawValue: 1 << 9)
    /// S2PTW refuses nothing.
    static let s2PTWIgnored = Quirks(rawValue: 1 << 10)
    /// A stage-2 fault on a stage-1 descriptor has S2 = 0 in its record, and CD.R decides whether there is one.
    static let tableFaultAsStage1 = Quirks(rawValue: 1 << 11)
    /// A stage-2 fault on the CD or on a first table has RnW = 1.
    static let structureFaultReads = Quirks(rawValue: 1 << 12)
    /// TTRnW is 0 in F_PERMISSION of a descriptor's fetch.
    static let ttRnWZero = Quirks(rawValue: 1 << 13)
    /// The IPA field has address bits [11:0].
    static let wholeIPA = Quirks(rawValue: 1 << 14)

    /// F_CD_FETCH has its address in dword 2.
    static let cdFetchAddressEarly = Quirks(rawValue: 1 << 15)

    /// Nested: where stage 2's walk for a stage-1 table below the first aborts, FetchAddr is the table's IPA.
    static let tableAbortTellsIPA = Quirks(rawValue: 1 << 16)

    /// A hit in QEMU's TLB: APTable is not kept there.
    static let apTableForgotten = Quirks(rawValue: 1 << 24)
    /// A hit in QEMU's TLB with both stages: stage 2's permissions are not kept there.
    static let stage2PermissionsForgotten = Quirks(rawValue: 1 << 25)

    /// Those of walks and records, without caches.
    static let all = Quirks(rawValue: (1 << 17) - 1)

    /// Each with its name in the report.
    static let named: [(Quirks, String)] = [
        (.firstTableAlone, "stage2-first-table-alone"),
        (.tableBaseTranslated, "nested-table-base-translated"),
        (.rootTranslatedWithCD, "nested-root-translated-with-cd"),
        (.tableSizeUnchecked, "table-address-size-unchecked"),
        (.addressSizeLast, "leaf-address-size-last"),
        (.blocksEverywhere, "blocks-at-every-level"),
        (.tbi0ForBoth, "tbi0-for-both-halves"),
        (.apTableAtOnce, "aptable-at-once"),
        (.alwaysPrivileged, "always-privileged"),
        (.beyondIASAsStage1, "beyond-ias-as-stage1"),
        (.s2PTWIgnored, "s2ptw-ignored"),
        (.tableFaultAsStage1, "nested-table-fault-as-stage1"),
        (.structureFaultReads, "structure-fault-reads"),
        (.ttRnWZero, "ttrnw-zero"),
        (.wholeIPA, "ipa-low-bits"),
        (.cdFetchAddressEarly, "cd-fetch-address"),
        (.tableAbortTellsIPA, "nested-table-abort-tells-ipa"),
    ]
}
