// Which vfio-user sockets a machine has, for whoever starts a VMM on them.

import AddressSpace
import ControlProtocol
import Machine

/// The sockets below `--vfio-user`, and where a VMM is to put what is behind each.
struct VFIOUserLayout: Encodable {
    struct Window: Encodable {
        let socket: String
        /// A guest physical address, and a size in bytes: where its BAR 0 belongs.
        let base: Hex
        let size: Hex
    }

    struct Function: Encodable {
        let socket: String
        /// `nvme`.
        let kind: String
        let segment: Int
        let bus: Int
        let device: Int
        let function: Int
    }

    /// Absent where the machine has no registers that a guest could see, or they are too far apart.
    let window: Window?
    let functions: [Function]

    init(_ machine: Machine) {
        window = machine.makeWindow().map { window in
            Window(
                socket: GuestServices.windowSocket,
                base: Hex(window.range.first),
                size: Hex(window.range.byteCount)
            )
        }
        functions = machine.functions.map { function in
            Function(
                socket: GuestServices.socket(of: function),
                kind: function.kind.rawValue,
                segment: Int(function.address.segment),
                bus: Int(function.address.requesterID >> 8),
                device: Int(function.address.requesterID >> 3 & 31),
                function: Int(function.address.requesterID & 7)
            )
        }
    }

    /// One line of JSON.
    var text: String {
        get throws(Failure) {
            guard let line = try? ControlJSON.line(self) else {
                throw Failure(.software, "the layout cannot be written as JSON")
            }
            let text = String(decoding: line, as: UTF8.self)
            return text.hasSuffix("\n") ? text : text + "\n"
        }
    }
}
