// Page requests: the PRI queue, its overflow and aborts, and the responses of functions' requests.

import AddressSpace
import DeviceModel
import SMMUv3Spec
import Synchronization
import SystemBus

extension SMMUv3 {
    /// What becomes of a page request.
    private enum Admission {
        /// It is in the queue, and software responds; or it is dropped, and nobody does.
        case taken
        /// The queue overflows: the function is to try again.
        case overflow
        /// Page requests are not served here.
        case refused
    }

    /// Takes a page request of a function (IHI 0070, chapter 8).
    ///
    /// A response that the SMMU makes by itself comes before this returns.
    func receive(_ request: PageRequest, from streamID: StreamID) {
        count(.pageRequests)
        let (admission, hasMessages) = registers.withLock { registers in
            (admit(request, streamID, &registers), registers.messages.hasUnsent)
        }
        if hasMessages { sendMessages() }
        // No response to a stop marker, whatever becomes of it.
        guard !request.isStopMarker else { return }
        switch admission {
        case .taken: break
        case .refused: respond(to: request, of: streamID, .responseFailure, withSubstream: false)
        case .overflow:
            // What is dropped in the middle of a group goes unanswered: the last of it is not.
            if request.isLast { respondToOverflow(request, streamID) }
        }
    }

    /// Appends a request to the PRI queue.
    ///
    /// Under the registers' lock, so that PROD, OVFLG and the interrupt tell one story.
    private func admit(_ request: PageRequest, _ streamID: StreamID, _ registers: inout RegisterFile)
        -> Admission
    {
        guard identification.idr0.pri, registers.cr0ack.priqen, registers.cr0ack.smmuen,
            !registers.activeErrors.priqAbtErr
        else { return .refused }
        let log2Entries = registers.priq.log2Entries(identification)
        let producer = QueueIndex(registers.priq.prod.wr, log2Entries: log2Entries)
        let consumer = QueueIndex(registers.priq.cons.rd, log2Entries: log2Entries)
        let used = producer.entries(after: consumer)
        let isFull = used.map { $0 >= 1 &<< UInt32(log2Entries) } ?? true
        if registers.priq.isOverflowing || isFull {
            if !registers.priq.isOverflowing { registers.priq.prod.ovflg.toggle() }
            if registers.priq.interruptsOnLast, request.isLast {
                interrupt(.pageRequestQueue, in: &registers)
            }
            return .overflow
        }
        let address = RegisterFile.entryAddress(
            registers.priq.base,
            producer,
            entryBytes: UInt64(PRIEntry.byteCount),
            below: registers.outputAddressLimit
        )
        let words = PRIEntry(request, of: streamID).words
        do {
            try bus.storeRAM64(words[0], at: PhysicalAddress(address))
            try bus.storeRAM64(words[1], at: PhysicalAddress(address &+ 8))
        } catch {
            raiseGlobalError(in: &registers) { $0.priqAbtErr.toggle() }
            return .refused
        }
        registers.priq.prod.wr = producer.next.rawValue
        if registers.priq.interruptsOnLast ? request.isLast : used == 0 {
            interrupt(.pageRequestQueue, in: &registers)
        }
        return .taken
    }

    /// The response to a group that an overflow cut short: success, so that the function tries again (8.1, 8.2).
    ///
    /// Whether it carries the PASID is the system's (IDR3.PPS) or the stream's (STE.PPAR) choice.
    private func respondToOverflow(_ request: PageRequest, _ streamID: StreamID) {
        guard request.substreamID != nil, !identification.idr3.pps else {
            return respond(to: request, of: streamID, .success, withSubstream: true)
        }
        guard let keepsPASID = responsesKeepPASID(request, streamID) else {
            return respond(to: request, of: streamID, .responseFailure, withSubstream: false)
        }
        respond(to: request, of: streamID, .success, withSubstream: keepsPASID)
    }

    /// STE.PPAR; nil where there is no valid STE, which is recorded if CR2.REC_CFG_ATS wants it.
    private func responsesKeepPASID(_ request: PageRequest, _ streamID: StreamID) -> Bool? {
        let transaction = Transaction(
            streamID: streamID,
            attributes: TransactionAttributes(substreamID: request.substreamID),
            kind: .read,
            address: request.address
        )
        let controls = currentControls()
        guard controls.isEnabled else { return nil }
        var observer = NoObserver()
        do {
            return try withOwnAccess { () throws(TranslationFault) -> Bool in
                let ste = try fetchSTE(transaction, controls, .cached, &observer)
                // One that aborts all transactions is valid.
                if !ste.v || !ste.config.abortsSilently {
                    _ = try configuration(of: ste, transaction, controls)
                }
                return ste.ppar
            }
        } catch {
            var fault = error
            if !controls.recordsATSErrors { fault.record = nil }
            report(fault, transaction)
            return nil
        }
    }

    private func respond(
        to request: PageRequest,
        of streamID: StreamID,
        _ code: PageRequestGroupResponse.Code,
        withSubstream: Bool
    ) {
        atsEndpoints.endpoint(at: streamID)?.receive(
            PageRequestGroupResponse(
                group: request.group & 0x1FF,
                substreamID: withSubstream ? request.substreamID : nil,
                code: code
            )
        )
    }

    /// CMD_PRI_RESP.
    func respondToPageRequests(_ command: Command) -> CommandOutcome {
        guard identification.idr0.pri else { return .failed(.cerrorIll) }
        let code: PageRequestGroupResponse.Code
        switch command.priResp {
        case PageResponse.failure.rawValue: code = .responseFailure
        case PageResponse.invalidRequest.rawValue: code = .invalidRequest
        case PageResponse.success.rawValue: code = .success
        default: return .failed(.cerrorIll)
        }
        guard registers.withLock({ $0.cr0ack.smmuen }) else { return .done }
        atsEndpoints.endpoint(at: command.streamID)?.receive(
            PageRequestGroupResponse(
                group: command.prgIndex,
                substreamID: command.ssv ? command.substreamID : nil,
                code: code
            )
        )
        return .done
    }
}

extension PRIEntry {
    /// The entry of a request; X and Priv are of requests with a PASID alone.
    init(_ request: PageRequest, of streamID: StreamID) {
        self.init()
        self.streamID = streamID
        if let substreamID = request.substreamID {
            ssv = true
            self.substreamID = substreamID
            x = request.wantsExecute
            priv = request.isPrivileged
        }
        r = request.wantsRead
        w = request.wantsWrite
        last = request.isLast
        prgIndex = request.group & 0x1FF
        pageAddress = request.address.rawValue
    }
}
