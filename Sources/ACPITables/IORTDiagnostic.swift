// What is wrong with an IORT, said so that the person who has it can put it right.

/// One thing that is wrong, or doubtful, in an IORT.
package struct IORTDiagnostic: Error, Hashable, Sendable {
    /// `IORT node 0x48 (SMMUv3)`: where the node starts in the table, and what it is; nil where the table as a whole
    /// is meant.
    package let node: String?
    /// The field, by the name that iasl gives it: `Base Address`; nil where no single one is meant.
    package let field: String?
    /// What is wrong with it.
    package let problem: String
    /// What would be right; nil where ``problem`` says it already.
    package let remedy: String?

    package init(node: String? = nil, field: String? = nil, problem: String, remedy: String? = nil) {
        self.node = node
        self.field = field
        self.problem = problem
        self.remedy = remedy
    }
}

extension IORTDiagnostic: CustomStringConvertible {
    /// One line: `IORT node 0x48 (SMMUv3): Base Address: is 0x0; …`.
    package var description: String {
        [node, field].compactMap { $0 }.map { $0 + ": " }.joined() + problem
            + (remedy.map { "; " + $0 } ?? "")
    }
}

/// Everything that is wrong with an IORT, in the order in which it was found; never empty.
package struct IORTErrors: Error, Equatable, Sendable {
    package let diagnostics: [IORTDiagnostic]

    init(_ first: IORTDiagnostic, _ others: some Sequence<IORTDiagnostic> = []) {
        diagnostics = [first] + others
    }
}

extension IORTErrors: CustomStringConvertible {
    /// One line for each problem.
    package var description: String { diagnostics.map(\.description).joined(separator: "\n") }
}

/// Collects diagnostics, each once.
struct IORTLog {
    private(set) var errors: [IORTDiagnostic] = []
    private(set) var warnings: [IORTDiagnostic] = []
    private var seen: Set<IORTDiagnostic> = []

    /// A file with more problems than this has one problem: it is garbage.
    static let capacity = 100

    mutating func report(_ diagnostic: IORTDiagnostic) {
        guard errors.count < Self.capacity, seen.insert(diagnostic).inserted else { return }
        errors.append(diagnostic)
    }

    mutating func warn(_ diagnostic: IORTDiagnostic) {
        guard warnings.count < Self.capacity, seen.insert(diagnostic).inserted else { return }
        warnings.append(diagnostic)
    }
}

/// `0x48`, as iasl's offsets and addresses are best read.
func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }

/// Text of a file as it may be shown on a terminal: what is not printable ASCII becomes `?`.
func printable(_ bytes: some Sequence<UInt8>) -> String {
    String(decoding: bytes.map { (0x20..<0x7f).contains($0) ? $0 : UInt8(ascii: "?") }, as: UTF8.self)
}
