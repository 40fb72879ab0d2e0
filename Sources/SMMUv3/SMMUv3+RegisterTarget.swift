// The SMMU's register window as the bus sees it.

package import DeviceModel
import SMMUv3Spec
import Synchronization

extension SMMUv3: RegisterTarget {
    /// Reads a register: 32 bits anywhere, 64 bits as two of 32.
    ///
    /// Undefined locations are RES0. 8- and 16-bit accesses are refused, or read as zero, as the options say: the
    /// architecture permits either (6.2).
    package func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        // What a driver polls.
        if offset == RegisterOffset.cmdqCons, width == .word {
            return UInt64(registers.withLock { $0.visibleCmdqCons })
        }
        guard try isLegal(offset, width) else { return 0 }
        let alias = options.aliasesPage1InPage0
        return registers.withLock { registers in
            let low = UInt64(registers.read(offset, aliasesPage1: alias))
            guard width == .doubleword else { return low }
            return low | UInt64(registers.read(offset &+ 4, aliasesPage1: alias)) &<< 32
        }
    }

    /// Writes a register: 32 bits anywhere, 64 bits as two of 32 that no other access comes between.
    package func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        // What a driver writes for each command or two.
        if offset == RegisterOffset.cmdqProd, width == .word {
            return writeProducer(UInt32(truncatingIfNeeded: value))
        }
        guard try isLegal(offset, width) else { return }
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
        if consequences.contains(.commandQueue) { commandProcessor.notify(self, commandProcessor.caller) }
    }

    /// Whether a register may be accessed so.
    ///
    /// - Throws: ``RegisterAccessError`` where it may not and the options refuse such accesses.
    private func isLegal(_ offset: UInt64, _ width: AccessWidth) throws(RegisterAccessError) -> Bool {
        let isWide = width == .word || width == .doubleword
        let isAligned = offset % UInt64(width.rawValue) == 0
        guard options.refusesIllegalAccesses else { return isWide && isAligned }
        guard isWide else { throw .unsupportedWidth }
        guard isAligned else { throw .misaligned }
        return true
    }
}
