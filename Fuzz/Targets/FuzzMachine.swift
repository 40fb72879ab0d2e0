// The machine that the SMMU's fuzzers work on, and its transactions.

import AddressSpace
import BareMachine
import DeviceModel
import GuestMemory
import SMMUv3
import SMMUv3Spec
import Synchronization

/// A machine with 128 KiB of RAM, empty at the start of each run, and commands executed inline.
///
/// Its SMMU has everything, or in one of four inputs stage 1 alone. No port of it stalls: nobody would resume it.
struct FuzzMachine {
    static let ramByteCount: UInt64 = 128 << 10

    let machine: BareMachine
    let port: StreamPort
    let stranger: StreamPort
    /// Streams 2, 3 and 0: what ``attachStages()`` gives stage 2, both stages, and nothing.
    let others: [StreamPort]
    private let buffer: UnsafeMutableRawBufferPointer

    /// The one bank of RAM of this process: mapping one for each run would be most of the work.
    private static let memory = Mutex<MemoryRegion?>(nil)

    private static func emptyMemory() throws -> MemoryRegion {
        try memory.withLock { memory in
            let region = try memory ?? MemoryRegion.anonymous(byteCount: ramByteCount, name: "fuzz")
            memory = region
            let base = try region.pointer(at: 0, count: ramByteCount, for: .write)
            base.initializeMemory(as: UInt8.self, repeating: 0, count: Int(ramByteCount))
            return region
        }
    }

    /// - Parameters:
    ///   - flags: Chooses among the SMMU's options.
    ///   - windowByteCount: Larger than 0x2_0000 has the optional pages, too, where the SMMU has both stages.
    init(flags: UInt8, windowByteCount: UInt64 = RegisterOffset.windowByteCount) throws {
        var options = SMMUv3Options()
        options.commandExecution = .inline
        options.eventLogCapacity = 8
        options.tlbEntries = flags & 1 == 0 ? 64 : 0
        options.configurationCacheEntries = flags & 2 == 0 ? 8 : 0
        options.cachesInvalidStructures = flags & 4 == 0
        options.aliasesPage1InPage0 = flags & 8 != 0
        // Who does not complete an invalidate request at once does not before the next CMD_SYNC.
        options.atcInvalidationTimeoutMilliseconds = 0
        var identification: Identification =
            switch flags >> 4 & 3 {
            case 2: .full(outputAddressBits: 52)
            case 3: .stage1()
            default: .full()
            }
        identification.addOptionalPages(within: windowByteCount)
        machine = try BareMachine(
            memory: Self.emptyMemory(),
            identification: identification,
            options: options,
            windowByteCount: windowByteCount
        )
        let smmu = machine.smmu
        port = smmu.makePort(for: StreamID(1), canStall: false)
        stranger = smmu.makePort(for: StreamID(0xFFFF_FFFF), canStall: false)
        others = [2, 3, 0].map { smmu.makePort(for: StreamID($0), canStall: false) }
        buffer = .allocate(byteCount: 1 << 16, alignment: 8)
        buffer.initializeMemory(as: UInt8.self, repeating: 0x5A)
    }

    func close() {
        machine.smmu.stop()
        buffer.deallocate()
    }

    /// Where stage 2's tables are: four descriptors of 1 GiB in the page behind the contexts, and the last two pages.
    static let stage2Tables: [UInt64] = [0x7000, 0x1_F000, 0x1_E000].map { BareMachine.Layout.ram + $0 }

    /// What empties every cache of this SMMU, with a CMD_SYNC behind it.
    ///
    /// CMD_TLBI_NSNH_ALL leaves NS-EL2 and NS-EL2-E2H alone, which STE.STRW may choose for any stream; where
    /// SMMU_IDR0.Hyp is 0 no stream is in them, and CMD_TLBI_EL2_ALL would stop the queue as ILLEGAL.
    var invalidations: [Command] {
        let hypervisor: [Command] = machine.smmu.identification.idr0.hyp ? [.tlbiEL2All()] : []
        return [.cfgiAll(), .tlbiNSNHAll()] + hypervisor + [.sync()]
    }

    /// Executes ``invalidations``, if no command before them stopped the queue.
    func emptyCaches() {
        try? machine.submit(invalidations)
    }

    /// Gives stream 2 stage 2 alone and stream 3 both stages: RAM page by page where it is, VMIDs 2 and 3.
    func attachStages() throws {
        let tables = Self.stage2Tables
        // 32-bit IPAs: the first GiB, with the registers, as a block; RAM is in the third.
        try machine.store(0x7FD, 0, tables[1] | 0b11, 0, at: tables[0])
        try machine.store(tables[2] | 0b11, at: tables[1])
        for page in 0..<Self.ramByteCount >> 12 {
            // AF, inner shareable, S2AP, write-back, page.
            try machine.store((BareMachine.Layout.ram + page << 12) | 0x7FF, at: tables[2] + page * 8)
        }
        for stream in [2, 3] as [UInt64] {
            var ste = STE()
            (ste.v, ste.config, ste.s2VMID, ste.s2T0SZ, ste.s2SL0) = (true, .stage2, UInt16(stream), 32, 1)
            (ste.s2PS, ste.s2AA64, ste.s2R, ste.s2TTB) = (5, true, true, tables[0])
            if stream == 3 {
                try machine.attach(3)
                ste.config = StreamConfig(rawValue: 0b111)
                ste.s1ContextPtr = BareMachine.Layout.contexts + 3 * 64
            }
            for index in 0..<8 {
                let word = BareMachine.Layout.streamTable + stream * 64 + UInt64(index) * 8
                try machine.store(ste.words[index], at: word)
            }
        }
    }

    /// Lets the streams of ``attachStages()`` and stream 1 use ATS: STE.EATS.
    ///
    /// - Parameter isSplit: Stream 3, which has both stages, is given IPAs.
    func enableATS(isSplit: Bool) throws {
        for stream in 1...3 as ClosedRange<UInt64> {
            let word = BareMachine.Layout.streamTable + stream * 64 + 8
            let eats: UInt64 = stream == 3 && isSplit ? 0b10 : 0b01
            // EATS: bits 93:92 of the STE.
            try machine.store(try machine.load(word) & ~(0b11 << 28) | eats << 28, at: word)
        }
    }

    /// One DMA that the input describes.
    ///
    /// - Parameter isTranslated: It has a translated address, as a function with an ATC sends.
    func transact(_ input: inout FuzzInput, at address: UInt64, isTranslated: Bool = false) {
        let shape = input.next()
        let attributes = TransactionAttributes(
            substreamID: shape & 1 != 0 ? SubstreamID(UInt32(input.next(UInt16.self))) : nil,
            isPrivileged: shape & 2 != 0,
            isInstruction: shape & 4 != 0,
            isTranslated: isTranslated
        )
        let count = shape & 8 != 0 ? Int(input.next(UInt16.self)) : Int(input.next() & 0x1F)
        let bytes = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count])
        let port = shape & 16 != 0 ? stranger : ([self.port] + others)[Int(shape >> 6)]
        do {
            if shape & 32 != 0 {
                try port.write(UnsafeRawBufferPointer(bytes), at: IOVirtualAddress(address), attributes)
            } else {
                try port.read(at: IOVirtualAddress(address), into: bytes, attributes)
            }
        } catch {
            precondition(error.bytesTransferred <= UInt64(count), "more was transferred than asked for")
        }
    }
}
