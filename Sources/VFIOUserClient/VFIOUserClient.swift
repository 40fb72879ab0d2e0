// A client of one vfio-user device server.

import Glibc
import VFIOUserProtocol

/// A connection to a device server, over which its device is driven.
///
/// Calls come from any thread and wait for their answers; calls of several threads are under way together. Where the
/// server ends, dies or breaks the protocol, every call that waits fails with
/// ``VFIOUserClientError/disconnected(reason:)``, and so does every later one; connect anew then.
///
/// What the server shares and what it answers is another's: all of it is checked, and a server can make calls fail,
/// not trap. A server that memory is shared with reads and writes that memory at any time.
public final class VFIOUserClient: Sendable {
    /// How a client behaves.
    public struct Options: Sendable {
        /// How long a call waits for its answer; nil is for ever.
        public var timeoutMilliseconds: Int? = 5000
        /// The same for DEVICE_RESET, which may take long.
        public var resetTimeoutMilliseconds: Int? = 60_000
        /// How many bytes one access to a region or to memory carries at most, 1 to 64 Mi.
        public var dataByteCountMax = 1 << 20
        /// Whether to ask for a socket of its own for the server's commands.
        public var asksForTwinSocket = true
        /// Called once when the connection ends, on any thread, with the reason; it must not wait for anything.
        public var whenEnded: (@Sendable (VFIOUserClientError) -> Void)?

        public init() {}
    }

    /// What the server said of itself, with the specification's value for what it did not say.
    public struct Server: Equatable, Sendable {
        /// The minor version of major version 0 that is spoken.
        public var minorVersion: Int
        /// max_msg_fds: how many descriptors go with one message.
        public var descriptorCountMax: Int
        /// max_data_xfer_size: how many bytes one access carries.
        public var dataByteCountMax: Int
        /// max_dma_maps: how many mappings may stand.
        public var mappingCountMax: Int
        /// pgsizes: the page sizes of mappings, each a bit.
        public var pageSizes: UInt64
        /// write_multiple: whether it takes REGION_WRITE_MULTI.
        public var takesMultipleWrites: Bool
        /// Whether its commands have a socket of their own.
        public var hasTwinSocket: Bool
    }

    /// What was agreed on with the server.
    public let server: Server
    public let options: Options
    let connection: ClientConnection

    /// Connects to the server that listens at a path.
    ///
    /// - Throws: ``VFIOUserClientError`` where nobody listens, or the two do not agree.
    public convenience init(path: String, options: Options = Options()) throws(VFIOUserClientError) {
        try self.init(
            ClientSocket.connect(to: path, timeoutMilliseconds: options.timeoutMilliseconds),
            options
        )
    }

    /// Takes over a Unix stream socket that is connected to a server, and closes it in the end.
    ///
    /// - Throws: ``VFIOUserClientError`` where the two do not agree.
    public convenience init(adopting descriptor: Int32, options: Options = Options())
        throws(VFIOUserClientError)
    {
        try self.init(
            ClientSocket(adopting: descriptor, sendTimeoutMilliseconds: options.timeoutMilliseconds),
            options
        )
    }

    private init(_ socket: ClientSocket, _ options: Options) throws(VFIOUserClientError) {
        guard (1...1 << 26).contains(options.dataByteCountMax) else {
            throw .invalid("dataByteCountMax is \(options.dataByteCountMax): it must be 1 to 67108864")
        }
        let capabilities = VFIOUserCapabilities(
            descriptorCountMax: UInt64(Self.descriptorCountMax),
            dataByteCountMax: UInt64(options.dataByteCountMax),
            mappingCountMax: 65535,
            pageSizes: 4096,
            twinSocket: options.asksForTwinSocket ? true : nil,
            writeMultiple: true
        )
        let connection = ClientConnection(
            socket,
            capabilities,
            sendTimeoutMilliseconds: options.timeoutMilliseconds,
            whenEnded: options.whenEnded
        )
        do throws(VFIOUserClientError) {
            let (agreed, minor) = try connection.greet(timeoutMilliseconds: options.timeoutMilliseconds)
            server = Server(
                minorVersion: Int(minor),
                descriptorCountMax: Int(clamping: agreed.descriptorCountMax ?? 1),
                dataByteCountMax: Int(clamping: agreed.dataByteCountMax ?? 1 << 20),
                mappingCountMax: Int(clamping: agreed.mappingCountMax ?? 65535),
                pageSizes: agreed.pageSizes ?? 4096,
                takesMultipleWrites: agreed.writeMultiple ?? false,
                hasTwinSocket: connection.hasTwinSocket
            )
        } catch {
            connection.stop()
            throw error
        }
        self.connection = connection
        self.options = options
    }

    deinit { connection.stop() }

    /// Ends the connection: calls that wait fail, the device's accesses to memory are answered no more, and when
    /// this returns no handler runs any more (but the one that calls this).
    public func close() { connection.stop() }

    /// Ends the connection without waiting for its threads.
    package func abandon(reason: String) { connection.end(.disconnected(reason: reason)) }

    /// Why the connection has ended; nil while it lives.
    public var ending: VFIOUserClientError? { connection.ending }

    /// How many descriptors go with one message, by this side.
    static let descriptorCountMax = 16

    /// How many go with one, by both.
    var descriptorsPerMessage: Int { min(server.descriptorCountMax, Self.descriptorCountMax) }

    /// How many bytes one access carries, by both.
    var dataBytesPerMessage: Int { min(server.dataByteCountMax, options.dataByteCountMax) }

    // MARK: Calls

    func call(_ request: VFIOUserClientRequest, descriptors: [CInt] = []) throws(VFIOUserClientError)
        -> PendingCall.Answer
    {
        let started = try connection.start(request, descriptors: descriptors)
        return try connection.finish(started, timeoutMilliseconds: options.timeoutMilliseconds)
    }

    /// Resets the device (DEVICE_RESET).
    ///
    /// What is mapped for it stays mapped, and interrupts stay bound.
    public func reset() throws(VFIOUserClientError) {
        let started = try connection.start(.reset)
        _ = try connection.finish(started, timeoutMilliseconds: options.resetTimeoutMilliseconds)
    }
}

/// An answer to another question than the one that was asked: the session does not let it through.
func unexpectedReply(_ command: VFIOUserCommand) -> VFIOUserClientError {
    .violation(command: command.name, reason: "it answers another question")
}
