// Every register's value, and the rules of who may write what when.

import BitFields
import DeviceModel
import SMMUv3Spec

/// The registers of one SMMU, guarded as a whole by one lock.
///
/// IHI 0070, chapter 6. This is an SMMUv3.2: a write to a register whose guard is set is ignored. Reset is
/// construction: what is not named in `init` goes back to its declared value.
struct RegisterFile: Sendable {
    var cr0 = CR0(rawValue: 0)
    var cr0ack = CR0(rawValue: 0)
    var cr1 = CR1(rawValue: 0)
    var cr2 = CR2(rawValue: 0)
    /// SHCFG = use incoming, and ABORT, which is IMPLEMENTATION DEFINED, as the options have it.
    var gbpa: GBPA
    var irqCtrl = IRQCtrl(rawValue: 0)
    var gerrorMessage = MessageRegisters()
    var eventqMessage = MessageRegisters()
    var priq = PRIQRegisters()
    var messages = OutgoingMessages()
    var stalls: StallTable
    var gerror = GError(rawValue: 0)
    var gerrorn = GError(rawValue: 0)
    var strtabBase = StrtabBase(rawValue: 0)
    var strtabBaseCfg = StrtabBaseCfg(rawValue: 0)
    var cmdqBase = QueueBase(rawValue: 0) { didSet { layOutCommandQueue() } }
    /// log2 of the command queue's entries: LOG2SIZE capped to SMMU_IDR1.CMDQS.
    private(set) var cmdqLog2Entries: UInt8 = 0
    /// The bits of its indices, the wrap flag included.
    private(set) var cmdqIndexMask: UInt32 = 1
    /// Where the command queue begins.
    private(set) var cmdqStart: UInt64 = 0
    /// Where it is in the host.
    var cmdqMemory = CommandQueueMemory()
    var cmdqProd: UInt32 = 0
    var cmdqCons = CmdqCons(rawValue: 0)
    var eventqBase = QueueBase(rawValue: 0)
    var eventqProd = OutputQueueProd(rawValue: 0)
    var eventqCons = OutputQueueCons(rawValue: 0)
    var gatos = ATOSRegisters()
    var vatos = ATOSRegisters()
    var vatosSel = VATOSSel(rawValue: 0)
    var gmpam = GMPAM(rawValue: 0)
    var gbpmpam = GBPMPAM(rawValue: 0)
    var enhancedQueues: [EnhancedCommandQueue]
    var eventLog: EventLog
    let identification: Identification
    /// The first address above OAS.
    let outputAddressLimit: UInt64
    /// GBPA's value after a reset.
    private let gbpaAtReset: GBPA
    /// How many resets came before: a command that was under way when one came must not write what is new.
    let epoch: UInt64

    init(identification: Identification, options: SMMUv3Options) {
        self.identification = identification
        outputAddressLimit = identification.outputAddressLimit
        gbpaAtReset = GBPA(rawValue: options.abortsAtReset ? 0x0010_1000 : 0x1000)
        gbpa = gbpaAtReset
        eventLog = EventLog(capacity: options.eventLogCapacity)
        stalls = StallTable(capacity: identification.idr5.stallMax)
        enhancedQueues = EnhancedCommandQueue.all(of: identification)
        epoch = 0
    }

    /// The registers after a reset.
    ///
    /// The log is kept: it is for people, not for software. Stalled transactions are aborted.
    init(resetting old: RegisterFile) {
        identification = old.identification
        outputAddressLimit = old.outputAddressLimit
        gbpaAtReset = old.gbpaAtReset
        gbpa = gbpaAtReset
        enhancedQueues = EnhancedCommandQueue.all(of: identification)
        eventLog = old.eventLog
        stalls = old.stalls
        stalls.terminateAll()
        epoch = old.epoch &+ 1
    }

    // MARK: What the rest works from

    var translationControls: TranslationControls {
        TranslationControls(
            isEnabled: cr0ack.smmuen,
            globalBypass: gbpa,
            globalMPAM: gbpmpam,
            recordsBadStreamIDs: cr2.recinvsid,
            isE2H: cr2.e2H,
            checksTranslated: cr0ack.atschk,
            recordsATSErrors: cr2.recCfgATS,
            tableBase: maskedStrtabBase,
            tableConfiguration: strtabBaseCfg
        )
    }

    /// STRTAB_BASE with the address bits above OAS, which are RES0, cleared.
    private var maskedStrtabBase: StrtabBase {
        var base = strtabBase
        base.addr &= outputAddressLimit &- 1
        return base
    }

    private mutating func layOutCommandQueue() {
        cmdqMemory = CommandQueueMemory()
        cmdqLog2Entries = min(cmdqBase.log2size, identification.idr1.cmdqs)
        cmdqIndexMask = (2 &<< UInt32(cmdqLog2Entries)) &- 1
        cmdqStart = Self.entryAddress(
            cmdqBase,
            QueueIndex(0, log2Entries: cmdqLog2Entries),
            entryBytes: UInt64(Command.byteCount),
            below: outputAddressLimit
        )
    }

    var eventqLog2Entries: UInt8 { min(eventqBase.log2size, identification.idr1.eventqs) }

    /// Where a queue's entry is: the base is aligned to the queue's size, at least 32 bytes.
    static func entryAddress(
        _ base: QueueBase,
        _ index: QueueIndex,
        entryBytes: UInt64,
        below limit: UInt64
    ) -> UInt64 {
        let queueBytes = max(32, entryBytes &<< UInt64(index.log2Entries))
        let address = base.addr & (limit &- 1)
        return address.roundedDown(toPowerOfTwo: queueBytes) &+ index.entry &* entryBytes
    }

    /// SMMU_IRQ_CTRLACK: an enable that was cleared is acknowledged when its messages are delivered or refused.
    var irqCtrlack: IRQCtrl { IRQCtrl(rawValue: irqCtrl.rawValue | messages.underWay.rawValue) }

    /// GERROR bits that are active: GERROR differs from GERRORN.
    var activeErrors: GError { GError(rawValue: gerror.rawValue ^ gerrorn.rawValue) }

    // MARK: Reading

    /// The 32-bit word at `offset` of the window, 0 where there is no register (RES0).
    func read(_ offset: UInt64, aliasesPage1: Bool) -> UInt32 {
        switch offset {
        case RegisterOffset.idr0: identification.idr0.rawValue
        case RegisterOffset.idr1: identification.idr1.rawValue
        case RegisterOffset.idr2: identification.idr2.rawValue
        case RegisterOffset.idr3: identification.idr3.rawValue
        case RegisterOffset.idr5: identification.idr5.rawValue
        case RegisterOffset.iidr: identification.iidr.rawValue
        case RegisterOffset.aidr: identification.aidr.rawValue
        case RegisterOffset.cr0: cr0.rawValue
        case RegisterOffset.cr0ack: cr0ack.rawValue
        case RegisterOffset.cr1: cr1.rawValue
        case RegisterOffset.cr2: cr2.rawValue
        case RegisterOffset.gbpa: gbpa.rawValue
        case RegisterOffset.irqCtrl: irqCtrl.rawValue
        case RegisterOffset.irqCtrlack: irqCtrlack.rawValue
        case RegisterOffset.gerror: gerror.rawValue
        case RegisterOffset.gerrorn: gerrorn.rawValue
        case RegisterOffset.gerrorIrqCfg1: gerrorMessage.cfg1.rawValue
        case RegisterOffset.gerrorIrqCfg2: gerrorMessage.cfg2.rawValue
        case RegisterOffset.eventqIrqCfg1: eventqMessage.cfg1.rawValue
        case RegisterOffset.eventqIrqCfg2: eventqMessage.cfg2.rawValue
        case RegisterOffset.strtabBaseCfg: strtabBaseCfg.rawValue
        case RegisterOffset.cmdqProd: cmdqProd
        case RegisterOffset.cmdqCons: visibleCmdqCons
        case RegisterOffset.eventqProd: visibleEventqProd
        case RegisterOffset.eventqCons: eventqCons.rawValue
        case 0xA8 where aliasesPage1: visibleEventqProd
        case 0xAC where aliasesPage1: eventqCons.rawValue
        case RegisterOffset.cidr0...RegisterOffset.cidr0 + 0xC, RegisterOffset.pidr4...RegisterOffset.cidr0:
            Self.componentIdentification(offset)
        default:
            readPRIQ(offset, aliasesPage1: aliasesPage1) ?? read64Half(offset)
        }
    }

    /// The SMMU's own indices read as zero above the wrap bit, whatever software once wrote there (3.5.1).
    var visibleCmdqCons: UInt32 {
        var value = cmdqCons
        value.rd &= cmdqIndexMask
        return value.rawValue
    }

    private var visibleEventqProd: UInt32 {
        var value = eventqProd
        value.wr = QueueIndex(eventqProd.wr, log2Entries: eventqLog2Entries).rawValue
        return value.rawValue
    }

    private func read64Half(_ offset: UInt64) -> UInt32 {
        let register: UInt64
        switch offset & ~4 {
        case RegisterOffset.strtabBase: register = strtabBase.rawValue
        case RegisterOffset.cmdqBase: register = cmdqBase.rawValue
        case RegisterOffset.eventqBase: register = eventqBase.rawValue
        case RegisterOffset.gerrorIrqCfg0: register = gerrorMessage.cfg0.rawValue
        case RegisterOffset.eventqIrqCfg0: register = eventqMessage.cfg0.rawValue
        default: return readOptional(offset)
        }
        return UInt32(truncatingIfNeeded: offset & 4 == 0 ? register : register &>> 32)
    }

    /// SMMU_PIDRn and SMMU_CIDRn: the CoreSight preamble; no part number, because this is nobody's part.
    private static func componentIdentification(_ offset: UInt64) -> UInt32 {
        switch offset {
        case 0xFF0: 0x0D
        case 0xFF4: 0xF0
        case 0xFF8: 0x05
        case 0xFFC: 0xB1
        default: 0
        }
    }
}
