// Messages typed in numbers, as the tables of the specification have them: without our encoders.

/// Bytes of hexadecimal digits; spaces and line ends are for the eye.
func hex(_ text: String) -> [UInt8] {
    let digits = text.filter { !$0.isWhitespace }.compactMap(\.hexDigitValue)
    return stride(from: 0, to: digits.count - 1, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
}

func le<Word: FixedWidthInteger & UnsignedInteger>(_ word: Word) -> [UInt8] {
    (0..<Word.bitWidth / 8).map { UInt8(truncatingIfNeeded: word >> Word($0 * 8)) }
}

func words(_ words: UInt32...) -> [UInt8] { words.flatMap { le($0) } }
func longs(_ words: UInt64...) -> [UInt8] { words.flatMap { le($0) } }

/// The 16 bytes that every message begins with.
func header(_ id: UInt16, _ command: UInt16, size: Int, flags: UInt32 = 0, error: UInt32 = 0) -> [UInt8] {
    le(id) + le(command) + le(UInt32(size)) + le(flags) + le(error)
}

/// A whole command.
func command(_ command: UInt16, _ payload: [UInt8] = [], id: UInt16 = 7, flags: UInt32 = 0) -> [UInt8] {
    header(id, command, size: 16 + payload.count, flags: flags) + payload
}

/// The reply that says why not.
func refusal(_ command: UInt16, _ error: UInt32, id: UInt16 = 7) -> [UInt8] {
    header(id, command, size: 16, flags: 0x21, error: error)
}

/// The reply that says yes.
func success(_ command: UInt16, _ payload: [UInt8] = [], id: UInt16 = 7) -> [UInt8] {
    header(id, command, size: 16 + payload.count, flags: 1) + payload
}

func versionPayload(_ json: String?, major: UInt16 = 0, minor: UInt16 = 0) -> [UInt8] {
    le(major) + le(minor) + (json.map { Array($0.utf8) + [0] } ?? [])
}

/// REGION_READ, and the start of REGION_WRITE.
func access(_ region: UInt32, _ offset: UInt64, _ count: UInt32) -> [UInt8] {
    longs(offset) + words(region, count)
}

/// DMA_MAP.
func map(
    _ address: UInt64,
    _ size: UInt64,
    flags: UInt32 = 3,
    offset: UInt64 = 0,
    argsz: UInt32 = 32
) -> [UInt8] {
    words(argsz, flags) + longs(offset, address, size)
}

/// DMA_UNMAP.
func unmap(_ address: UInt64, _ size: UInt64, flags: UInt32 = 0, argsz: UInt32 = 24) -> [UInt8] {
    words(argsz, flags) + longs(address, size)
}

/// DEVICE_SET_IRQS.
func interrupts(
    _ flags: UInt32,
    _ index: UInt32,
    _ start: UInt32,
    _ count: UInt32,
    _ bools: [UInt8] = []
) -> [UInt8] {
    words(UInt32(20 + bools.count), flags, index, start, count) + bools
}

/// The flags of DEVICE_SET_IRQS.
enum IRQ {
    static let none: UInt32 = 1
    static let bool: UInt32 = 2
    static let eventfd: UInt32 = 4
    static let mask: UInt32 = 8
    static let unmask: UInt32 = 16
    static let trigger: UInt32 = 32
    static let intx: UInt32 = 0
    static let msi: UInt32 = 1
    static let msix: UInt32 = 2
    static let error: UInt32 = 3
    static let request: UInt32 = 4
}

enum Errors {
    static let noEntry: UInt32 = 2
    static let exists: UInt32 = 17
    static let invalid: UInt32 = 22
    static let noFeature: UInt32 = 25
    static let noSpace: UInt32 = 28
    static let notSupported: UInt32 = 95
}

/// What QEMU 11.1's client offers.
let qemuOffer =
    #"{"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 16, "#
    + #""max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}"#
