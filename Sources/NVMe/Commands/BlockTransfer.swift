// Bytes between a command's data and the image: without a copy where memory can be lent.

import AddressSpace
import BlockStorage
import DeviceModel
import Glibc
import SystemPackage

extension QueueWorker {
    /// Reads from the image into ``ranges``.
    func readImage(at offset: UInt64) throws(CommandStatus) {
        let image = controller.image
        var failure: Errno?
        let isDone = try lend(for: .write) { segments in
            do throws(Errno) { try image.read(at: offset, into: segments) } catch { failure = error }
        }
        if let failure { throw Self.status(failure, isWrite: false) }
        if isDone { return }
        try forEachPiece { address, done, buffer throws(CommandStatus) in
            if let error = Self.withSegment(
                buffer,
                { segments throws(Errno) in
                    try image.read(at: offset + done, into: segments)
                }
            ) {
                throw Self.status(error, isWrite: false)
            }
            do throws(DMAFault) {
                try port.write(UnsafeRawBufferPointer(buffer), at: address, .plain)
            } catch {
                throw .dataTransferError
            }
        }
    }

    /// Writes ``ranges`` to the image.
    func writeImage(at offset: UInt64) throws(CommandStatus) {
        let image = controller.image
        var failure: Errno?
        let isDone = try lend(for: .read) { segments in
            do throws(Errno) { try image.write(segments, at: offset) } catch { failure = error }
        }
        if let failure { throw Self.status(failure, isWrite: true) }
        if isDone { return }
        try forEachPiece { address, done, buffer throws(CommandStatus) in
            do throws(DMAFault) {
                try port.read(at: address, into: buffer, .plain)
            } catch {
                throw .dataTransferError
            }
            if let error = Self.withSegment(
                buffer,
                { segments throws(Errno) in
                    try image.write(segments, at: offset + done)
                }
            ) {
                throw Self.status(error, isWrite: true)
            }
        }
    }

    /// Whether the image holds, from `offset` on, what ``ranges`` hold.
    func compareImage(at offset: UInt64) throws(CommandStatus) -> Bool {
        let image = controller.image
        var isEqual = true
        try forEachPiece { address, done, buffer throws(CommandStatus) in
            // Two halves of the buffer: what is in memory, and what is in the image.
            let half = buffer.count
            let whole = self.scratch
            let memory = UnsafeMutableRawBufferPointer(rebasing: whole[..<half])
            let stored = UnsafeMutableRawBufferPointer(rebasing: whole[half..<2 * half])
            do throws(DMAFault) {
                try port.read(at: address, into: memory, .plain)
            } catch {
                throw .dataTransferError
            }
            if let error = Self.withSegment(
                stored,
                { segments throws(Errno) in
                    try image.read(at: offset + done, into: segments)
                }
            ) {
                throw Self.status(error, isWrite: false)
            }
            if !memory.elementsEqual(stored) { isEqual = false }
        }
        return isEqual
    }

    private func lend(for direction: DMADirection, _ body: (UnsafeBufferPointer<iovec>) -> Void)
        throws(CommandStatus) -> Bool
    {
        do throws(DMAFault) {
            return try port.lend(ranges, for: direction, .plain, body)
        } catch {
            throw .dataTransferError
        }
    }

    /// Calls `body` with each piece of ``ranges`` that fits half of the scratch buffer, and how many bytes stand
    /// before it.
    private func forEachPiece(
        _ body: (IOVirtualAddress, UInt64, UnsafeMutableRawBufferPointer) throws(CommandStatus) -> Void
    ) throws(CommandStatus) {
        let scratch = scratch
        var done: UInt64 = 0
        for range in ranges {
            var start = 0
            while start < range.byteCount {
                let count = min(range.byteCount - start, scratch.count / 2)
                let address = IOVirtualAddress(range.address.rawValue &+ UInt64(start))
                try body(address, done, UnsafeMutableRawBufferPointer(rebasing: scratch[..<count]))
                start += count
                done += UInt64(count)
            }
        }
    }

    /// Calls `body` with one buffer as its only segment.
    ///
    /// - Returns: The error that it threw.
    private static func withSegment(
        _ buffer: UnsafeMutableRawBufferPointer,
        _ body: (UnsafeBufferPointer<iovec>) throws(Errno) -> Void
    ) -> Errno? {
        withUnsafePointer(to: iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)) { vector in
            do throws(Errno) {
                try body(UnsafeBufferPointer(start: vector, count: 1))
                return nil
            } catch {
                return error
            }
        }
    }

    /// What a command ends with where the host's file said no.
    static func status(_ error: Errno, isWrite: Bool) -> CommandStatus {
        switch error {
        // The memory, not the file: a peer has truncated it.
        case .badAddress: .dataTransferError
        case .noSpace, .diskQuotaExceeded: .capacityExceeded
        case .readOnlyFileSystem: .namespaceWriteProtected
        default: isWrite ? .writeFault : .unrecoveredReadError
        }
    }
}
