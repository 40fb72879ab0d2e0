// A property whose length leads libfdt back to where it is.

import DeviceTree
import Testing

@Suite("Lengths of properties")
struct EndlessPropertyTests {
    private static func bytes(_ words: [UInt32]) -> [UInt8] {
        words.flatMap { word in [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: word >> $0) } }
    }

    /// A tree of a root with one property of this length, which has four bytes.
    private static func blob(length: UInt32) -> [UInt8] {
        let structure: [UInt32] = [1, 0, 3, length, 0, 1, 2, 9]
        let strings: [UInt32] = [0x6100_0000]
        // The header; an empty list of reservations; the structure; the strings.
        let header: [UInt32] = [
            0xD00D_FEED, 40 + 16 + 32 + 4, 56, 88, 40, 17, 16, 0, 4, 32,
        ]
        return bytes(header + [0, 0, 0, 0] + structure + strings)
    }

    @Test("a property that is as long as it says is read")
    func whole() throws {
        let tree = try FlattenedDeviceTree(Self.blob(length: 4))
        #expect(tree.root["a"]?.cells == [1])
    }

    @Test(
        "one that is longer than the blob is refused, one whose length goes back to it too",
        arguments: [0xFFFF_FFF4, 0xFFFF_FFF0, 0x8000_0000, 0x7FFF_FFFF, 40] as [UInt32]
    )
    func tooLong(_ length: UInt32) {
        #expect(throws: DeviceTreeErrors.self) { try FlattenedDeviceTree(Self.blob(length: length)) }
    }
}
