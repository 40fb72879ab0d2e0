// PRPs and SGLs: where a command's data is.
//
// All of it is software's, some of it in its memory. Each list is read once; what it may hold bounds every loop.

import AddressSpace
import BitFields
import DeviceModel

extension QueueWorker {
    /// How many SGL descriptors a command may have: Linux makes 128 segments at most, and lists of empty
    /// descriptors have no end.
    private static let descriptorCountMax = 4096

    /// Finds the data of a command: afterwards ``ranges`` are `byteCount` bytes.
    func resolveData(_ entry: SubmissionEntry, byteCount: Int) throws(CommandStatus) {
        ranges.removeAll(keepingCapacity: true)
        switch entry.dataPointerKind {
        case 0: try resolvePRPs(entry.prp1, entry.prp2, byteCount)
        // SGLs are for I/O commands only.
        case 1 where queue.id != 0, 2 where queue.id != 0: try resolveSGL(entry, byteCount)
        default: throw .invalidField
        }
    }

    private func append(_ address: UInt64, _ byteCount: Int) {
        guard byteCount > 0 else { return }
        if let last = ranges.last, last.address.rawValue &+ UInt64(last.byteCount) == address, address != 0 {
            ranges[ranges.count - 1].byteCount += byteCount
        } else {
            ranges.append(DMARange(address: IOVirtualAddress(address), byteCount: byteCount))
        }
    }

    private func readList(_ address: UInt64, byteCount: Int) throws(CommandStatus) {
        do throws(DMAFault) {
            try port.read(
                at: IOVirtualAddress(address),
                into: UnsafeMutableRawBufferPointer(rebasing: listBuffer[..<byteCount]),
                .plain
            )
        } catch {
            throw .dataTransferError
        }
    }

    private func listWord(_ index: Int) -> UInt64 {
        UInt64(littleEndian: listBuffer.load(fromByteOffset: index * 8, as: UInt64.self))
    }

    // MARK: PRPs

    private func resolvePRPs(_ prp1: UInt64, _ prp2: UInt64, _ byteCount: Int) throws(CommandStatus) {
        let page = pageByteCount
        guard prp1 & 3 == 0 else { throw .invalidPRPOffset }
        let first = min(UInt64(byteCount), page - (prp1 & (page - 1)))
        append(prp1, Int(first))
        var rest = UInt64(byteCount) - first
        guard rest > 0 else { return }
        guard rest > page else {
            guard prp2 & (page - 1) == 0 else { throw .invalidPRPOffset }
            return append(prp2, Int(rest))
        }
        var list = prp2
        guard list & 7 == 0 else { throw .invalidPRPOffset }
        while rest > 0 {
            let slots = (page - (list & (page - 1))) / 8
            let pages = (rest + page - 1) / page
            // The last place of a list's page leads to the next list, where more is to come.
            let isChained = pages > slots
            let count = Int(isChained ? slots : pages)
            try readList(list, byteCount: count * 8)
            for index in 0..<(isChained ? count - 1 : count) {
                let address = listWord(index)
                guard address & (page - 1) == 0 else { throw .invalidPRPOffset }
                let piece = min(rest, page)
                append(address, Int(piece))
                rest -= piece
            }
            guard isChained else { return }
            // Aligned, so the next list has room for more than a pointer: this ends.
            list = listWord(count - 1)
            guard list & (page - 1) == 0 else { throw .invalidPRPOffset }
        }
    }

    // MARK: SGLs

    private struct Descriptor {
        var address: UInt64
        var second: UInt64

        var byteCount: UInt64 { second & 0xFFFF_FFFF }
        /// SGL Descriptor Type; the sub type must be 0, an address.
        var type: UInt64 { second[bits: 60...63] }
        var subType: UInt64 { second[bits: 56...59] }

        static let dataBlock: UInt64 = 0
        static let segment: UInt64 = 2
        static let lastSegment: UInt64 = 3
    }

    private func resolveSGL(_ entry: SubmissionEntry, _ byteCount: Int) throws(CommandStatus) {
        var rest = UInt64(byteCount)
        var descriptor = Descriptor(address: entry.prp1, second: entry.prp2)
        var budget = Self.descriptorCountMax
        while true {
            guard descriptor.subType == 0 else { throw .invalidSGLType }
            switch descriptor.type {
            case Descriptor.dataBlock:
                try take(descriptor, &rest)
                guard rest == 0 else { throw .invalidSGLLength }
                return
            case Descriptor.segment, Descriptor.lastSegment:
                let next = try resolveSegment(descriptor, &rest, &budget)
                guard let next else {
                    guard rest == 0 else { throw .invalidSGLLength }
                    return
                }
                descriptor = next
            default: throw .invalidSGLType
            }
        }
    }

    /// Takes the data blocks of one segment.
    ///
    /// - Returns: The descriptor of the next segment, where there is one.
    private func resolveSegment(_ segment: Descriptor, _ rest: inout UInt64, _ budget: inout Int)
        throws(CommandStatus) -> Descriptor?
    {
        guard segment.byteCount > 0, segment.byteCount.isMultiple(of: 16) else { throw .invalidSGLSegment }
        let count = segment.byteCount / 16
        guard count <= UInt64(budget) else { throw .invalidSGLDescriptorCount }
        budget -= Int(count)
        var done: UInt64 = 0
        while done < count {
            let piece = min(count - done, UInt64(listBuffer.count / 16))
            try readList(segment.address &+ done &* 16, byteCount: Int(piece) * 16)
            for index in 0..<Int(piece) {
                let descriptor = Descriptor(address: listWord(index * 2), second: listWord(index * 2 + 1))
                done += 1
                guard descriptor.subType == 0 else { throw .invalidSGLType }
                switch descriptor.type {
                case Descriptor.dataBlock: try take(descriptor, &rest)
                case Descriptor.segment, Descriptor.lastSegment:
                    // Only the last of a segment leads on, and that of the last segment does not.
                    guard done == count, segment.type == Descriptor.segment else { throw .invalidSGLSegment }
                    return descriptor
                default: throw .invalidSGLType
                }
            }
        }
        // A segment that is not the last ends in a pointer to the next.
        guard segment.type == Descriptor.lastSegment else { throw .invalidSGLSegment }
        return nil
    }

    private func take(_ descriptor: Descriptor, _ rest: inout UInt64) throws(CommandStatus) {
        guard descriptor.byteCount <= rest else { throw .invalidSGLLength }
        append(descriptor.address, Int(descriptor.byteCount))
        rest -= descriptor.byteCount
    }

    // MARK: Small structures

    /// Writes bytes to a command's data.
    func scatter(_ bytes: [UInt8]) throws(CommandStatus) {
        var fault: DMAFault?
        bytes.withUnsafeBytes { source in
            var start = 0
            for range in ranges {
                do throws(DMAFault) {
                    let piece = UnsafeRawBufferPointer(rebasing: source[start..<start + range.byteCount])
                    try port.write(piece, at: range.address, .plain)
                } catch {
                    fault = error
                    return
                }
                start += range.byteCount
            }
        }
        guard fault == nil else { throw .dataTransferError }
    }

    /// Reads a command's data, `byteCount` bytes.
    func gather(byteCount: Int) throws(CommandStatus) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: byteCount)
        var fault: DMAFault?
        bytes.withUnsafeMutableBytes { target in
            var start = 0
            for range in ranges {
                do throws(DMAFault) {
                    let piece = UnsafeMutableRawBufferPointer(
                        rebasing: target[start..<start + range.byteCount]
                    )
                    try port.read(at: range.address, into: piece, .plain)
                } catch {
                    fault = error
                    return
                }
                start += range.byteCount
            }
        }
        guard fault == nil else { throw .dataTransferError }
        return bytes
    }
}
