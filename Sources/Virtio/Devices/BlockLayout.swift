// The block device's wire format (section 5.2).

import DeviceModel

/// Types of a request (VIRTIO_BLK_T_*).
struct BlockRequestType: RawRepresentable, Hashable, Sendable {
    var rawValue: UInt32

    static let read = Self(rawValue: 0)
    static let write = Self(rawValue: 1)
    static let flush = Self(rawValue: 4)
    static let getID = Self(rawValue: 8)
    static let discard = Self(rawValue: 11)
    static let writeZeroes = Self(rawValue: 13)
}

/// The last byte of a request (VIRTIO_BLK_S_*).
enum BlockStatus: UInt8 {
    case ok = 0
    case ioError = 1
    case unsupported = 2
}

/// The first 16 bytes of a request: type, reserved, sector.
struct BlockRequestHeader: Equatable, Sendable {
    var type: BlockRequestType
    /// In units of 512 bytes.
    var sector: UInt64

    static let byteCount = 16

    /// - Parameters:
    ///   - first: Bytes 7:0, little-endian.
    ///   - second: Bytes 15:8.
    init(_ first: UInt64, _ second: UInt64) {
        type = BlockRequestType(rawValue: UInt32(truncatingIfNeeded: first))
        sector = second
    }
}

/// struct virtio_blk_discard_write_zeroes, 16 bytes.
struct BlockRangeSegment: Equatable, Sendable {
    var sector: UInt64
    var sectorCount: UInt32
    /// Bit 0: unmap.
    var flags: UInt32

    static let byteCount = 16

    init(_ bytes: [UInt8], at offset: Int) {
        sector = bytes.littleEndian(at: offset, .doubleword)
        sectorCount = UInt32(bytes.littleEndian(at: offset + 8, .word))
        flags = UInt32(bytes.littleEndian(at: offset + 12, .word))
    }
}

extension VirtioFeatures {
    /// VIRTIO_BLK_F_SEG_MAX.
    package static let blockSegmentsMax = Self(bit: 2)
    /// VIRTIO_BLK_F_RO.
    package static let blockReadOnly = Self(bit: 5)
    /// VIRTIO_BLK_F_BLK_SIZE.
    package static let blockSize = Self(bit: 6)
    /// VIRTIO_BLK_F_FLUSH.
    package static let blockFlush = Self(bit: 9)
    /// VIRTIO_BLK_F_TOPOLOGY.
    package static let blockTopology = Self(bit: 10)
    /// VIRTIO_BLK_F_CONFIG_WCE.
    package static let blockConfigurableCache = Self(bit: 11)
    /// VIRTIO_BLK_F_MQ.
    package static let blockMultiQueue = Self(bit: 12)
    /// VIRTIO_BLK_F_DISCARD.
    package static let blockDiscard = Self(bit: 13)
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    package static let blockWriteZeroes = Self(bit: 14)
}

/// struct virtio_blk_config, as far as this device has features for it.
struct BlockConfiguration: Equatable, Sendable {
    /// In sectors of 512 bytes.
    var capacity: UInt64
    var segmentsMax: UInt32
    var queueCount: UInt16
    /// 1: a write-back cache, which FLUSH empties.
    var isWriteBack: Bool

    /// Sectors that one discard or write-zeroes segment has at most: 1 GiB, so that one request has an end.
    static let rangeSectorsMax: UInt32 = 1 << 21
    static let rangeSegmentsMax: UInt32 = 16
    /// Where `writeback` stands.
    static let writeBackOffset = 32

    var bytes: [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 60)
        func put(_ value: UInt64, _ offset: Int, _ count: Int) {
            for index in 0..<count {
                bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
            }
        }
        put(capacity, 0, 8)
        // size_max (8) and geometry (16) have no feature here.
        put(UInt64(segmentsMax), 12, 4)
        put(512, 20, 4)
        // physical_block_exp: 8 blocks to a page of the host's file; alignment_offset 0; min_io_size, opt_io_size.
        put(3, 24, 1)
        put(8, 26, 2)
        put(0, 28, 4)
        put(isWriteBack ? 1 : 0, Self.writeBackOffset, 1)
        put(UInt64(queueCount), 34, 2)
        put(UInt64(Self.rangeSectorsMax), 36, 4)
        put(UInt64(Self.rangeSegmentsMax), 40, 4)
        // discard_sector_alignment: a page of the host's file.
        put(8, 44, 4)
        put(UInt64(Self.rangeSectorsMax), 48, 4)
        put(UInt64(Self.rangeSegmentsMax), 52, 4)
        put(1, 56, 1)
        return bytes
    }
}
