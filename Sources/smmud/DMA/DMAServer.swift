// The DMA socket's limits and what it tells those it does not serve.

import ControlProtocol
import HostIO
import Logging
import Machine
import SystemPackage

/// Serves the DMA socket of a machine.
enum DMAServer {
    /// How many clients there may be at a time.
    static let connectionCountMax = 256

    static func make(_ machine: Machine, listener: UnixListener, logger: Logger) throws(Errno) -> SocketServer
    {
        let rejection = DMARejection(.limit, "\(connectionCountMax) clients are connected, as many as may be")
        return try SocketServer(
            SocketServer.Configuration(
                name: "dma",
                connectionCountMax: connectionCountMax,
                refusal: rejection.answer(to: DMARequest(DMAOpcode(rawValue: 0), id: 0))
            ),
            listener: listener,
            logger: logger
        ) { connection in
            var server = DMAConnection(connection, machine: machine)
            server.run()
        }
    }
}
