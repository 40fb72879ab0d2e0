// From files to a machine.

import ACPITables
import DeviceTree
import Glibc
import Machine
import SystemPackage

extension Machine {
    /// Builds the machine that a board's files describe.
    ///
    /// Warnings go to standard error.
    static func load(_ files: BoardFiles, options: MachineOptions) throws(Failure) -> Machine {
        let tree = try files.tree.map { (path) throws(Failure) in
            try read(path, atMost: FlattenedDeviceTree.maximumByteCount)
        }
        let iort = try files.iort.map { (path) throws(Failure) in
            try read(path, atMost: IORTTable.maximumByteCount)
        }
        let board: BoardDescription
        do throws(DeviceTreeErrors) {
            board = try .load(tree: tree, iort: iort, ram: files.ram)
        } catch {
            throw Failure(.board, error.diagnostics.map { files.line($0) })
        }
        for warning in board.warnings {
            // Where RAM is a guest's, nobody has to say where.
            guard warning.origin != .request || options.memory == .own else { continue }
            Output.complain("warning: \(files.line(warning))")
        }
        do throws(MachineError) {
            return try Machine(board: board, options: options)
        } catch {
            throw Failure(.host, error.description)
        }
    }

    /// Reads a whole file, or a little more of it than it may have.
    private static func read(_ path: String, atMost byteCount: Int) throws(Failure) -> [UInt8] {
        do {
            let file = try FileDescriptor.open(path, .readOnly, options: .closeOnExec)
            defer { try? file.close() }
            let limit = byteCount + 1
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
