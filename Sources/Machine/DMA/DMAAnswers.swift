// From what the machine and memory say to what the DMA socket answers.

import AddressSpace
import ControlProtocol
import DeviceModel
import Glibc
import GuestMemory

extension TransactionAttributes {
    /// What a request says of its transaction.
    init(of request: DMARequest) {
        self.init(
            substreamID: request.flags.contains(.substream) ? SubstreamID(request.substream) : nil,
            isPrivileged: request.flags.contains(.privileged),
            isInstruction: request.flags.contains(.instruction)
        )
    }
}

extension DMAResponse {
    /// The answer to a request that met with a fault.
    ///
    /// - Parameter done: How many bytes of the request were transferred before the piece with the fault.
    init(to request: DMARequest, _ fault: DMAFault, before done: UInt64 = 0) {
        self.init(
            to: request,
            transferred: done &+ fault.bytesTransferred,
            address: fault.address.rawValue
        )
        switch fault.cause {
        case .event(let number):
            status = .fault
            event = UInt32(number)
        case .aborted:
            status = .aborted
        case .bus(let error):
            status = .busError
            value0 = error.address.rawValue
        }
    }
}

extension DMARejection {
    /// Why memory that a client shares is not used.
    init(_ error: GuestMemoryError) {
        let status: DMAStatus =
            switch error {
            case .empty, .notMappable, .servedByProcess, .descriptorForbids, .writeSealed, .readOnly:
                .parameter
            case .tooLarge, .fileTooShort, .outOfRange: .range
            case .tooManyMappings: .limit
            case .refused, .lost: .failed
            }
        self.init(status, error.description)
    }
}

extension OwnedDescriptor {
    /// Whether it is open for writing.
    var isWritable: Bool { fcntl(rawValue, F_GETFL) & O_ACCMODE == O_RDWR }

    /// How many bytes the file has from `offset` on.
    func byteCount(from offset: UInt64) -> UInt64 {
        var status = stat()
        guard fstat(rawValue, &status) == 0, let end = UInt64(exactly: status.st_size), end > offset else {
            return 0
        }
        return end - offset
    }
}
