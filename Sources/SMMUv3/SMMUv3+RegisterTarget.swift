// The SMMU's register window as the bus sees it.

package import DeviceModel
import SMMUv3Spec
import Synchronization

extension SMMUv3: RegisterTarget {
    /// Reads a register: 32 bits anywhere, 64 bits as two of 32.
    ///
    /// Undefined locations are RES0. 8- and 16-bit accesses are refused, as the architecture permits (6.2).
    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        try checkAccess(offset, width)
        let alias = options.aliasesPage1InPage0
        return registers.withLock { registers in
            let low = UInt64(registers.read(offset, aliasesPage1: alias))
            guard width == .doubleword else { return low }
            return low | UInt64(registers.read(offset &+ 4, aliasesPage1: alias)) &<< 32
        }
    }

    /// Writes a register: 32 bits anywhere, 64 bits as two of 32 that no other access comes between.
    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        try checkAccess(offset, width)
        let alias = options.aliasesPage1InPage0
        let consequences = registers.withLock { registers in
            var consequences = registers.write(
                UInt32(truncatingIfNeeded: value),
                at: offset,
                aliasesPage1: alias
            )
            if width == .doubleword {
                consequences.formUnion(
                    registers.write(
                        UInt32(truncatingIfNeeded: value &>> 32),
                        at: offset &+ 4,
                        aliasesPage1: alias
                    )
                )
            }
            // Under the lock: a port that reads the new registers must not keep what it found under the old ones.
            if consequences.contains(.translationControls) { invalidationGeneration.advance() }
            return consequences
        }
        if consequences.contains(.commandQueue) { commandProcessor.notify(self) }
    }

    private func checkAccess(_ offset: UInt64, _ width: AccessWidth) throws(RegisterAccessError) {
        guard width == .word || width == .doubleword else { throw .unsupportedWidth }
        guard offset % UInt64(width.rawValue) == 0 else { throw .misaligned }
    }
}
