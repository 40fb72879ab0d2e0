// The socket of its own that a client may take the server's commands by.

import CLinux
import Glibc
import GuestMemory
import HostIO
import SystemPackage
import VFIOUserProtocol

/// Our end of a twin socket, and the thread that reads the client's answers from it.
final class TwinSocket {
    let stream: any ClientStream
    private var clientEnd: OwnedDescriptor?
    private let thread: SystemThread.Handle

    /// Makes the pair.
    ///
    /// - Parameter client: The client's main stream, which ends where it answers by this one what nobody asked.
    /// - Throws: The system's error where it gives no descriptor or no thread.
    init(_ name: String, _ memory: ClientMemory, client: any ClientStream) throws(Errno) {
        var ends: [CInt] = [-1, -1]
        let type = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, type, 0, &ends) == 0 else { throw Errno(rawValue: errno) }
        let stream = ClientSocket(adopting: ends[0])
        self.stream = stream
        clientEnd = OwnedDescriptor(adopting: ends[1])
        thread = try SystemThread.start(named: "\(name)-twin") {
            if !Self.readAnswers(from: stream, memory) { client.abandon() }
            memory.close()
        }
    }

    /// Lends the client's end to `body`, which sends it, and closes it.
    func sendingClientEnd(_ body: (CInt) -> Bool) -> Bool {
        guard let clientEnd = clientEnd.take() else { return false }
        return body(clientEnd.rawValue)
    }

    /// Ends it, and waits for its thread.
    func stop() {
        stream.abandon()
        SystemThread.join(thread)
    }

    /// Reads answers until the stream ends.
    ///
    /// - Returns: False where something came that is no answer to what was asked.
    private static func readAnswers(from stream: any ClientStream, _ memory: ClientMemory) -> Bool {
        let byteCountMax = VFIOUserRegionRequestReader.headByteCount + ClientMemory.pieceByteCountMax
        var reader = MessageReader(stream, messageByteCountMax: byteCountMax)
        while let header = reader.header() {
            let byteCount = Int(header.messageByteCount)
            guard header.flags.type == 1, (VFIOUserHeader.byteCount...byteCountMax).contains(byteCount) else {
                return false
            }
            guard let message = reader.message(byteCount: byteCount) else { return true }
            let violation = memory.deliver(header, Array(message.dropFirst(VFIOUserHeader.byteCount)))
            reader.consume(byteCount)
            reader.finishMessage()
            guard violation == nil else { return false }
        }
        return true
    }
}
