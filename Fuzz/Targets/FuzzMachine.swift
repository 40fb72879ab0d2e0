// The machine that the SMMU's fuzzers work on, and its transactions.

import AddressSpace
import BareMachine
import DeviceModel
import GuestMemory
import SMMUv3
import Synchronization

/// A machine with 128 KiB of RAM, empty at the start of each run, and commands executed inline.
struct FuzzMachine {
    static let ramByteCount: UInt64 = 128 << 10

    let machine: BareMachine
    let port: StreamPort
    let stranger: StreamPort
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

    /// - Parameter flags: Chooses among the SMMU's options.
    init(flags: UInt8) throws {
        var options = SMMUv3Options()
        options.commandExecution = .inline
        options.eventLogCapacity = 8
        options.tlbEntries = flags & 1 == 0 ? 64 : 0
        options.configurationCacheEntries = flags & 2 == 0 ? 8 : 0
        options.cachesInvalidStructures = flags & 4 == 0
        options.aliasesPage1InPage0 = flags & 8 != 0
        machine = try BareMachine(memory: Self.emptyMemory(), options: options)
        port = machine.smmu.makePort(for: StreamID(1))
        stranger = machine.smmu.makePort(for: StreamID(0xFFFF_FFFF))
        buffer = .allocate(byteCount: 1 << 16, alignment: 8)
        buffer.initializeMemory(as: UInt8.self, repeating: 0x5A)
    }

    func close() {
        machine.smmu.stop()
        buffer.deallocate()
    }

    /// One DMA that the input describes.
    func transact(_ input: inout FuzzInput, at address: UInt64) {
        let shape = input.next()
        let attributes = TransactionAttributes(
            substreamID: shape & 1 != 0 ? SubstreamID(UInt32(input.next(UInt16.self))) : nil,
            isPrivileged: shape & 2 != 0,
            isInstruction: shape & 4 != 0
        )
        let count = shape & 8 != 0 ? Int(input.next(UInt16.self)) : Int(input.next() & 0x1F)
        let bytes = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count])
        let port = shape & 16 != 0 ? stranger : self.port
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
