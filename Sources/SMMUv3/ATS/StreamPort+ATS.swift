// A port as a PCIe function with an ATC uses it.

package import DeviceModel
import SMMUv3Spec
import SystemBus

extension StreamPort: ATSPort {
    package func translate(_ request: ATSTranslationRequest) -> ATSTranslationAnswer {
        enterTransaction()
        defer { leaveTransaction() }
        var accesses = LookupAccesses()
        let answer = smmu.answer(request, of: streamID, &accesses)
        if smmu.identification.idr0.ats { smmu.performance.record(.atsTranslationRequest, streamID) }
        record(accesses)
        return answer
    }

    package func sendPageRequest(_ request: PageRequest) { smmu.receive(request, from: streamID) }

    package func beginTransaction() {
        // The slot would say outside while the port is inside.
        precondition(!isBracketed, "brackets do not nest")
        enterTransaction()
        isBracketed = true
    }

    package func endTransaction() {
        isBracketed = false
        leaveTransaction()
    }
}
