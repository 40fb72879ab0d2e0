// Waiting for a time, a signal or a command, whichever is to end something.

import Glibc

/// The monotonic clock, in seconds.
enum Clock {
    static var now: Double {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
}

/// Signals that are waited for in place of being delivered.
struct SignalSet {
    private var set = sigset_t()

    init(_ signals: CInt...) {
        sigemptyset(&set)
        for signal in signals { sigaddset(&set, signal) }
    }

    /// Keeps them until somebody waits.
    func block() {
        var set = set
        pthread_sigmask(SIG_BLOCK, &set, nil)
    }

    /// Waits for one of them; nil where the time is over first.
    func wait(seconds: Double?) -> CInt? {
        var set = set
        guard let seconds else {
            var signal: CInt = 0
            while sigwait(&set, &signal) != 0 {}
            return signal
        }
        var time = timespec()
        time.tv_sec = time_t(max(0, seconds))
        time.tv_nsec = Int((max(0, seconds) - Double(time.tv_sec)) * 1e9)
        while true {
            let signal = sigtimedwait(&set, nil, &time)
            if signal > 0 { return signal }
            if errno != EINTR { return nil }
        }
    }
}

/// A command with our input and output.
struct SpawnedProcess {
    private let process: pid_t

    init(_ words: [String]) throws(FileProblem) {
        var arguments = words.map { strdup($0) }
        defer { for argument in arguments { free(argument) } }
        arguments.append(nil)
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // It is to be stopped as usual: what we wait for is not blocked there.
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        var process = pid_t()
        let status = posix_spawnp(&process, words[0], nil, &attributes, arguments, environ)
        guard status == 0 else {
            errno = status
            throw FileProblem(words[0])
        }
        self.process = process
    }

    func send(_ signal: CInt) { kill(process, signal) }

    /// Its exit code, 128 + n for signal n as shells have it; nil while it runs.
    func exitCode() -> CInt? {
        var status: CInt = 0
        guard waitpid(process, &status, WNOHANG) == process else { return nil }
        let signal = status & 0x7F
        return signal == 0 ? (status >> 8) & 0xFF : 128 + signal
    }
}
