// Who watches a look-up: nobody on the way of a transaction, a person through `explain`.

package import AddressSpace
package import SMMUv3Spec

/// Hears of everything that a look-up fetches.
///
/// Specialised away where ``NoObserver`` is given.
protocol LookupObserver {
    /// Whether it has to hear of each structure: then nothing is fetched on a short way.
    static var hearsOfStructures: Bool { get }
    /// The look-up has made so many walks and fetched so many descriptors since it last said so.
    mutating func walked(_ walks: UInt64, fetching descriptors: UInt64, _ counters: Counters)
    /// The look-up has fetched an STE, a CD, or one of their first levels.
    mutating func fetchedConfiguration(_ counters: Counters)
    /// The look-up is about to read memory, whether or not somebody answers there.
    mutating func accessing(_ kind: LookupAccess)
    /// It has read so many descriptors, all of which were there.
    mutating func accessedTables(_ count: UInt64)
    mutating func fetched(_ structure: @autoclosure () -> FetchedStructure)
    mutating func note(_ text: @autoclosure () -> String)
}

extension LookupObserver {
    @inline(__always)  // Decides what is compiled.
    static var hearsOfStructures: Bool { true }
    mutating func walked(_ walks: UInt64, fetching descriptors: UInt64, _ counters: Counters) {
        if walks > 0 { counters.add(.walks, walks) }
        if descriptors > 0 { counters.add(.descriptorFetches, descriptors) }
    }
    mutating func fetchedConfiguration(_ counters: Counters) { counters.add(.configurationFetches) }
    @inline(__always)  // Must vanish where nobody counts.
    mutating func accessing(_ kind: LookupAccess) {}
    @inline(__always)  // Likewise.
    mutating func accessedTables(_ count: UInt64) {}
}

/// What a look-up reads memory for.
enum LookupAccess {
    /// A stream table, a CD table, or one of their first levels.
    case configuration
    case translationTable
}

/// Nobody watches.
struct NoObserver: LookupObserver {
    // Thread Sanitizer looks at the address of what is passed inout, and a type without contents has none.
    private var hasAddress = true

    @inline(__always)  // Decides what is compiled.
    static var hearsOfStructures: Bool { false }

    @inline(__always)  // Must vanish from the path of a transaction.
    mutating func fetched(_ structure: @autoclosure () -> FetchedStructure) {}
    @inline(__always)  // Must vanish from the path of a transaction.
    mutating func note(_ text: @autoclosure () -> String) {}
}

/// A structure or descriptor that a look-up read from memory.
package enum FetchedStructure: Equatable, Sendable {
    case l1std(PhysicalAddress, L1STD)
    case ste(PhysicalAddress, STE)
    case l1cd(PhysicalAddress, L1CD)
    case cd(PhysicalAddress, CD)
    /// A descriptor of either stage: its physical address, the word in the processor's byte order, its level, and
    /// its table's format.
    case descriptor(PhysicalAddress, Descriptor, level: Int, format: TableFormat)
}

/// One step of an explained look-up.
package enum ExplainedStep: Equatable, Sendable {
    case fetched(FetchedStructure)
    case note(String)
}

/// Keeps every step, in order.
struct StepRecorder: LookupObserver {
    var steps: [ExplainedStep] = []

    mutating func fetched(_ structure: @autoclosure () -> FetchedStructure) {
        steps.append(.fetched(structure()))
    }

    mutating func note(_ text: @autoclosure () -> String) { steps.append(.note(text())) }
}
