// A QEMU that executes nothing: its devices, its memory as a file of ours, and its test socket.

import Glibc
import GuestMemory
import SystemPackage

/// What went wrong with QEMU, in words.
package struct QEMUError: Error, CustomStringConvertible {
    package let description: String
}

/// One QEMU under `-accel qtest`, and the lines to and from it.
package final class QEMUProcess {
    /// QEMU as a command, without options.
    package typealias Command = [String]

    let ram: GuestRAM
    private let process: pid_t
    private let socket: CInt
    private let files: [String]
    private var output: [UInt8] = []
    private var received: [UInt8] = []
    private var position = 0
    package private(set) var outstanding = 0

    package init(_ command: Command, _ shape: MachineShape, folder: String) throws {
        let path = folder + "/qtest"
        let file = folder + "/ram"
        let listener = try Self.listen(path)
        defer { close(listener) }
        files = [path, file]
        ram = try Self.makeRAM(file)
        // From 9.2 on `virt` has both stages whatever this says.
        let machine = shape.stages == .nested ? "virt" : "virt-9.1"
        var arguments =
            command + [
                "-machine", "\(machine),iommu=smmuv3,gic-version=3,memory-backend=ram", "-accel", "qtest",
                "-qtest", "unix:\(path)", "-qtest-log", "/dev/null", "-m", "\(Layout.ramBytes >> 20)M",
                "-object", "memory-backend-file,id=ram,size=\(Layout.ramBytes),mem-path=\(file),share=on",
                "-display", "none", "-nodefaults", "-nic", "none",
                "-device", "edu,addr=1.0,dma_mask=0xffffffffffffffff",
                "-device", "edu,addr=1f.0,dma_mask=0xffffffffffffffff",
                "-device", "pcie-root-port,id=root0,addr=2.0,chassis=1,slot=1",
                "-device", "edu,bus=root0,addr=0.0,dma_mask=0xffffffffffffffff",
            ]
        if shape.stages != .nested { arguments += ["-global", "arm-smmuv3.stage=\(shape.stages.rawValue)"] }
        process = try Self.spawn(arguments)
        do {
            socket = try Self.accept(listener, process)
        } catch {
            kill(process, SIGKILL)
            waitpid(process, nil, 0)
            throw error
        }
    }

    /// Takes the names of the socket and of the memory away: QEMU has opened both when it has answered once.
    package func removeFiles() { for file in files { unlink(file) } }

    deinit {
        removeFiles()
        close(socket)
        kill(process, SIGKILL)
        waitpid(process, nil, 0)
    }

    // MARK: Start

    private static func listen(_ path: String) throws -> CInt {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
            throw QEMUError(description: "\(path) is too long for a socket")
        }
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
        unlink(path)
        let listener = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
        let isBound = withUnsafePointer(to: address) { address in
            address.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            }
        }
        guard listener >= 0, isBound, Glibc.listen(listener, 1) == 0 else {
            throw QEMUError(description: "no socket at \(path): \(Errno(rawValue: errno))")
        }
        return listener
    }

    private static func makeRAM(_ path: String) throws -> GuestRAM {
        let descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0, ftruncate(descriptor, off_t(Layout.ramBytes)) == 0 else {
            throw QEMUError(description: "no file \(path): \(Errno(rawValue: errno))")
        }
        return GuestRAM(
            try .mapping(
                OwnedDescriptor(adopting: descriptor),
                offset: 0,
                byteCount: Layout.ramBytes,
                isWritable: true
            )
        )
    }

    private static func spawn(_ arguments: [String]) throws -> pid_t {
        var words: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) }
        words.append(nil)
        defer { words.forEach { free($0) } }
        var process = pid_t()
        let error = posix_spawn(&process, arguments[0], nil, nil, words, environ)
        guard error == 0 else {
            throw QEMUError(description: "\(arguments[0]) does not start: \(Errno(rawValue: error))")
        }
        return process
    }

    private static func accept(_ listener: CInt, _ process: pid_t) throws -> CInt {
        // As long as QEMU lives, but not for ever.
        for _ in 0..<600 {
            var entry = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
            if poll(&entry, 1, 100) == 1 {
                let socket = Glibc.accept(listener, nil, nil)
                if socket >= 0 { return socket }
            }
            if waitpid(process, nil, WNOHANG) == process { break }
        }
        throw QEMUError(description: "QEMU did not start")
    }

    // MARK: Lines

    /// Adds a line; ``flush()`` sends it.
    package func ask(_ line: String) {
        output.append(contentsOf: line.utf8)
        output.append(UInt8(ascii: "\n"))
        outstanding += 1
    }

    package func write32(_ address: UInt64, _ value: UInt64) {
        ask("writel 0x\(hex(address)) 0x\(hex(value))")
    }
    package func write64(_ address: UInt64, _ value: UInt64) {
        ask("writeq 0x\(hex(address)) 0x\(hex(value))")
    }
    package func read32(_ address: UInt64) { ask("readl 0x\(hex(address))") }

    /// Sends what was added and waits for all answers.
    ///
    /// - Returns: What those that read have read, in order.
    package func flush() throws -> [UInt64] {
        try send()
        var values: [UInt64] = []
        while outstanding > 0 {
            guard let end = received[position...].firstIndex(of: UInt8(ascii: "\n")) else {
                received.removeFirst(position)
                position = 0
                try receive()
                continue
            }
            let line = received[position..<end]
            position = end + 1
            outstanding -= 1
            guard line.starts(with: "OK".utf8) else {
                throw QEMUError(description: "QEMU says \(String(decoding: line, as: UTF8.self))")
            }
            guard line.count > 5, line.dropFirst(3).starts(with: "0x".utf8) else { continue }
            values.append(UInt64(String(decoding: line.dropFirst(5), as: UTF8.self), radix: 16) ?? 0)
        }
        received = []
        position = 0
        return values
    }

    private func send() throws {
        var sent = 0
        while sent < output.count {
            let count = output[sent...].withUnsafeBytes {
                Glibc.send(socket, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL))
            }
            guard count > 0 || errno == EINTR else { throw QEMUError(description: "QEMU has gone") }
            sent += max(0, count)
        }
        output = []
    }

    private func receive() throws {
        // QEMU answers at once; one that does not has stopped.
        var entry = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, 60_000) == 1 else { throw QEMUError(description: "QEMU does not answer") }
        let size = 65536
        let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            count = max(0, recv(socket, buffer.baseAddress, size, 0))
        }
        guard !bytes.isEmpty else { throw QEMUError(description: "QEMU has ended itself") }
        received += bytes
    }
}

func hex(_ value: some BinaryInteger) -> String { String(value, radix: 16) }
