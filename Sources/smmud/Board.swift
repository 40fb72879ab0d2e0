// From a file to a machine.

import DeviceTree
import Glibc
import Machine
import SystemPackage

extension Machine {
    /// Builds the machine that a device tree's file describes.
    ///
    /// Warnings go to standard error.
    static func load(_ path: String, options: MachineOptions) throws(Failure) -> Machine {
        let bytes = try read(path)
        let board: BoardDescription
        do throws(DeviceTreeErrors) {
            board = try .load(bytes)
        } catch {
            throw Failure(.board, error.diagnostics.map { "\(path): \($0)" })
        }
        for warning in board.warnings { Output.complain("warning: \(path): \(warning)") }
        do throws(MachineError) {
            return try Machine(board: board, options: options)
        } catch {
            throw Failure(.host, error.description)
        }
    }

    /// Reads a whole file, or a little more of it than a device tree may have.
    private static func read(_ path: String) throws(Failure) -> [UInt8] {
        do {
            let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
            defer { try? file.close() }
            let limit = FlattenedDeviceTree.maximumByteCount + 1
            var bytes: [UInt8] = []
            var piece = [UInt8](repeating: 0, count: 64 << 10)
            while bytes.count < limit {
                let count = try piece.withUnsafeMutableBytes { try file.read(into: $0) }
                if count == 0 { break }
                bytes += piece[..<count]
            }
            return bytes
        } catch {
            throw Failure(.file, "\(path): cannot be read: \((error as? Errno)?.description ?? "\(error)")")
        }
    }
}
