// Bytes as the tables of the specification have them, typed by hand: without our encoders.

/// A header in numbers.
func header(_ id: UInt16, _ command: UInt16, size: Int, flags: UInt32 = 0, error: UInt32 = 0) -> [UInt8] {
    le(id) + le(command) + le(UInt32(size)) + le(flags) + le(error)
}

/// A whole command.
func command(_ command: UInt16, _ payload: [UInt8] = [], id: UInt16, flags: UInt32 = 0) -> [UInt8] {
    header(id, command, size: 16 + payload.count, flags: flags) + payload
}

/// The reply that says why not.
func refusal(_ command: UInt16, _ error: UInt32, id: UInt16) -> [UInt8] {
    header(id, command, size: 16, flags: 0x21, error: error)
}

/// The reply that says yes.
func success(_ command: UInt16, _ payload: [UInt8] = [], id: UInt16) -> [UInt8] {
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

/// What a client says first: asking for a twin socket, version 0.1.
let greeting = command(
    1,
    versionPayload(
        #"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,"#
            + #""pgsizes":4096,"twin_socket":{"supported":true},"write_multiple":true}}"#,
        minor: 1
    ),
    id: 0
)
