// Requests of a block device, one after the other.

import AddressSpace
import BlockStorage
import CLinux
import DeviceModel
import Glibc
import HostIO
import SystemPackage

/// What one queue's thread of a block device has.
final class BlockWorker: VirtioWorker {
    private let device: VirtioBlock
    private let image: RawImage
    private let queueIndex: Int
    private var chain = DescriptorChain()
    private var pieces: [DMARange] = []
    /// Where bytes are copied through that cannot be lent; made when it is needed first.
    private var bounce: UnsafeMutableRawBufferPointer?

    /// What one loan moves at most, so that a reset or a CMD_SYNC does not wait long for it.
    private static let loanByteCount = 1 << 20
    private static let bounceByteCount = 1 << 17
    /// After so many bytes the driver is shown what was completed, although there is more to do.
    private static let publicationByteCount = 1 << 18
    private var unpublishedByteCount = 0
    private var wait: WorkWait

    init(_ device: VirtioBlock, queue: Int) {
        self.device = device
        image = device.image
        queueIndex = queue
        wait = WorkWait(limitMicroseconds: device.pollMicroseconds)
    }

    deinit { bounce?.deallocate() }

    func serve(_ queues: [VirtioQueue?]) throws(VirtqueueError) {
        guard let queue = queues[queueIndex] else { return }
        // A stopped queue ends the looking by an error: its gate is closed.
        let idle = { () throws(VirtqueueError) in
            try self.wait.looks { () throws(VirtqueueError) in try queue.hasNext() }
        }
        try queue.drain(&chain, idle: idle) { (chain) throws(VirtqueueError) in
            self.wait.found()
            if self.unpublishedByteCount >= Self.publicationByteCount {
                self.unpublishedByteCount = 0
                try queue.publish()
            }
            self.unpublishedByteCount += chain.readableByteCount + chain.writableByteCount
            return try self.serve(chain, queue)
        }
    }

    /// Serves one request; returns how many bytes of its writable part hold something now.
    private func serve(_ chain: DescriptorChain, _ queue: VirtioQueue) throws(VirtqueueError) -> Int {
        guard chain.readableByteCount >= BlockRequestHeader.byteCount, chain.writableByteCount >= 1 else {
            throw queue.malformed("a block request without a header or a status")
        }
        let words = try queue.readWords(chain)
        let header = BlockRequestHeader(words.0, words.1)
        let (status, written) = try perform(header, chain, queue)
        if status != .ok { device.statistics.countError() }
        var byte = status.rawValue
        var result: Result<Int, VirtqueueError> = .success(0)
        withUnsafeBytes(of: &byte) { bytes in
            do throws(VirtqueueError) {
                _ = try queue.write(bytes, to: chain, from: chain.writableByteCount - 1)
            } catch {
                result = .failure(error)
            }
        }
        _ = try result.get()
        let read = header.type == .write ? chain.readableByteCount - BlockRequestHeader.byteCount : 0
        device.statistics.countRequest(fromDriver: status == .ok ? read : 0, toDriver: written)
        // The length counts from the first writable byte on: the status is part of it only where all before it is.
        return written == chain.writableByteCount - 1 ? chain.writableByteCount : written
    }

    private func perform(_ header: BlockRequestHeader, _ chain: DescriptorChain, _ queue: VirtioQueue)
        throws(VirtqueueError) -> (BlockStatus, written: Int)
    {
        let dataByteCount = chain.writableByteCount - 1
        switch header.type {
        case .read:
            let status = try transfer(header.sector, .write, chain.writable, 0, dataByteCount, queue)
            return (status, status == .ok ? dataByteCount : 0)
        case .write:
            guard !image.isReadOnly else { return (.ioError, 0) }
            let count = chain.readableByteCount - BlockRequestHeader.byteCount
            let status = try transfer(
                header.sector,
                .read,
                chain.readable,
                BlockRequestHeader.byteCount,
                count,
                queue
            )
            guard status == .ok, device.isWriteThrough else { return (status, 0) }
            return (flush(), 0)
        case .flush:
            // What was completed before need not wait for the disk.
            try queue.publish()
            return (flush(), 0)
        case .getID:
            let bytes = device.serial.prefix(dataByteCount)
            var answer: Result<Int, VirtqueueError> = .success(0)
            Array(bytes).withUnsafeBytes { buffer in
                do throws(VirtqueueError) {
                    answer = .success(try queue.write(buffer, to: chain, from: 0))
                } catch {
                    answer = .failure(error)
                }
            }
            return (.ok, try answer.get())
        case .discard, .writeZeroes: return (try clear(header.type, chain, queue), 0)
        default: return (.unsupported, 0)
        }
    }

    private func flush() -> BlockStatus {
        do throws(Errno) {
            try image.flush()
            return .ok
        } catch {
            return .ioError
        }
    }

    // MARK: Data

    /// Moves `count` bytes between the disk and a part of the chain, lent if that can be.
    ///
    /// - Parameter direction: `.write` where the device writes memory, which is reading the disk.
    private func transfer(
        _ sector: UInt64,
        _ direction: DMADirection,
        _ ranges: [DMARange],
        _ skipped: Int,
        _ count: Int,
        _ queue: VirtioQueue
    ) throws(VirtqueueError) -> BlockStatus {
        let (start, overflow) = sector.multipliedReportingOverflow(by: RawImage.blockByteCount)
        guard !overflow, count % Int(RawImage.blockByteCount) == 0,
            image.contains(start, byteCount: UInt64(count))
        else { return .ioError }
        var done = 0
        while done < count {
            let piece = min(Self.loanByteCount, count - done)
            pieces.removeAll(keepingCapacity: true)
            ranges.slice(from: skipped + done, count: piece, into: &pieces)
            var failure: Errno?
            do throws(DMAFault) {
                let place = start + UInt64(done)
                let wasLent = try queue.port.lend(pieces, for: direction, .plain) { segments in
                    failure = self.move(segments, direction, place)
                }
                if !wasLent { failure = try copy(direction, place, piece, queue) }
            } catch {
                guard queue.port.isOpen else { throw queue.failed(error) }
                // The SMMU has recorded it; the request says that it failed, and the queue goes on.
                device.statistics.countFault()
                return .ioError
            }
            if failure != nil { return .ioError }
            done += piece
        }
        return .ok
    }

    private func move(_ segments: UnsafeBufferPointer<iovec>, _ direction: DMADirection, _ place: UInt64)
        -> Errno?
    {
        do throws(Errno) {
            switch direction {
            case .write: try image.read(at: place, into: segments)
            case .read: try image.write(segments, at: place)
            }
            return nil
        } catch {
            return error
        }
    }

    /// Moves the bytes of `pieces` through a buffer of our own.
    private func copy(_ direction: DMADirection, _ place: UInt64, _ count: Int, _ queue: VirtioQueue)
        throws(DMAFault) -> Errno?
    {
        let buffer = bounceBuffer()
        var done = 0
        while done < count {
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(buffer.count, count - done)])
            if direction == .read { _ = try queue.port.gather(pieces, from: done, into: part) }
            var vector = iovec(iov_base: part.baseAddress, iov_len: part.count)
            let failure = withUnsafePointer(to: &vector) { pointer in
                move(UnsafeBufferPointer(start: pointer, count: 1), direction, place + UInt64(done))
            }
            if let failure { return failure }
            if direction == .write {
                _ = try queue.port.scatter(UnsafeRawBufferPointer(part), to: pieces, from: done)
            }
            done += part.count
        }
        return nil
    }

    private func bounceBuffer() -> UnsafeMutableRawBufferPointer {
        if let bounce { return bounce }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.bounceByteCount, alignment: 4096)
        bounce = buffer
        return buffer
    }

    // MARK: DISCARD and WRITE ZEROES

    private func clear(_ type: BlockRequestType, _ chain: DescriptorChain, _ queue: VirtioQueue)
        throws(VirtqueueError) -> BlockStatus
    {
        guard !image.isReadOnly else { return .ioError }
        let count = chain.readableByteCount - BlockRequestHeader.byteCount
        guard count > 0, count % BlockRangeSegment.byteCount == 0,
            count / BlockRangeSegment.byteCount <= Int(BlockConfiguration.rangeSegmentsMax)
        else { return .ioError }
        let bytes = try queue.read(chain, from: BlockRequestHeader.byteCount, count: count)
        let segments = stride(from: 0, to: count, by: BlockRangeSegment.byteCount).map {
            BlockRangeSegment(bytes, at: $0)
        }
        // All are looked at before any is carried out.
        for segment in segments {
            let permitted: UInt32 = type == .writeZeroes ? 1 : 0
            guard segment.flags & ~permitted == 0 else { return .unsupported }
            let (start, overflow) = segment.sector.multipliedReportingOverflow(by: RawImage.blockByteCount)
            guard !overflow, segment.sectorCount <= BlockConfiguration.rangeSectorsMax,
                image.contains(start, byteCount: UInt64(segment.sectorCount) * RawImage.blockByteCount)
            else { return .ioError }
        }
        for segment in segments {
            let start = segment.sector * RawImage.blockByteCount
            let length = UInt64(segment.sectorCount) * RawImage.blockByteCount
            do throws(Errno) {
                switch type {
                case .discard: try image.discard(at: start, byteCount: length)
                default:
                    try image.writeZeroes(at: start, byteCount: length, mayUnmap: segment.flags & 1 != 0)
                }
            } catch {
                return .ioError
            }
        }
        guard type == .writeZeroes, device.isWriteThrough else { return .ok }
        return flush()
    }
}
