// The fields of translation table descriptors, for people.

extension Descriptor {
    /// Whose table a descriptor was found in.
    public enum Stage: Hashable, Sendable {
        case stage1, stage2
    }

    /// The fields of this descriptor where it was found.
    ///
    /// - Parameters:
    ///   - stage: Whose table it is.
    ///   - level: The table's level, -1 to 3.
    ///   - granule: The table's granule.
    ///   - has52BitOutput: As for `outputAddress`.
    ///   - ds: As for `outputAddress`.
    /// - Returns: By bit number; of an invalid descriptor only the type. A 52-bit address is in one piece.
    public func fields(
        stage: Stage,
        level: Int,
        granule: Granule,
        has52BitOutput: Bool = false,
        ds: Bool = false
    ) -> [DecodedField] {
        let kind = kind(atLevel: level)
        var fields = Self.layout(stage: stage, kind: kind, hasSH: !ds || granule == .kib64).decode(rawValue)
        let type = DecodedField(
            name: "Type",
            high: 1,
            low: 0,
            value: UInt64(type),
            meaning: kind.rawValue
        )
        fields.insert(type, at: 0)
        guard kind != .invalid, kind != .reserved else { return fields }
        let address = DecodedField(
            name: kind == .table ? "NextTable" : "OutputAddress",
            high: ds && granule != .kib64 ? 49 : 47,
            low: kind == .table ? granule.log2Bytes : granule.log2Bytes(ofLevel: level),
            value: kind == .table
                ? nextTableAddress(granule: granule, has52BitOutput: has52BitOutput, ds: ds)
                : outputAddress(granule: granule, level: level, has52BitOutput: has52BitOutput, ds: ds),
            meaning: nil
        )
        fields.insert(address, at: fields.firstIndex { $0.low > address.low } ?? fields.endIndex)
        return fields
    }

    /// What a descriptor is, and the word for it.
    enum Kind: String {
        case invalid, reserved, block, table, page
    }

    /// What type [1:0] makes of it at a level.
    func kind(atLevel level: Int) -> Kind {
        guard isValid else { return .invalid }
        guard level < 3 else { return isTableOrPage ? .page : .reserved }
        return isTableOrPage ? .table : .block
    }

    /// The fields besides type and address.
    static func layout(stage: Stage, kind: Kind, hasSH: Bool) -> [FieldLayout] {
        switch (kind, stage) {
        case (.invalid, _), (.reserved, _), (.table, .stage2): return []
        case (.table, .stage1): return stage1Table
        case (.block, .stage1): return stage1Leaf.filter { hasSH || $0.name != "SH" }
        case (.page, .stage1): return stage1Leaf.filter { (hasSH || $0.name != "SH") && $0.name != "nT" }
        case (.block, .stage2): return stage2Leaf.filter { hasSH || $0.name != "SH" }
        case (.page, .stage2): return stage2Leaf.filter { (hasSH || $0.name != "SH") && $0.name != "nT" }
        }
    }

    private static let shareability = FieldLayout.field(
        "SH",
        9,
        8,
        .names(["NSH", "reserved, as NSH", "OSH", "ISH"])
    )
    private static let accessFlag = FieldLayout.bit("AF", 10, .flag("accessed", "not accessed"))
    private static let noTranslation = FieldLayout.bit("nT", 16, isOptional: true)
    private static let dirtyBitModifier = FieldLayout.bit(
        "DBM",
        51,
        .flag("may become writable", nil),
        isOptional: true
    )
    private static let contiguity = FieldLayout.bit("Contiguous", 52, isOptional: true)

    private static let stage1Table: [FieldLayout] = [
        .bit("AF", 10, isOptional: true), .bit("PXNTable", 59, .flag("PXN below", nil)),
        .bit("UXNTable", 60, .flag("UXN below", nil)),
        .field(
            "APTable",
            62,
            61,
            .names(["no effect", "no unprivileged access", "no writes", "only privileged reads"])
        ),
        .bit("NSTable", 63, isOptional: true),
    ]

    private static let stage1Leaf: [FieldLayout] = [
        .field("AttrIndx", 4, 2, .text { "MAIR attribute \($0)" }), .bit("NS", 5, isOptional: true),
        .field(
            "AP",
            7,
            6,
            .names(["privileged read-write", "read-write", "privileged read-only", "read-only"])
        ),
        shareability, accessFlag, .bit("nG", 11, .flag("this ASID", "global")), noTranslation,
        .bit("GP", 50, isOptional: true), dirtyBitModifier, contiguity,
        .bit("PXN", 53, .flag("privileged execute-never", nil)),
        .bit("UXN", 54, .flag("unprivileged execute-never", nil)),
        .field("Software", 58, 55, isOptional: true),
        .field("PBHA", 62, 59, isOptional: true),
    ]

    private static let stage2Leaf: [FieldLayout] = [
        .field("MemAttr", 5, 2, .text(Meaning.memoryType)),
        .field("S2AP", 7, 6, .names(["no access", "read-only", "write-only", "read-write"])), shareability,
        accessFlag, noTranslation, dirtyBitModifier, contiguity,
        .field(
            "XN",
            54,
            53,
            .names(["execute", "unprivileged execute", "execute-never", "privileged execute"])
        ),
        .bit("NS", 55, isOptional: true), .field("Software", 58, 56, isOptional: true),
        .bit("AMEC", 63, isOptional: true),
    ]
}
