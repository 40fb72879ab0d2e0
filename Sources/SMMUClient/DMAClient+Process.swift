// A client's own address space for devices: they work at the addresses that the client itself uses.

package import ControlProtocol

/// A device that works in the client's address space.
package struct DMABinding: Equatable, Sendable {
    /// The SubstreamID that its transactions carry to do so: ``DMAAttributes/substream``.
    package let substream: UInt32
    /// The client's number, as `sva.list` of the control socket has it.
    package let process: UInt32
    package let asid: UInt16
}

extension DMAClient {
    /// Shows devices a mapping, at its own addresses unless others are named; a page is theirs when they ask for it.
    ///
    /// - Parameters:
    ///   - mapping: What is shown, all of it.
    ///   - address: Where devices see it: a multiple of 4096 below 2^48.
    ///   - protection: What devices may do.
    package func mapProcess(
        _ mapping: SharedMapping,
        at address: UInt64? = nil,
        protection: DMAProtection = [.read, .write]
    ) throws(ClientError) {
        let own = UInt64(UInt(bitPattern: mapping.bytes.baseAddress))
        let request = DMARequest(
            .processMap,
            id: nextID(),
            stream: protection.rawValue,
            iova: address ?? own,
            count: UInt64(mapping.bytes.count)
        )
        _ = try call(request, descriptors: [mapping.descriptor])
    }

    /// Takes addresses from devices: when it returns they reach nothing there.
    package func unmapProcess(at address: UInt64, count: UInt64) throws(ClientError) {
        try call(DMARequest(.processUnmap, id: nextID(), iova: address, count: count))
    }

    /// The same of a whole mapping.
    package func unmapProcess(_ mapping: SharedMapping) throws(ClientError) {
        try unmapProcess(
            at: UInt64(UInt(bitPattern: mapping.bytes.baseAddress)),
            count: UInt64(mapping.bytes.count)
        )
    }

    /// Has an endpoint work in this client's address space.
    package func bind(_ endpoint: DMAEndpoint) throws(ClientError) -> DMABinding {
        let answer = try call(DMARequest(.processBind, id: nextID(), endpoint: endpoint.handle))
        return DMABinding(
            substream: answer.handle,
            process: UInt32(truncatingIfNeeded: answer.value0),
            asid: UInt16(truncatingIfNeeded: answer.value1)
        )
    }

    /// The reverse, once for each ``bind(_:)``.
    package func unbind(_ endpoint: DMAEndpoint) throws(ClientError) {
        try call(DMARequest(.processUnbind, id: nextID(), endpoint: endpoint.handle))
    }
}
