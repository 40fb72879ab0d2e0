// One open file descriptor with one owner.

import CLinux
import Glibc
public import SystemPackage

/// Owns one file descriptor and closes it exactly once.
public struct OwnedDescriptor: ~Copyable, Sendable {
    /// The number, to lend to a system call; it stays this value's to close.
    public let rawValue: CInt

    /// Takes over a descriptor that nobody else will close.
    public init(adopting rawValue: CInt) { self.rawValue = rawValue }

    /// Gives the descriptor away: the caller closes it.
    public consuming func release() -> CInt {
        let rawValue = rawValue
        discard self
        return rawValue
    }

    /// A second descriptor of the same open file, closed on exec.
    ///
    /// - Throws: The system's error: `EBADF`, or `EMFILE` where the process may open no more.
    public borrowing func duplicate() throws(Errno) -> OwnedDescriptor {
        let copy = smmud_duplicate(rawValue)
        guard copy >= 0 else { throw Errno(rawValue: -copy) }
        return OwnedDescriptor(adopting: copy)
    }

    deinit { if rawValue >= 0 { close(rawValue) } }
}
