// The first message: which version and which capabilities the two sides agree on.

import FoundationEssentials

/// What one side of a connection can do, as far as it said so.
package struct VFIOUserCapabilities: Equatable, Sendable {
    /// max_msg_fds: how many descriptors the sender of this can receive with one message.
    package var descriptorCountMax: UInt64?
    /// max_data_xfer_size: how many bytes of data one read or write carries at most.
    package var dataByteCountMax: UInt64?
    /// max_dma_maps: how many DMA_MAPs may stand at a time.
    package var mappingCountMax: UInt64?
    /// pgsizes: the page sizes of DMA_MAP, each a bit.
    package var pageSizes: UInt64?
    /// twin_socket.supported: whether the server's commands may take a socket of their own.
    package var twinSocket: Bool?
    /// twin_socket.fd_index: which of the descriptors of the server's reply that socket is.
    package var twinSocketIndex: UInt64?
    /// write_multiple: whether REGION_WRITE_MULTI may be sent.
    package var writeMultiple: Bool?

    package init(
        descriptorCountMax: UInt64? = nil,
        dataByteCountMax: UInt64? = nil,
        mappingCountMax: UInt64? = nil,
        pageSizes: UInt64? = nil,
        twinSocket: Bool? = nil,
        twinSocketIndex: UInt64? = nil,
        writeMultiple: Bool? = nil
    ) {
        self.descriptorCountMax = descriptorCountMax
        self.dataByteCountMax = dataByteCountMax
        self.mappingCountMax = mappingCountMax
        self.pageSizes = pageSizes
        self.twinSocket = twinSocket
        self.twinSocketIndex = twinSocketIndex
        self.writeMultiple = writeMultiple
    }

    /// What holds for a peer that does not say, by the specification.
    package static let `default` = Self(
        descriptorCountMax: 1,
        dataByteCountMax: 1 << 20,
        mappingCountMax: 65535,
        pageSizes: 4096,
        twinSocket: false,
        writeMultiple: false
    )

    /// The JSON text: without spaces, members always in this order.
    package var json: String {
        var members: [String] = []
        if let descriptorCountMax { members.append("\"max_msg_fds\":\(descriptorCountMax)") }
        if let dataByteCountMax { members.append("\"max_data_xfer_size\":\(dataByteCountMax)") }
        if let mappingCountMax { members.append("\"max_dma_maps\":\(mappingCountMax)") }
        if let pageSizes { members.append("\"pgsizes\":\(pageSizes)") }
        if let twinSocket {
            let index = twinSocketIndex.map { ",\"fd_index\":\($0)" } ?? ""
            members.append("\"twin_socket\":{\"supported\":\(twinSocket)\(index)}")
        }
        if let writeMultiple { members.append("\"write_multiple\":\(writeMultiple)") }
        return "{\"capabilities\":{\(members.joined(separator: ","))}}"
    }

    /// Reads the JSON text.
    ///
    /// Members that it does not know are ignored.
    ///
    /// - Returns: Nil where it is no JSON, or a member has the wrong type or a value that makes no sense.
    package init?(json: [UInt8]) {
        // The parser goes down with the text's nesting; nobody's capabilities are nested deeply.
        guard Self.isNestedShallowly(json),
            let document = try? JSONDecoder().decode(Document.self, from: Data(json))
        else { return nil }
        let members = document.capabilities
        if let count = members?.max_msg_fds, count > Self.believableDescriptorCount { return nil }
        // Version 1 of migration, which everybody still sends: only its type is looked at.
        self.init(
            descriptorCountMax: members?.max_msg_fds,
            dataByteCountMax: members?.max_data_xfer_size,
            mappingCountMax: members?.max_dma_maps,
            pageSizes: members?.pgsizes,
            twinSocket: members?.twin_socket?.supported,
            twinSocketIndex: members?.twin_socket?.fd_index,
            writeMultiple: members?.write_multiple
        )
    }

    /// No peer means more than this.
    private static let believableDescriptorCount: UInt64 = 1024

    private static func isNestedShallowly(_ json: [UInt8]) -> Bool {
        var depth = 0
        for byte in json {
            switch byte {
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                depth += 1
                // Brackets inside strings count too: more than this is not meant seriously.
                if depth > 64 { return false }
            case UInt8(ascii: "}"), UInt8(ascii: "]"): depth -= 1
            default: break
            }
        }
        return true
    }

    // The names are the wire's.
    // swift-format-ignore: AlwaysUseLowerCamelCase
    private struct Document: Decodable {
        struct TwinSocket: Decodable {
            var supported: Bool?
            var fd_index: UInt64?
        }
        struct Migration: Decodable {
            var pgsize: UInt64?
            var max_bitmap_size: UInt64?
        }
        struct Capabilities: Decodable {
            var max_msg_fds: UInt64?
            var max_data_xfer_size: UInt64?
            var max_dma_maps: UInt64?
            var pgsizes: UInt64?
            var twin_socket: TwinSocket?
            var write_multiple: Bool?
            var migration: Migration?
        }
        var capabilities: Capabilities?
    }
}

/// VERSION, both ways.
package struct VFIOUserVersion: Equatable, Sendable {
    package static let byteCount = 4

    package var major: UInt16
    package var minor: UInt16
    /// Nil where no JSON came along.
    package var capabilities: VFIOUserCapabilities?

    package init(major: UInt16 = 0, minor: UInt16, capabilities: VFIOUserCapabilities?) {
        self.major = major
        self.minor = minor
        self.capabilities = capabilities
    }

    /// Reads a payload; nil where it is too short, or its text is not terminated or makes no sense.
    package init?(_ payload: [UInt8]) {
        guard let major = payload.word(at: 0, as: UInt16.self),
            let minor = payload.word(at: 2, as: UInt16.self)
        else { return nil }
        self.major = major
        self.minor = minor
        guard payload.count > Self.byteCount else { return }
        guard payload.last == 0,
            let capabilities = VFIOUserCapabilities(
                json: Array(payload.dropFirst(Self.byteCount).prefix { $0 != 0 })
            )
        else { return nil }
        self.capabilities = capabilities
    }

    /// The payload.
    package var bytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.append(word: major)
        bytes.append(word: minor)
        if let capabilities {
            bytes.append(contentsOf: capabilities.json.utf8)
            bytes.append(0)
        }
        return bytes
    }
}
