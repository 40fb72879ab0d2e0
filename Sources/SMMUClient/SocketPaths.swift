// Where the daemon's sockets are when nobody says.

import Glibc

/// The sockets' usual places, the same for the daemon and its clients.
package enum SocketPaths {
    /// The control socket: `$SMMUD_SOCKET` if it is set, else `control.sock` in ``directory``.
    package static var control: String { variable("SMMUD_SOCKET") ?? directory + "/control.sock" }

    /// The DMA socket: `$SMMUD_DMA_SOCKET` if it is set, else `dma.sock` in ``directory``.
    package static var dma: String { variable("SMMUD_DMA_SOCKET") ?? directory + "/dma.sock" }

    /// `/run/smmud` for root, `$XDG_RUNTIME_DIR/smmud` for others, and `/tmp/smmud-UID` for those without one.
    package static var directory: String {
        if geteuid() == 0 { return "/run/smmud" }
        if let directory = variable("XDG_RUNTIME_DIR") { return directory + "/smmud" }
        return "/tmp/smmud-\(geteuid())"
    }

    private static func variable(_ name: String) -> String? {
        guard let value = getenv(name) else { return nil }
        let text = String(cString: value)
        return text.isEmpty ? nil : text
    }
}
