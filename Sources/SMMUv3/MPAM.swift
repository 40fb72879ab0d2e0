// MPAM: with which PARTID and PMG a transaction goes to the bus, and the VMS that maps a virtual machine's PARTIDs
// (IHI 0070, 5.6 and chapter 17).

import AddressSpace
import BitFields
import DeviceModel
import SMMUv3Spec
import SystemBus

/// The partition and the monitoring group of a transaction.
///
/// Reported, and no more: nothing behind the SMMU depends on them.
package struct MPAMIdentity: Hashable, Sendable {
    package var partID: UInt16 = 0
    package var pmg: UInt8 = 0
}

/// VMS.PARTID_MAP: 32 PARTIDs of 16 bits.
struct PartIDMap: Equatable, Sendable {
    static let byteCount: UInt64 = 64
    var words: SIMD8<UInt64>

    /// The physical PARTID of a virtual one, of which five bits count.
    subscript(virtual: UInt16) -> UInt16 {
        let index = Int(virtual & 31)
        return UInt16(truncatingIfNeeded: words[index >> 2] &>> UInt64((index & 3) * 16))
    }
}

extension Identification {
    /// Whether CMD_CFGI_VMS_PIDM and STE.VMSPtr mean something.
    var hasVMS: Bool { idr3.mpam && idr0.s1P && idr0.s2P && mpamidr.partIDMax != 0 }

    /// The bits of SMMU_GMPAM and SMMU_GBPMPAM that are there: PARTID and PMG as wide as their largest values.
    var mpamMask: UInt32 {
        func mask(_ largest: UInt32) -> UInt32 {
            largest == 0 ? 0 : UInt32.max &>> UInt32(largest.leadingZeroBitCount)
        }
        return mask(UInt32(mpamidr.partIDMax)) | mask(UInt32(mpamidr.pmgMax)) &<< 16
    }

    /// PARTID and PMG as they go out; one that is too large is UNKNOWN to software, and 0 here.
    func effective(_ mpam: MPAMIdentity) -> MPAMIdentity {
        MPAMIdentity(
            partID: mpam.partID <= mpamidr.partIDMax ? mpam.partID : 0,
            pmg: mpam.pmg <= mpamidr.pmgMax ? mpam.pmg : 0
        )
    }
}

extension ResolvedStream {
    /// PARTID and PMG: the CD's where stage 1 translates and STE.S1MPAM lets it choose, else the STE's.
    var mpam: MPAMIdentity { translatesStage1 && stream.usesContextMPAM ? context.mpam : stream.mpam }
}

extension SMMUv3 {
    /// PARTID and PMG of a transaction that translation does not look at: SMMU_GBPMPAM.
    func globalMPAM(_ controls: TranslationControls) -> MPAMIdentity {
        identification.effective(
            MPAMIdentity(partID: controls.globalMPAM.gbpPartID, pmg: controls.globalMPAM.gbpPMG)
        )
    }

    /// PARTID and PMG of a CD; those of a virtual machine are mapped by its VMS.
    ///
    /// - Throws: F_VMS_FETCH.
    func mpam(
        of cd: CD,
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ lookup: LookupScope,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> MPAMIdentity {
        var result = MPAMIdentity(partID: cd.partID, pmg: cd.pmg)
        if stream.config == .nested, stream.usesContextMPAM, identification.hasVMS {
            result.partID = try partIDMap(stream, transaction, lookup, &observer)[cd.partID]
            let physical = result.partID
            observer.note("VMS.PARTID_MAP[\(cd.partID & 31)] is PARTID \(physical)")
        }
        return identification.effective(result)
    }

    /// VMS.PARTID_MAP of a stream, from the cache by VMID or from memory.
    private func partIDMap(
        _ stream: StreamConfiguration,
        _ transaction: Transaction,
        _ lookup: LookupScope,
        _ observer: inout some LookupObserver
    ) throws(TranslationFault) -> PartIDMap {
        if lookup.policy.looksInCaches, let map = configurationCache.partIDMap(stream.vmid) { return map }
        let map: PartIDMap
        observer.accessing(.configuration)
        do {
            map = PartIDMap(words: try bus.loadRAM64x8(at: PhysicalAddress(stream.vmsPointer)))
        } catch {
            throw .abort(
                .fetchAbort(
                    .fVMSFetch,
                    streamID: transaction.streamID,
                    substreamID: transaction.attributes.substreamID,
                    fetchAddress: stream.vmsPointer
                ),
                "nobody answers at the VMS's address 0x\(String(stream.vmsPointer, radix: 16))"
            )
        }
        observer.fetchedConfiguration(counters)
        if lookup.policy == .cached {
            configurationCache.fill(partIDMapOf: stream.vmid, map, fetchedAt: lookup.generation)
        }
        return map
    }
}
