// What can go wrong between a client and a device server.

import Glibc

/// Why a call to a device server did not do what it was asked.
public enum VFIOUserClientError: Error, Equatable, Sendable {
    /// Nobody listens at the path, or it cannot be reached.
    case cannotConnect(path: String, reason: String)
    /// The two sides found no version, or no terms, on which to speak.
    case notAgreed(reason: String)
    /// The connection has ended: the server closed it or died, broke the protocol, or the client closed it.
    ///
    /// Every call that waits gets this, and every call that comes later.
    case disconnected(reason: String)
    /// No answer came in time.
    ///
    /// Whether the command was carried out nobody knows; a late answer is thrown away.
    case timedOut(command: String)
    /// The server answered with an error: a positive error number of Linux.
    case failed(command: String, errno: Int32)
    /// The answer contradicts itself or its question. The connection goes on.
    case violation(command: String, reason: String)
    /// The server does not offer it: a region, a kind of interrupts, a command, so many descriptors.
    case unsupported(String)
    /// The call makes no sense: a range of no bytes, an address that leaves 64 bits, one that is mapped already.
    case invalid(String)
    /// This process could not do its part: a mapping, a descriptor, a thread.
    case local(String)
}

extension VFIOUserClientError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .cannotConnect(let path, let reason): "cannot connect to \(path): \(reason)"
        case .notAgreed(let reason): "the server and this client do not agree: \(reason)"
        case .disconnected(let reason): "the connection to the server has ended: \(reason)"
        case .timedOut(let command): "\(command): the server did not answer in time"
        case .failed(let command, let number): "\(command): the server answered: \(errorText(number))"
        case .violation(let command, let reason): "\(command): the server's answer is wrong: \(reason)"
        case .unsupported(let what): "the server does not offer \(what)"
        case .invalid(let what): what
        case .local(let what): what
        }
    }
}

/// The system's words for an error number.
func errorText(_ number: CInt) -> String {
    guard let text = strerror(number) else { return "error \(number)" }
    return String(cString: text)
}

/// Why an access of a device to memory is refused: what the server is told.
public struct VFIOUserMemoryError: Error, Equatable, Sendable {
    /// A positive error number of Linux; 0 is sent as `EIO`.
    public var errno: Int32

    public init(errno: Int32) { self.errno = errno }

    /// EFAULT: nothing is there, or a translation failed.
    public static let badAddress = Self(errno: 14)
    /// EPERM: it is there, but not for this.
    public static let notPermitted = Self(errno: 1)
}
