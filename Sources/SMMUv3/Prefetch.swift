// CMD_PREFETCH_CONFIG and CMD_PREFETCH_ADDR (IHI 0070, 4.2).

import AddressSpace
import DeviceModel
import SMMUv3Spec

extension SMMUv3 {
    /// How many addresses one command looks at, at most: it has to end in a reasonable time.
    private static var prefetchLimit: UInt64 { 1024 }

    /// Fills the caches with what a read by the stream would need.
    ///
    /// What faults leaves nothing behind: no event, no stall. Access flags are set, as a speculative read may; dirty
    /// states are not, because nothing is written.
    func prefetch(_ command: Command) {
        let controls = currentControls()
        guard options.executesPrefetches, controls.isEnabled else { return }
        let transaction = Transaction(
            streamID: command.streamID,
            attributes: TransactionAttributes(substreamID: command.ssv ? command.substreamID : nil),
            kind: .read,
            address: IOVirtualAddress(command.address)
        )
        withOwnAccess {
            var observer = NoObserver()
            guard let resolved = try? resolveStream(transaction, controls, .cached, &observer),
                command.opcode == .prefetchAddr
            else { return }
            // No more than half of the TLB: what comes later would push out what came first.
            let limit = min(Self.prefetchLimit, UInt64(max(options.tlbEntries / 2, 1)))
            let count = min(1 &<< UInt64(command.prefetchSize), limit)
            let stride: UInt64 = 1 &<< (12 &+ UInt64(command.prefetchStride))
            var current = transaction
            for _ in 0..<count {
                // What does not translate is passed over.
                _ = try? translate(current, resolved, controls.generation, .cached, &observer)
                let (next, wraps) = current.address.rawValue.addingReportingOverflow(stride)
                guard !wraps else { return }
                current.address = IOVirtualAddress(next)
            }
        }
    }
}
