// QEMU's physical address space over its test socket.

import AddressSpace
import DeviceModel
import Differential
import Synchronization

/// Registers and memory of a QEMU that executes nothing: every access is a line of its test protocol.
///
/// Writes are sent without waiting for their answers; the next read waits for them all, so order is as asked.
final class QTestAccess: PhysicalAccess {
    /// So many answers wait at most.
    ///
    /// QEMU sends each by itself, and a socket holds no more than some 270 such; while QEMU cannot send it
    /// does not read, and we would wait for it with lines of our own.
    private static let postedLimit = 128

    private let process: Mutex<QEMUProcess>
    private let firstFailure = Mutex<QEMUError?>(nil)

    init(_ process: sending QEMUProcess) { self.process = Mutex(process) }

    /// Why QEMU does not answer any more; nil while it does.
    var failure: QEMUError? { firstFailure.withLock { $0 } }

    /// Sends lines, and waits until QEMU has done them.
    ///
    /// - Returns: What those that read have read, in order.
    func ask(_ lines: [String]) throws -> [UInt64] {
        try process.withLock { process in
            for line in lines { process.ask(line) }
            return try process.flush()
        }
    }

    private func run(_ line: String, _ address: PhysicalAddress, waits: Bool) throws(BusError) -> [UInt64] {
        do {
            return try process.withLock { process in
                process.ask(line)
                guard waits || process.outstanding >= Self.postedLimit else { return [] }
                return try process.flush()
            }
        } catch {
            let failure = error as? QEMUError
            firstFailure.withLock { $0 = $0 ?? failure }
            throw .lost(address)
        }
    }

    private static func suffix(_ width: AccessWidth) -> String {
        switch width {
        case .byte: "b"
        case .halfword: "w"
        case .word: "l"
        case .doubleword: "q"
        }
    }

    private static func hex(_ value: some FixedWidthInteger) -> String { "0x" + String(value, radix: 16) }

    // MARK: PhysicalAccess

    func load(_ width: AccessWidth, at address: PhysicalAddress) throws(BusError) -> UInt64 {
        let line = "read\(Self.suffix(width)) \(Self.hex(address.rawValue))"
        guard let value = try run(line, address, waits: true).last else { throw .lost(address) }
        return value & width.allOnes
    }

    func store(_ value: UInt64, _ width: AccessWidth, at address: PhysicalAddress) throws(BusError) {
        let line =
            "write\(Self.suffix(width)) \(Self.hex(address.rawValue)) \(Self.hex(value & width.allOnes))"
        _ = try run(line, address, waits: false)
    }

    func read(_ byteCount: Int, at address: PhysicalAddress) throws(BusError) -> [UInt8] {
        var bytes: [UInt8] = []
        for offset in 0..<UInt64(byteCount) {
            let value = try load(.byte, at: PhysicalAddress(address.rawValue &+ offset))
            bytes.append(UInt8(truncatingIfNeeded: value))
        }
        return bytes
    }

    func write(_ bytes: [UInt8], at address: PhysicalAddress) throws(BusError) {
        // A line of QEMU's is not longer than its buffer.
        for start in stride(from: 0, to: bytes.count, by: 1024) {
            let chunk = bytes[start..<min(start + 1024, bytes.count)]
            let digits = chunk.map { byte in
                (byte < 16 ? "0" : "") + String(byte, radix: 16)
            }
            let at = PhysicalAddress(address.rawValue &+ UInt64(start))
            _ = try run(
                "write \(Self.hex(at.rawValue)) \(Self.hex(chunk.count)) 0x\(digits.joined())",
                at,
                waits: false
            )
        }
    }

    func fill(_ byte: UInt8, byteCount: UInt64, at address: PhysicalAddress) throws(BusError) {
        guard byteCount > 0 else { return }
        _ = try run(
            "memset \(Self.hex(address.rawValue)) \(Self.hex(byteCount)) \(Self.hex(byte))",
            address,
            waits: false
        )
    }

    /// Not atomic: nobody else writes memory, as QEMU's SMMU updates no descriptor and its processors stand
    /// still.
    func compareExchange64(expected: UInt64, desired: UInt64, at address: PhysicalAddress) throws(BusError)
        -> UInt64
    {
        let found = try load(.doubleword, at: address)
        if found == expected { try store(desired, .doubleword, at: address) }
        return found
    }
}
