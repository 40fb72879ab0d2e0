// Descriptors kept so that clients can be let go where there are none left to serve them with.

import CLinux
import Glibc
import Synchronization

/// What lets a process that may open no more files accept a client, and let it go.
///
/// Any thread may open a file between two calls here, and have what was just closed. So a client is served only
/// while the reserve is whole: what is lost comes back with the next descriptor that is free, before any client has it.
/// Otherwise a server without a reserve would leave its clients waiting, for as long as others hold all the rest.
package struct DescriptorReserve: Sendable {
    /// The process's: the limit on descriptors is the process's, too.
    static let shared = Mutex(
        DescriptorReserve(
            open: {
                let descriptor = Glibc.open("/dev/null", O_RDONLY | O_CLOEXEC)
                return descriptor < 0 ? -errno : descriptor
            },
            close: { _ = Glibc.close($0) }
        )
    )

    private let open: @Sendable () -> CInt
    private let close: @Sendable (CInt) -> Void
    private var wantedCount = 0
    private var held: [CInt] = []

    /// - Parameters:
    ///   - open: Opens anything at all; returns a descriptor, or a negated error.
    ///   - close: Closes a descriptor.
    package init(open: @escaping @Sendable () -> CInt, close: @escaping @Sendable (CInt) -> Void) {
        (self.open, self.close) = (open, close)
    }

    /// One more server has clients to let go.
    package mutating func enter() {
        wantedCount += 1
        _ = fill()
    }

    /// One server fewer.
    package mutating func leave() {
        wantedCount -= 1
        while held.count > wantedCount, giveUpOne() {}
    }

    /// Accepts a client, or lets it go where there is no descriptor for it.
    ///
    /// - Parameters:
    ///   - take: Accepts; returns a descriptor, or a negated error.
    ///   - refuse: Lets a client go, and closes its descriptor.
    /// - Returns: The client's descriptor, or why there is none to serve, a negated error. `EMFILE` again and again
    ///   says that a client waits.
    package mutating func accept(_ take: () -> CInt, refuse: (CInt) -> Void) -> CInt {
        let descriptor = take()
        if descriptor >= 0 {
            if fill() { return descriptor }
            refuse(descriptor)
            _ = fill()
            return -EMFILE
        }
        if descriptor == -EMFILE, giveUpOne() {
            let unwanted = take()
            if unwanted >= 0 { refuse(unwanted) }
            _ = fill()
        }
        return descriptor
    }

    /// Whether there is one to give up.
    package var isEmpty: Bool { held.isEmpty }

    /// Opens what is missing.
    ///
    /// - Returns: false where there are no descriptors for it. Where it cannot be opened for another reason there is
    ///   no reserve to be had, and nobody is to suffer for that.
    private mutating func fill() -> Bool {
        while held.count < wantedCount {
            let descriptor = open()
            guard descriptor >= 0 else { return ![-EMFILE, -ENFILE].contains(descriptor) }
            held.append(descriptor)
        }
        return true
    }

    private mutating func giveUpOne() -> Bool {
        guard let descriptor = held.popLast() else { return false }
        close(descriptor)
        return true
    }
}
