// What is wrong with a board's files, said so that the person who wrote them can put it right.

import ACPITables

/// One thing that is wrong, or doubtful, in a device tree, or in what stands beside it.
package struct DeviceTreeDiagnostic: Error, Hashable, Sendable {
    /// Where the thing stands.
    package enum Origin: Hashable, Sendable {
        case deviceTree
        /// An IORT: paths are `IORT node 0x48 (SMMUv3)`, properties are fields by the names that iasl gives them.
        case iort
        /// What somebody asked for beside the files.
        case request
    }

    /// The node, `/soc/iommu@9050000`; nil where the file as a whole is meant.
    package let path: String?
    /// The property, `reg`; nil where no single one is meant.
    package let property: String?
    /// What is wrong with it.
    package let problem: String
    /// What would be right; nil where ``problem`` says it already.
    package let remedy: String?
    package let origin: Origin

    package init(
        path: String?,
        property: String? = nil,
        problem: String,
        remedy: String? = nil,
        origin: Origin = .deviceTree
    ) {
        self.path = path
        self.property = property
        self.problem = problem
        self.remedy = remedy
        self.origin = origin
    }

    /// The same of an IORT.
    init(_ diagnostic: IORTDiagnostic) {
        self.init(
            path: diagnostic.node,
            property: diagnostic.field,
            problem: diagnostic.problem,
            remedy: diagnostic.remedy,
            origin: .iort
        )
    }
}

extension DeviceTreeDiagnostic: CustomStringConvertible {
    /// One line: `/soc/iommu@9050000: reg: missing; an arm,smmu-v3 node needs one register region …`.
    package var description: String {
        let subject = [path, property].compactMap { $0 }.map { $0 + ": " }.joined()
        return subject + problem + (remedy.map { "; " + $0 } ?? "")
    }
}

/// Everything that is wrong with a board's files, in the order in which it was found; never empty.
package struct DeviceTreeErrors: Error, Equatable, Sendable {
    package let diagnostics: [DeviceTreeDiagnostic]

    init(_ first: DeviceTreeDiagnostic, _ others: some Sequence<DeviceTreeDiagnostic> = []) {
        diagnostics = [first] + others
    }
}

extension DeviceTreeErrors: CustomStringConvertible {
    /// One line for each problem.
    package var description: String { diagnostics.map(\.description).joined(separator: "\n") }
}

/// Collects diagnostics, each once.
struct DiagnosticLog {
    private(set) var errors: [DeviceTreeDiagnostic] = []
    private(set) var warnings: [DeviceTreeDiagnostic] = []
    /// While set, what would be an error is a warning: for nodes of which the machine builds nothing.
    var isLenient = false
    private var reported: Set<DeviceTreeDiagnostic> = []
    private var warned: Set<DeviceTreeDiagnostic> = []

    /// A file with more problems than this has one problem: it is garbage.
    static let capacity = 100

    mutating func report(_ diagnostic: DeviceTreeDiagnostic) {
        guard !isLenient else { return warn(diagnostic) }
        guard errors.count < Self.capacity, reported.insert(diagnostic).inserted else { return }
        errors.append(diagnostic)
    }

    mutating func warn(_ diagnostic: DeviceTreeDiagnostic) {
        guard warnings.count < Self.capacity, warned.insert(diagnostic).inserted else { return }
        warnings.append(diagnostic)
    }
}

/// `0x2b400000`, as device trees and kernels print numbers.
func hex(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }

/// `<0x0 0x4a 0x1>`, as a .dts writes cells; long lists are cut.
func cellList(_ cells: some Collection<UInt32>) -> String {
    let shown = cells.prefix(8).map { hex($0) }.joined(separator: " ")
    return "<" + shown + (cells.count > 8 ? " ...>" : ">")
}

/// The words with a separator between; long lists are cut in the middle.
func shortList(_ words: [String], separator: String) -> String {
    let shown = words.count > 8 ? Array(words.prefix(6)) + ["..."] + words.suffix(1) : words
    return shown.joined(separator: separator)
}

/// `1 byte`, `3 cells`.
func count(_ number: Int, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }
