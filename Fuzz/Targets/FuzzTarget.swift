// Every surface that a stranger can reach, as a function from bytes: what the fuzzer and the tests both run.

/// One surface and its fuzzer.
///
/// Returning at all is the property of every one; those that know more check it too, and trap where it does not
/// hold. A run depends on its input alone.
package enum FuzzTarget: String, CaseIterable, Sendable {
    /// The register window, the command queue in memory, and DMA between.
    case registers
    /// Commands one by one, their errors and their recovery, and transactions that stall until one of them comes.
    case commandQueue = "command-queue"
    /// Stream tables, STEs, L1CDs and CDs of any shape.
    case configuration
    /// Page tables of both stages in memory, and DMA through them.
    case tables
    /// Translation requests, translated transactions and page requests of functions, and the commands that answer them.
    case addressTranslation = "ats"
    /// Enhanced command queues: their registers, their commands and their errors.
    case enhancedQueues = "enhanced-queues"
    /// Translation by register: GATOS and VATOS.
    case translationOperations = "atos"
    /// A counter group's registers, its SMMU at work, and its messages.
    case counters
    /// Configuration space and BARs of a host bridge's functions, their DMA and their messages.
    case pci
    /// A device tree blob.
    case deviceTree = "device-tree"
    /// An ACPI table IORT.
    case iort
    /// What comes on the DMA socket, at the daemon and at a client.
    case dmaSocket = "dma-socket"
    /// What comes on the control socket, at the daemon and at a client.
    case controlSocket = "control-socket"
    /// A vfio-user client, at the server.
    case vfioUserServer = "vfio-user-server"
    /// Virtqueues and requests in memory.
    case virtqueues
    /// An NVMe controller's registers, queues, PRP lists and commands.
    case nvme
    /// The test engine's frames.
    case testEngine = "test-engine"

    package func run(_ bytes: UnsafeRawBufferPointer) {
        var input = FuzzInput(bytes)
        switch self {
        case .registers: fuzzRegisters(&input)
        case .commandQueue: fuzzCommandQueue(&input)
        case .configuration: fuzzConfiguration(&input)
        case .tables: fuzzTables(&input)
        case .addressTranslation: fuzzAddressTranslation(&input)
        case .enhancedQueues: fuzzEnhancedQueues(&input)
        case .translationOperations: fuzzTranslationOperations(&input)
        case .counters: fuzzCounters(&input)
        case .pci: fuzzPCI(&input)
        case .deviceTree: fuzzDeviceTree(input.rest)
        case .iort: fuzzIORT(input.rest)
        case .dmaSocket: fuzzDMASocket(&input)
        case .controlSocket: fuzzControlSocket(&input)
        case .vfioUserServer: fuzzVFIOUserServer(&input)
        case .virtqueues: fuzzVirtqueues(&input)
        case .nvme: fuzzNVMe(&input)
        case .testEngine: fuzzTestEngine(&input)
        }
    }
}

/// Bytes to values.
///
/// Where the bytes end, zeros follow.
struct FuzzInput {
    private let bytes: UnsafeRawBufferPointer
    private var position = 0

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    var isEmpty: Bool { position >= bytes.count }
    var rest: UnsafeRawBufferPointer { UnsafeRawBufferPointer(rebasing: bytes[position...]) }

    mutating func next() -> UInt8 {
        guard position < bytes.count else { return 0 }
        defer { position += 1 }
        return bytes[position]
    }

    mutating func next<Value: FixedWidthInteger & UnsignedInteger>(_ type: Value.Type) -> Value {
        var value: UInt64 = 0
        for index in 0..<UInt64(Value.bitWidth / 8) { value |= UInt64(next()) << (8 * index) }
        return Value(truncatingIfNeeded: value)
    }

    mutating func pick<Element>(_ choices: [Element]) -> Element { choices[Int(next()) % choices.count] }
}
