// What an NVMe controller is built as, and why one is not built.

package import PCIFunction
package import SystemPackage

/// What a controller is built as, beside its image.
package struct NVMeParameters: Sendable {
    /// Identify Controller's Serial Number: 1 to 20 printable ASCII characters.
    ///
    /// The namespace's identifiers and the subsystem's name are made from it, so two controllers of one machine have
    /// different ones.
    package var serialNumber: String
    /// Identify Controller's Model Number: 1 to 40 printable ASCII characters.
    package var modelNumber: String
    /// The size of a logical block in bytes: 512 or 4096.
    package var logicalBlockByteCount: Int
    /// How many pairs of I/O queues software may make, 1...64; each submission queue has a thread.
    package var ioQueueCount: Int
    /// How many entries a queue may have, 2...4096.
    package var queueEntryCountMax: Int
    /// How long an I/O queue's thread looks for the next command before it asks for the doorbell, where commands come
    /// in bursts; 0 is not at all.
    package var pollMicroseconds = 0
    /// Who the function says it is.
    ///
    /// No vendor of this kind is registered: 0x1234 is a number that emulated devices use.
    package var identity: PCIIdentity

    package init(
        serialNumber: String,
        modelNumber: String = "smmud NVMe",
        logicalBlockByteCount: Int = 512,
        ioQueueCount: Int = 8,
        queueEntryCountMax: Int = 1024,
        identity: PCIIdentity = PCIIdentity(
            vendorID: 0x1234,
            deviceID: 0x4E56,
            subsystemVendorID: 0x1234,
            subsystemID: 0x4E56,
            classCode: 0x01_0802
        )
    ) {
        self.serialNumber = serialNumber
        self.modelNumber = modelNumber
        self.logicalBlockByteCount = logicalBlockByteCount
        self.ioQueueCount = ioQueueCount
        self.queueEntryCountMax = queueEntryCountMax
        self.identity = identity
    }

    func check(imageByteCount: UInt64, path: String) throws(NVMeError) {
        guard Self.isText(serialNumber, 20) else { throw .serialNumber(serialNumber) }
        guard Self.isText(modelNumber, 40) else { throw .modelNumber(modelNumber) }
        guard [512, 4096].contains(logicalBlockByteCount) else { throw .blockSize(logicalBlockByteCount) }
        guard imageByteCount.isMultiple(of: UInt64(logicalBlockByteCount)) else {
            throw .notWholeBlocks(
                path: path,
                byteCount: imageByteCount,
                blockByteCount: logicalBlockByteCount
            )
        }
        guard (1...64).contains(ioQueueCount) else { throw .ioQueueCount(ioQueueCount) }
        guard (2...4096).contains(queueEntryCountMax) else { throw .queueEntryCount(queueEntryCountMax) }
    }

    private static func isText(_ text: String, _ count: Int) -> Bool {
        (1...count).contains(text.utf8.count) && text.utf8.allSatisfy { (0x20...0x7E).contains($0) }
    }
}

/// Why there is no controller.
package enum NVMeError: Error, Equatable, CustomStringConvertible {
    case serialNumber(String)
    case modelNumber(String)
    case blockSize(Int)
    case notWholeBlocks(path: String, byteCount: UInt64, blockByteCount: Int)
    case ioQueueCount(Int)
    case queueEntryCount(Int)
    case noThread(Errno)

    package var description: String {
        switch self {
        case .serialNumber(let text): "serial number '\(text)': 1 to 20 printable ASCII characters are wanted"
        case .modelNumber(let text): "model number '\(text)': 1 to 40 printable ASCII characters are wanted"
        case .blockSize(let count): "logical blocks of \(count) bytes: 512 or 4096 are possible"
        case .notWholeBlocks(let path, let byteCount, let blockByteCount):
            "\(path): \(byteCount) bytes are not whole blocks of \(blockByteCount)"
        case .ioQueueCount(let count): "\(count) I/O queues: 1 to 64 are possible"
        case .queueEntryCount(let count): "queues of \(count) entries: 2 to 4096 are possible"
        case .noThread(let error): "a thread for the controller: \(error.description)"
        }
    }
}
