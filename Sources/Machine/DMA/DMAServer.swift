// The DMA socket's limits and what it tells those it does not serve.

import ControlProtocol
package import HostIO
package import Logging
package import SystemPackage

/// Serves the DMA socket of a machine.
package enum DMAServer {
    /// How many clients there may be at a time.
    static let connectionCountMax = 256

    package static func make(_ machine: Machine, listener: UnixListener, logger: Logger) throws(Errno) -> SocketServer
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
