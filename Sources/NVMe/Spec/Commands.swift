// Submission and completion queue entries as values.

import BitFields

/// An entry of a submission queue: 64 bytes, read once.
struct SubmissionEntry: Equatable, Sendable {
    /// CDW0 to CDW15.
    var words: CommandWords

    /// Opcode (OPC).
    var opcode: UInt8 { UInt8(truncatingIfNeeded: words[0]) }
    /// FUSE: 0 is a command by itself.
    var fusedOperation: UInt32 { words[0][bits: 8...9] }
    /// PSDT: 0 PRPs, 1 and 2 SGLs.
    var dataPointerKind: UInt32 { words[0][bits: 14...15] }
    /// CID.
    var commandIdentifier: UInt16 { UInt16(truncatingIfNeeded: words[0] &>> 16) }
    /// NSID.
    var namespace: UInt32 { words[1] }
    /// PRP1, or the first half of SGL1.
    var prp1: UInt64 { doubleWord(6) }
    /// PRP2, or the second half of SGL1.
    var prp2: UInt64 { doubleWord(8) }

    /// Two command dwords as one word, the lower-numbered one low.
    func doubleWord(_ index: Int) -> UInt64 { UInt64(words[index]) | UInt64(words[index + 1]) &<< 32 }

    static let byteCount = 64

    init(words: CommandWords) { self.words = words }

    /// From 64 bytes in memory.
    init(_ bytes: UnsafeRawBufferPointer) {
        words = CommandWords()
        for index in 0..<16 {
            words[index] = UInt32(
                littleEndian: bytes.loadUnaligned(fromByteOffset: 4 * index, as: UInt32.self)
            )
        }
    }
}

/// Sixteen command dwords, without an allocation.
struct CommandWords: Equatable, Sendable {
    private var storage = SIMD16<UInt32>(repeating: 0)

    subscript(index: Int) -> UInt32 {
        get { storage[index] }
        set { storage[index] = newValue }
    }
}

/// An entry of a completion queue: 16 bytes.
struct CompletionEntry: Equatable {
    /// DW0 and DW1: what the command has to say.
    var result: UInt64
    /// SQHD.
    var submissionQueueHead: UInt16
    /// SQID.
    var submissionQueue: UInt16
    /// CID.
    var commandIdentifier: UInt16
    var status: CommandStatus

    static let byteCount = 16

    /// DW2 and DW3, with the phase tag.
    func secondHalf(phase: Bool) -> UInt64 {
        UInt64(submissionQueueHead) | UInt64(submissionQueue) << 16 | UInt64(commandIdentifier) << 32
            | (phase ? 1 << 48 : 0) | UInt64(status.rawValue & 0x7FFF) << 49
    }
}

/// Opcodes of the admin command set.
enum AdminOpcode {
    static let deleteSubmissionQueue: UInt8 = 0x00
    static let createSubmissionQueue: UInt8 = 0x01
    static let getLogPage: UInt8 = 0x02
    static let deleteCompletionQueue: UInt8 = 0x04
    static let createCompletionQueue: UInt8 = 0x05
    static let identify: UInt8 = 0x06
    static let abort: UInt8 = 0x08
    static let setFeatures: UInt8 = 0x09
    static let getFeatures: UInt8 = 0x0A
    static let asynchronousEventRequest: UInt8 = 0x0C
    static let doorbellBufferConfig: UInt8 = 0x7C

    static let all: [UInt8] = [
        deleteSubmissionQueue, createSubmissionQueue, getLogPage, deleteCompletionQueue,
        createCompletionQueue,
        identify, abort, setFeatures, getFeatures, asynchronousEventRequest, doorbellBufferConfig,
    ]
}

/// Opcodes of the NVM command set.
enum NVMOpcode {
    static let flush: UInt8 = 0x00
    static let write: UInt8 = 0x01
    static let read: UInt8 = 0x02
    static let compare: UInt8 = 0x05
    static let writeZeroes: UInt8 = 0x08
    static let datasetManagement: UInt8 = 0x09

    static let all: [UInt8] = [flush, write, read, compare, writeZeroes, datasetManagement]
    /// Those that change what the namespace holds.
    static let writing: [UInt8] = [write, writeZeroes, datasetManagement]
}

/// The NSID that stands for all namespaces.
let broadcastNamespace: UInt32 = 0xFFFF_FFFF
