// Bytes as the tables of the specification have them, typed by hand.

@testable import VFIOUserProtocol

/// Bytes of hexadecimal digits; spaces and line ends are for the eye.
func hex(_ text: String) -> [UInt8] {
    let digits = text.filter { !$0.isWhitespace }.compactMap(\.hexDigitValue)
    return stride(from: 0, to: digits.count - 1, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
}

/// A header typed in numbers: without our encoder.
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

func le<Word: FixedWidthInteger & UnsignedInteger>(_ word: Word) -> [UInt8] {
    (0..<Word.bitWidth / 8).map { UInt8(truncatingIfNeeded: word >> Word($0 * 8)) }
}

func words(_ words: UInt32...) -> [UInt8] { words.flatMap { le($0) } }
func longs(_ words: UInt64...) -> [UInt8] { words.flatMap { le($0) } }

func versionPayload(_ json: String?, major: UInt16 = 0, minor: UInt16 = 0) -> [UInt8] {
    le(major) + le(minor) + (json.map { Array($0.utf8) + [0] } ?? [])
}

let einval: UInt32 = 22

extension VFIOUserServerSession {
    /// Feeds whole messages as a socket would, and collects what follows.
    mutating func feed(_ bytes: [UInt8], descriptors: Int = 0, lost: Bool = false, pieces: Int = .max)
        -> [VFIOUserServerAction]
    {
        var actions: [VFIOUserServerAction] = []
        var rest = bytes[...]
        var isFirst = true
        while !rest.isEmpty, byteCountWanted > 0 {
            let piece = Array(rest.prefix(min(byteCountWanted, pieces)))
            rest = rest.dropFirst(piece.count)
            let action = piece.withUnsafeBytes {
                receive($0, descriptorCount: isFirst ? descriptors : 0, areDescriptorsLost: isFirst && lost)
            }
            isFirst = false
            if action != .more { actions.append(action) }
        }
        return actions
    }

    /// The one thing that follows from a message; `.more` where nothing does.
    mutating func answer(_ bytes: [UInt8], descriptors: Int = 0, lost: Bool = false) -> VFIOUserServerAction {
        let actions = feed(bytes, descriptors: descriptors, lost: lost)
        return actions.count == 1 ? actions[0] : .more
    }

    /// A session whose client has been greeted.
    static func serving(_ device: VFIOUserDeviceDescription = .sample, json: String? = nil) -> Self {
        var session = Self(device: device)
        _ = session.feed(command(1, versionPayload(json)))
        return session
    }
}

extension VFIOUserDeviceDescription {
    /// A function with a BAR of two mappable areas, one that is wholly mappable, a read-only ROM, and all
    /// interrupts but MSI.
    static let sample = VFIOUserDeviceDescription.pci(
        regions: [
            .bar(0): VFIOUserRegionDescription(
                size: 0x8000,
                mapping: .init(
                    fileOffset: 0x10000,
                    areas: [
                        VFIOUserMappableArea(offset: 0x1000, size: 0x1000),
                        VFIOUserMappableArea(offset: 0x4000, size: 0x2000),
                    ]
                )
            ),
            .bar(1): VFIOUserRegionDescription(size: 0x1000, mapping: .init()),
            .bar(2): VFIOUserRegionDescription(
                size: 0x100,
                ioEvents: [
                    VFIOUserIOEvent(offset: 0x10, size: 4, descriptorIndex: 0),
                    VFIOUserIOEvent(offset: 0x20, size: 2, descriptorIndex: 1, flags: 1, dataMatch: 3),
                ]
            ),
            .rom: VFIOUserRegionDescription(size: 0x800, isWritable: false),
            .configuration: VFIOUserRegionDescription(size: 0x1000),
        ],
        interrupts: [
            .intx: .intx, .msix: VFIOUserInterruptDescription(count: 2048),
            .error: VFIOUserInterruptDescription(count: 1), .request: VFIOUserInterruptDescription(count: 1),
        ]
    )
}
