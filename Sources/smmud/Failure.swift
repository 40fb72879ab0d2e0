// What the daemon says when it cannot do what it was started for, and the exit code that goes with it.

import Glibc
import HostIO

/// Why the daemon ends early: sentences for a person, and a code for a script.
struct Failure: Error {
    /// Exit codes: those of sysexits.h.
    enum Code: Int32 {
        /// The command line asks for what cannot be (EX_USAGE).
        case usage = 64
        /// The device tree or the IORT is wrong (EX_DATAERR).
        case board = 65
        /// The board's files cannot be read (EX_NOINPUT).
        case file = 66
        /// Another process serves the socket (EX_UNAVAILABLE).
        case inUse = 69
        /// A mistake in this program (EX_SOFTWARE).
        case software = 70
        /// The host refuses memory, threads or file descriptors (EX_OSERR).
        case host = 71
        /// A socket cannot be made (EX_CANTCREAT).
        case socket = 73
    }

    let code: Code
    /// One or more lines.
    let lines: [String]

    init(_ code: Code, _ lines: [String]) {
        self.code = code
        self.lines = lines
    }

    init(_ code: Code, _ line: String) { self.init(code, [line]) }

    init(_ error: ListenerError) {
        let code: Code = if case .inUse = error { .inUse } else { .socket }
        self.init(code, error.description)
    }
}

/// The program's own output, unbuffered, so that whoever waits for a line gets it.
enum Output {
    /// Writes a line to standard output; a reader that is gone is no reason to stop.
    static func print(_ line: String) { write(line + "\n", to: STDOUT_FILENO) }

    /// Writes text as it is to standard output.
    static func write(_ text: String) { write(text, to: STDOUT_FILENO) }

    /// Writes a line to standard error, with the program's name before it.
    static func complain(_ line: String) { write("smmud: " + line + "\n", to: STDERR_FILENO) }

    private static func write(_ text: String, to descriptor: CInt) {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count > 0 {
                rest = rest.dropFirst(count)
            } else if errno != EINTR {
                return
            }
        }
    }
}
