// From a register's offset to the word that it holds.

extension RegisterMap {
    /// The fields of a register's value; none where the word has no fields that are known here.
    ///
    /// - Parameters:
    ///   - offset: The register's offset from page 0.
    ///   - value: What it holds.
    /// - Returns: The fields by bit number.
    public static func fields(at offset: UInt64, value: UInt64) -> [DecodedField] {
        decoders[offset]?(value) ?? []
    }

    private static let decoders: [UInt64: @Sendable (UInt64) -> [DecodedField]] = [
        RegisterOffset.idr0: decoder(IDR0.self), RegisterOffset.idr1: decoder(IDR1.self),
        RegisterOffset.idr2: decoder(IDR2.self), RegisterOffset.idr3: decoder(IDR3.self),
        RegisterOffset.idr5: decoder(IDR5.self), RegisterOffset.idr6: decoder(IDR6.self),
        RegisterOffset.iidr: decoder(IIDR.self), RegisterOffset.aidr: decoder(AIDR.self),
        RegisterOffset.cr0: decoder(CR0.self), RegisterOffset.cr0ack: decoder(CR0.self),
        RegisterOffset.cr1: decoder(CR1.self), RegisterOffset.cr2: decoder(CR2.self),
        RegisterOffset.statusr: decoder(STATUSR.self), RegisterOffset.gbpa: decoder(GBPA.self),
        RegisterOffset.agbpa: decoder(AGBPA.self), RegisterOffset.irqCtrl: decoder(IRQCtrl.self),
        RegisterOffset.irqCtrlack: decoder(IRQCtrl.self), RegisterOffset.gerror: decoder(GError.self),
        RegisterOffset.gerrorn: decoder(GError.self), RegisterOffset.gerrorIrqCfg0: decoder(IRQCfg0.self),
        RegisterOffset.gerrorIrqCfg1: decoder(IRQCfg1.self),
        RegisterOffset.gerrorIrqCfg2: decoder(IRQCfg2.self),
        RegisterOffset.eventqIrqCfg0: decoder(IRQCfg0.self),
        RegisterOffset.eventqIrqCfg1: decoder(IRQCfg1.self),
        RegisterOffset.eventqIrqCfg2: decoder(IRQCfg2.self),
        RegisterOffset.priqIrqCfg0: decoder(IRQCfg0.self),
        RegisterOffset.priqIrqCfg1: decoder(IRQCfg1.self), RegisterOffset.priqIrqCfg2: decoder(IRQCfg2.self),
        RegisterOffset.strtabBase: decoder(StrtabBase.self),
        RegisterOffset.strtabBaseCfg: decoder(StrtabBaseCfg.self),
        RegisterOffset.cmdqBase: decoder(QueueBase.self), RegisterOffset.cmdqProd: decoder(CmdqProd.self),
        RegisterOffset.cmdqCons: decoder(CmdqCons.self), RegisterOffset.eventqBase: decoder(QueueBase.self),
        RegisterOffset.eventqProd: decoder(OutputQueueProd.self),
        RegisterOffset.eventqCons: decoder(OutputQueueCons.self),
        RegisterOffset.priqBase: decoder(QueueBase.self),
        RegisterOffset.priqProd: decoder(OutputQueueProd.self),
        RegisterOffset.priqCons: decoder(OutputQueueCons.self),
        RegisterOffset.gatosCtrl: decoder(GATOSCtrl.self),
        RegisterOffset.gatosSid: decoder(GATOSSid.self), RegisterOffset.gatosAddr: decoder(GATOSAddr.self),
        RegisterOffset.gatosPar: decoder(GATOSPar.self), RegisterOffset.vatosSel: decoder(VATOSSel.self),
        RegisterOffset.mpamidr: decoder(MPAMIDR.self), RegisterOffset.gmpam: decoder(GMPAM.self),
        RegisterOffset.gbpmpam: decoder(GBPMPAM.self),
    ]

    private static func decoder<Word: RegisterWord>(_: Word.Type) -> @Sendable (UInt64) -> [DecodedField] {
        { Word(rawValue: Word.RawValue(truncatingIfNeeded: $0)).fields }
    }
}
