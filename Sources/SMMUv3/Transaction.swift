// One transaction as it enters the SMMU, and what its stream makes of it.

package import AddressSpace
package import DeviceModel
import SMMUv3Spec

/// What a transaction wants to do.
package enum TransactionKind: Hashable, Sendable {
    case read
    case write
}

/// A transaction as the device drives it.
package struct Transaction: Hashable, Sendable {
    package var streamID: StreamID
    package var attributes: TransactionAttributes
    package var kind: TransactionKind
    package var address: IOVirtualAddress

    package init(
        streamID: StreamID,
        attributes: TransactionAttributes,
        kind: TransactionKind,
        address: IOVirtualAddress
    ) {
        self.streamID = streamID
        self.attributes = attributes
        self.kind = kind
        self.address = address
    }
}

/// A transaction's privilege and data or instruction, after the STE's overrides.
struct EffectiveAccess: Hashable, Sendable {
    var isWrite: Bool
    /// PnU.
    var isPrivileged: Bool
    /// InD.
    ///
    /// Writes are always data.
    var isInstruction: Bool

    /// As the device drives it.
    init(_ transaction: Transaction) { self.init(transaction.kind, transaction.attributes) }

    @inline(__always)  // For each look-up that a port does not answer.
    init(_ kind: TransactionKind, _ attributes: TransactionAttributes) {
        isWrite = kind == .write
        isPrivileged = attributes.isPrivileged
        isInstruction = attributes.isInstruction && kind == .read
    }

    init(isWrite: Bool, isPrivileged: Bool, isInstruction: Bool) {
        self.isWrite = isWrite
        self.isPrivileged = isPrivileged
        self.isInstruction = isInstruction && !isWrite
    }

    /// STE.PRIVCFG and STE.INSTCFG applied (where SMMU_IDR1.ATTR_PERMS_OVR says that they work).
    func overridden(by stream: StreamConfiguration) -> EffectiveAccess {
        overridden(privCfg: stream.privCfg, instCfg: stream.instCfg)
    }

    /// PRIVCFG and INSTCFG of an STE or of GBPA applied.
    func overridden(privCfg: UInt8, instCfg: UInt8) -> EffectiveAccess {
        var access = self
        switch privCfg {
        case 0b10: access.isPrivileged = false
        case 0b11: access.isPrivileged = true
        default: break
        }
        guard !isWrite else { return access }
        switch instCfg {
        case 0b10: access.isInstruction = false
        case 0b11: access.isInstruction = true
        default: break
        }
        return access
    }

    /// Which permission it needs.
    var required: Permissions {
        let base: Permissions =
            isWrite ? .unprivilegedWrite : isInstruction ? .unprivilegedExecute : .unprivilegedRead
        return isPrivileged ? Permissions(rawValue: base.rawValue << 3) : base
    }
}

extension EffectiveAccess: CustomStringConvertible {
    var description: String {
        let privilege = isPrivileged ? "privileged" : "unprivileged"
        return "\(privilege) \(isWrite ? "writes" : isInstruction ? "instruction fetches" : "reads")"
    }
}
