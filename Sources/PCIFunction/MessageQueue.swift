// Messages on their way to memory: MSIs are DMA writes of the function's.

import AddressSpace
import DeviceModel
import Synchronization

/// What waits to be written, and the port through which it goes.
struct MessageQueue {
    // SAFETY of @unchecked Sendable: it is only ever used by the thread that set `isSending`.
    struct Port: @unchecked Sendable { let port: any DMAPort }

    var port: Port?
    /// Some thread writes messages, and takes those of others along.
    var isSending = false
    var waiting: [PCIMessage] = []

    /// As many as MSI-X has vectors.
    static let waitingMax = 2048
}

extension PCIFunction {
    /// Writes a message to memory as the function's DMA.
    ///
    /// No lock is held meanwhile, because software chooses the address: a message can unmask a vector of this very
    /// function, or of another whose message comes back here.
    func send(_ message: PCIMessage) {
        let first: MessageQueue.Port? = messages.withLock { queue in
            guard !queue.isSending else {
                // Two that are equal, of which nobody has seen the first, are one.
                if queue.waiting.count < MessageQueue.waitingMax, !queue.waiting.contains(message) {
                    queue.waiting.append(message)
                }
                return nil
            }
            let port = queue.port ?? MessageQueue.Port(port: makePort())
            queue.port = port
            queue.isSending = true
            return port
        }
        guard let port = first?.port else { return }
        var next: PCIMessage? = message
        while let message = next {
            // What becomes of a message that faults is the SMMU's to record; the function has nobody to tell.
            try? port.store(
                UInt64(message.data),
                .word,
                at: IOVirtualAddress(message.address),
                TransactionAttributes(isMessage: true)
            )
            next = messages.withLock { queue in
                guard !queue.waiting.isEmpty else {
                    queue.isSending = false
                    return nil
                }
                return queue.waiting.removeFirst()
            }
        }
    }
}
