// The list of cases: what a driver's user sees, on any SMMU.

/// One thing that the driver does and that has to come out alike on every SMMU.
package struct ConformanceCase: Sendable, CustomStringConvertible {
    /// What it shows.
    package let name: String
    /// What of the SMMU it is about; without it the case shows how the driver does without.
    package var capability: Capability?
    let body: @Sendable (any ConformanceBench) async throws -> Void

    init(
        _ name: String,
        about capability: Capability? = nil,
        _ body: @escaping @Sendable (any ConformanceBench) async throws -> Void
    ) {
        self.name = name
        self.capability = capability
        self.body = body
    }

    package var description: String { name }

    /// Plays it on a machine that was just switched on.
    ///
    /// - Throws: What was not as it has to be.
    package func run(on bench: any ConformanceBench) async throws { try await body(bench) }

    /// All of them.
    package static let all: [Self] = lifecycle + attachment + mapping + invalidation + errors
}

extension Capability {
    /// Whether a machine's SMMU has it, by its identification registers.
    package func isThere(on bench: any ConformanceBench) throws -> Bool {
        switch self {
        case .msi: try bench.register(0x0) >> 13 & 1 == 1
        case .substreams: try bench.register(0x4) >> 6 & 0x1F != 0
        }
    }
}
