// The control socket's limits and what it tells those it does not serve.

import ControlProtocol
import HostIO
import Logging
import Machine
import SystemPackage

/// Serves the control socket of a machine.
enum ControlServer {
    /// How many clients there may be at a time.
    static let connectionCountMax = 128

    static func make(_ service: ControlService, listener: UnixListener, logger: Logger) throws(Errno)
        -> SocketServer
    {
        let error = ControlError.limit("\(connectionCountMax) clients are connected, as many as may be")
        return try SocketServer(
            SocketServer.Configuration(
                name: "control",
                connectionCountMax: connectionCountMax,
                refusal: ControlAnswer.failure(error, id: .null)
            ),
            listener: listener,
            logger: logger
        ) { connection in
            ControlConnection(connection, service: service).run()
        }
    }
}
