// Functions whose configuration space is another's.

import AddressSpace
import DeviceModel
import Glibc
import PCIFunction
import Synchronization
import Testing

/// Another's configuration space: bytes that anybody can write.
private final class Other: PCIFunctionModel, PCIForeignConfiguration {
    let bytes: Mutex<[UInt8]>
    let isGone = Atomic(false)
    let vectorChanges = Atomic(0)

    init(_ bytes: [UInt8]) { self.bytes = Mutex(bytes) }

    func readForeignConfiguration(at offset: Int, byteCount: Int) -> UInt32? {
        guard !isGone.load(ordering: .relaxed) else { return nil }
        return bytes.withLock {
            $0[offset..<offset + byteCount].reversed().reduce(0) { $0 << 8 | UInt32($1) }
        }
    }

    func writeForeignConfiguration(_ value: UInt32, at offset: Int, byteCount: Int) {
        bytes.withLock { bytes in
            for index in 0..<byteCount {
                bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(8 * index))
            }
        }
    }

    func readBAR(_ index: Int, at offset: UInt64, width: AccessWidth) -> UInt64 { 0 }
    func writeBAR(_ index: Int, _ value: UInt64, at offset: UInt64, width: AccessWidth) {}
    func reset() {}
    func vectorsChanged() { vectorChanges.wrappingAdd(1, ordering: .relaxed) }
}

/// Notes what is written where.
private final class Port: DMAPort {
    final class Log: Sendable { let writes = Mutex<[String]>([]) }
    let log: Log
    init(_ log: Log) { self.log = log }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _: TransactionAttributes
    ) {}
    func write(_ buffer: UnsafeRawBufferPointer, at address: IOVirtualAddress, _: TransactionAttributes) {
        log.writes.withLock { $0.append("\(address) \(Array(buffer))") }
    }
    func lend(
        _: [DMARange],
        for _: DMADirection,
        _: TransactionAttributes,
        _: (UnsafeBufferPointer<iovec>) -> Void
    ) -> Bool { false }

    func rest() {}
}

/// A function 1af4:1042 with a 64-bit BAR 0 of 16 KiB, a 32-bit BAR 2 of 4 KiB, an I/O BAR 3, INTA, and
/// capabilities: MSI at 0x40 (32-bit, without masks, 4 vectors), MSI-X at 0x50 (8 vectors, table at 0 and pending
/// bits at 0x800 of BAR 2), one of a vendor at 0x60, PCI Express at 0x70 with function-level reset; extended ones
/// at 0x100 (AER) and 0x140 (SR-IOV).
private func image() -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 4096)
    func put(_ offset: Int, _ values: [UInt8]) {
        bytes.replaceSubrange(offset..<offset + values.count, with: values)
    }
    put(0x00, [0xf4, 0x1a, 0x42, 0x10, 0x06, 0x04, 0x18, 0x00, 0x01, 0x00, 0x80, 0x01, 0, 0, 0, 0])
    put(0x10, [0x0c, 0x40, 0, 0x80, 1, 0, 0, 0, 0x00, 0x10, 0x20, 0xfe, 0x01, 0xc0])
    put(0x2c, [0x34, 0x12, 0x78, 0x56, 0x01, 0x08, 0, 0, 0x40])
    put(0x3c, [0x0b, 0x01])
    put(0x40, [0x05, 0x50, 0x05, 0x00, 0x78, 0x56, 0x34, 0x12, 0xcd, 0xab])
    put(0x50, [0x11, 0x60, 0x07, 0xc0, 0x02, 0, 0, 0, 0x02, 0x08, 0, 0])
    put(0x60, [0x09, 0x70, 0x08, 1, 2, 3, 4, 5])
    put(0x70, [0x10, 0x00, 0x02, 0, 0, 0x80, 0, 0x10, 0x10, 0x28])
    put(0x100, [0x01, 0x00, 0x01, 0x14])
    put(0x140, [0x10, 0x00, 0x01, 0x00, 0xaa])
    return bytes
}

private let sizes: [UInt64] = [0x4000, 0, 0x1000, 0x100, 0, 0]

@Suite("Functions whose configuration space is another's")
struct ImageTests {
    private func make(_ bytes: [UInt8] = image(), keepsMSI: Bool = true, keepsMSIX: Bool = true) throws -> (
        PCIFunction, Other, Port.Log
    ) {
        let log = Port.Log()
        let other = Other(bytes)
        let image = try PCIFunctionImage(
            bytes,
            barByteCounts: sizes,
            keepsMSI: keepsMSI,
            keepsMSIX: keepsMSIX,
            resetsHere: true
        )
        let function = PCIFunction(name: "other", image: image, model: other, configuration: other) {
            Port(log)
        }
        return (function, other, log)
    }

    @Test("What a function is, and its BARs, unplaced and with I/O left out")
    func description() throws {
        let (function, _, _) = try make()
        let identity = PCIIdentity(
            vendorID: 0x1af4,
            deviceID: 0x1042,
            subsystemVendorID: 0x1234,
            subsystemID: 0x5678,
            classCode: 0x018000,
            revisionID: 1
        )
        #expect(function.description.identity == identity)
        #expect(
            function.description.bars == [
                PCIBAR(index: 0, byteCount: 0x4000, space: .memory64, isPrefetchable: true),
                PCIBAR(index: 2, byteCount: 0x1000),
            ]
        )
        #expect(function.description.interruptPin == 1)
        // Command is 0 whatever it was; of Status Capabilities List is left.
        #expect(function.readConfiguration(at: 0x04, byteCount: 4) == 0x0010_0000)
        for (offset, value) in [(0x10, 0xC), (0x14, 0), (0x18, 0), (0x1C, 0), (0x30, 0)] as [(Int, UInt32)] {
            #expect(function.readConfiguration(at: offset, byteCount: 4) == value)
        }
        for (offset, value) in [
            (0x10, 0xffff_c00c), (0x14, 0xffff_ffff), (0x18, 0xffff_f000), (0x1C, 0), (0x30, 0),
        ] as [(Int, UInt32)] {
            function.writeConfiguration(UInt32.max, at: offset, byteCount: 4)
            #expect(function.readConfiguration(at: offset, byteCount: 4) == value)
        }
    }

    @Test("Capabilities that are not kept here are the other's, read and written; all writes reach the other")
    func forwarding() throws {
        let (function, other, _) = try make()
        #expect(function.readConfiguration(at: 0x62, byteCount: 4) == 0x0302_0108)
        other.bytes.withLock { $0[0x63] = 0x77 }
        #expect(function.readConfiguration(at: 0x63, byteCount: 1) == 0x77)
        function.writeConfiguration(0x55, at: 0x64, byteCount: 1)
        function.writeConfiguration(0x0006, at: 0x04, byteCount: 2)
        #expect(other.bytes.withLock { $0[0x64] } == 0x55)
        #expect(other.bytes.withLock { $0[0x04] } == 6)
        #expect(function.isBusMaster)
        // Half kept here, half not: byte 0x5C follows MSI-X.
        other.bytes.withLock { ($0[0x58], $0[0x5C]) = (0xee, 0x99) }
        #expect(function.readConfiguration(at: 0x58, byteCount: 4) == 0x0000_0802)
        #expect(function.readConfiguration(at: 0x5C, byteCount: 4) == 0x99)
        // SR-IOV is not shown, and what it holds does no harm.
        #expect(function.readConfiguration(at: 0x100, byteCount: 4) == 0x1401_0001)
        #expect(function.readConfiguration(at: 0x140, byteCount: 4) == 0x0001_ffff)
        #expect(function.readConfiguration(at: 0x144, byteCount: 1) == 0xaa)
        other.isGone.store(true, ordering: .relaxed)
        #expect(function.readConfiguration(at: 0x64, byteCount: 4) == UInt32.max)
        #expect(function.readConfiguration(at: 0, byteCount: 4) == 0x1042_1af4)
    }

    @Test("MSI of 32 bits without masks: its message, with the vector in the low bits of its data")
    func narrowMSI() throws {
        let (function, _, log) = try make()
        // Neither enabled nor programmed, whatever it was at the other's.
        #expect(function.readConfiguration(at: 0x40, byteCount: 4) == 0x0004_5005)
        #expect(function.readConfiguration(at: 0x44, byteCount: 4) == 0)
        function.writeConfiguration(6, at: 0x04, byteCount: 2)
        function.writeConfiguration(0x1234_5678, at: 0x44, byteCount: 4)
        function.writeConfiguration(0xabcc, at: 0x48, byteCount: 2)
        function.writeConfiguration(0x21, at: 0x42, byteCount: 2)
        #expect(function.interruptMode == .msi(vectorCount: 4))
        function.signal(vector: 3)
        #expect(log.writes.withLock { $0 } == ["0x12345678 [207, 171, 0, 0]"])
        // What follows the data is not the mask that other layouts have there.
        function.writeConfiguration(UInt32.max, at: 0x4C, byteCount: 4)
        function.signal(vector: 0)
        #expect(log.writes.withLock { $0.count } == 2)
    }

    @Test("MSI-X: the table is here, a masked vector waits, and the model hears of changes")
    func msix() throws {
        let (function, other, log) = try make()
        #expect(function.readConfiguration(at: 0x52, byteCount: 2) == 7)
        #expect(function.unmaskedVectors.isEmpty)
        function.writeConfiguration(6, at: 0x04, byteCount: 2)
        function.writeConfiguration(0x8000, at: 0x52, byteCount: 2)
        #expect(function.interruptMode == .msix)
        try function.writeBAR(2, 0x1000, at: 0x30, width: .doubleword)
        try function.writeBAR(2, 0x42, at: 0x38, width: .word)
        function.signal(vector: 3)
        #expect(log.writes.withLock { $0 } == [])
        #expect(try function.readBAR(2, at: 0x800, width: .doubleword) == 8)
        try function.writeBAR(2, 0, at: 0x3C, width: .word)
        #expect(log.writes.withLock { $0 } == ["0x1000 [66, 0, 0, 0]"])
        #expect(function.unmaskedVectors == [3])
        #expect(other.vectorChanges.load(ordering: .relaxed) == 3)
    }

    @Test("Where the other delivers its messages itself, its capabilities and its table stay with it")
    func notKept() throws {
        let (function, other, _) = try make(keepsMSI: false, keepsMSIX: false)
        #expect(function.description.capabilities == [])
        #expect(function.readConfiguration(at: 0x52, byteCount: 2) == 0xc007)
        function.writeConfiguration(0x8000, at: 0x52, byteCount: 2)
        #expect(other.bytes.withLock { $0[0x53] } == 0x80)
        #expect(function.interruptMode == .intx)
        try function.writeBAR(2, 1, at: 0x3C, width: .word)
        #expect(other.vectorChanges.load(ordering: .relaxed) == 0)
    }

    @Test("Function-level reset is this function's reset, not a write to the other")
    func functionLevelReset() throws {
        let (function, other, _) = try make()
        function.writeConfiguration(6, at: 0x04, byteCount: 2)
        function.writeConfiguration(0x8010, at: 0x78, byteCount: 2)
        #expect(!function.isBusMaster)
        #expect(other.bytes.withLock { $0[0x79] } == 0x28)
    }

    @Test("Spaces that are none: sizes, headers, BARs, tables outside of BARs, lists without an end")
    func hostile() {
        func error(_ sizes: [UInt64] = sizes, _ change: (inout [UInt8]) -> Void) -> PCIImageError? {
            var bytes = image()
            change(&bytes)
            do throws(PCIImageError) {
                _ = try PCIFunctionImage(
                    bytes,
                    barByteCounts: sizes,
                    keepsMSI: true,
                    keepsMSIX: true,
                    resetsHere: true
                )
                return nil
            } catch {
                return error
            }
        }
        #expect(error { _ in } == nil)
        #expect(error { $0.removeLast() } == .size(4095))
        #expect(error { $0 = [] } == .size(0))
        #expect(error { $0[0x0E] = 1 } == .header(1))
        #expect(error { $0 = Array(repeating: 0xFF, count: 256) } == .header(0xFF))
        #expect(error([0x4000, 0, 1 << 32]) { _ in } == .bar(2, byteCount: 1 << 32))
        #expect(error([1 << 63, 0, 0x1000]) { _ in } == .bar(0, byteCount: 1 << 63))
        #expect(error([0x4000, 0, 0x1000, 0, 0, 16]) { $0[0x24] = 4 } == .bar(5, byteCount: 16))
        #expect(error { $0[0x54] = 0x3a } == nil)
        #expect(error { $0[0x54] = 0x04 } == .msix)
        #expect(error { $0[0x55] = 0x10 } == .msix)
        #expect(
            error {
                $0[0x52] = 0xFF; $0[0x53] = 0x07
            } == .msix
        )
        #expect(error { $0[0x5A] = 0x01 } == .msix)
        #expect(error { $0[0x71] = 0x40 } == .capabilities)
        #expect(error { $0[0x34] = 0x04 } == .capabilities)
        #expect(
            error {
                $0[0x71] = 0xFC; $0[0xFC] = 0x11; $0[0x50] = 9
            } == .capabilities
        )
        #expect(
            error {
                $0[0x71] = 0xF8; $0[0xF8] = 0x05; $0[0x40] = 9; $0[0xFA] = 0x80
            } == .capabilities
        )
        #expect(error { $0[0x143] = 0x10 } == .capabilities)
        #expect(
            error {
                $0[0x142] = 0x01; $0[0x143] = 0x14
            } == .capabilities
        )
    }
}
