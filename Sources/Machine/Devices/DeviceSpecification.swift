// Which devices have a model: from the command line, or from properties of the device tree.

import AddressSpace
import DeviceTree

/// One device that the machine is to model: what kind, where, and with what behind it.
///
/// On the command line `KIND,at=PLACE,KEY=VALUE,...` (a comma in a value is written twice); in a device tree the
/// properties `smmud,device = "KIND"` and `smmud,KEY = VALUE` of the device's node.
package struct DeviceSpecification: Equatable, Sendable {
    package enum Kind: String, CaseIterable, Sendable {
        case virtioBlock = "virtio-blk"
        case virtioNet = "virtio-net"
        case virtioRNG = "virtio-rng"
        case virtioConsole = "virtio-console"
        case nvme
        /// Arm's SMMUv3TestEngine.
        case dmaTestEngine = "dma-test-engine"
        /// QEMU's iommu-testdev.
        case iommuTestDevice = "iommu-testdev"
        /// A device of another program, by its vfio-user socket.
        case vfioUser = "vfio-user"

        /// What can be said of it, beside `at`.
        var keys: [String] {
            switch self {
            case .virtioBlock: ["file", "readonly", "queues", "serial", "msix", "ats", "poll"]
            case .virtioNet: ["tap", "socket", "link", "mac", "mtu", "queues", "msix", "ats"]
            case .virtioRNG: ["msix", "ats"]
            case .virtioConsole: ["socket", "file", "msix", "ats"]
            case .nvme: ["file", "readonly", "queues", "serial", "msix", "ats", "poll"]
            case .dmaTestEngine: ["msix", "ats"]
            case .iommuTestDevice: ["ats"]
            case .vfioUser: ["socket", "dma"]
            }
        }

        /// Whether it can stand on the bus as a platform device, with registers and an interrupt of its own.
        var isPlatformDevice: Bool {
            switch self {
            case .virtioBlock, .virtioNet, .virtioRNG, .virtioConsole, .dmaTestEngine: true
            case .nvme, .iommuTestDevice, .vfioUser: false
            }
        }
    }

    package var kind: Kind
    /// A node's path, or a PCIe function's address.
    package var place: String
    package var values: [String: String]
    /// How to speak of it in messages.
    package var source: String

    /// Reads what the command line says.
    package init(argument: String) throws(MachineError) {
        let source = "--device \(argument)"
        let fields = Self.split(argument)
        guard let name = fields.first, let kind = Kind(rawValue: name) else {
            throw MachineError(
                "\(source): there is no device \"\(fields.first ?? "")\"; there are "
                    + Kind.allCases.map(\.rawValue).joined(separator: ", ")
            )
        }
        var values: [String: String] = [:]
        for field in fields.dropFirst() {
            guard let equals = field.firstIndex(of: "=") else {
                throw MachineError("\(source): \"\(field)\" is no KEY=VALUE")
            }
            let key = String(field[..<equals])
            guard values.updateValue(String(field[field.index(after: equals)...]), forKey: key) == nil else {
                throw MachineError("\(source): \(key) is given twice")
            }
        }
        guard let place = values.removeValue(forKey: "at"), !place.isEmpty else {
            throw MachineError(
                "\(source): at=PLACE is missing: a PCIe function's address (0000:00:01.0) or a node's path"
            )
        }
        self.kind = kind
        self.place = place
        self.values = values
        self.source = source
        try checkKeys()
    }

    /// Fields between commas; two commas are one of a value.
    private static func split(_ text: String) -> [String] {
        var fields = [""]
        var rest = text[...]
        while let character = rest.popFirst() {
            if character == ",", rest.first == "," {
                rest.removeFirst()
                fields[fields.count - 1].append(",")
            } else if character == "," {
                fields.append("")
            } else {
                fields[fields.count - 1].append(character)
            }
        }
        return fields
    }

    /// Reads what a node says; nil where it names no device of ours.
    init?(_ properties: [DeviceTreeProperty], of path: String) throws(MachineError) {
        let prefix = "smmud,"
        guard let named = properties.first(where: { $0.name == prefix + "device" }) else { return nil }
        guard let name = named.strings?.first, let kind = Kind(rawValue: name) else {
            throw MachineError(
                "\(path): smmud,device: there is no such device; there are "
                    + Kind.allCases.map(\.rawValue).joined(separator: ", ")
            )
        }
        var values: [String: String] = [:]
        for property in properties where property.name.hasPrefix(prefix) && property.name != named.name {
            let key = String(property.name.dropFirst(prefix.count))
            if property.value.isEmpty {
                values[key] = "on"
            } else if let text = property.strings?.first {
                values[key] = text
            } else if let cell = property.cell {
                values[key] = String(cell)
            } else {
                throw MachineError("\(path): \(property.name): neither a string, a cell nor empty")
            }
        }
        self.kind = kind
        place = path
        self.values = values
        source = path
        try checkKeys()
    }

    private func checkKeys() throws(MachineError) {
        for key in values.keys.sorted() where !kind.keys.contains(key) {
            throw MachineError(
                "\(source): a \(kind.rawValue) has no \"\(key)\"; it has \(kind.keys.joined(separator: ", "))"
            )
        }
    }

    // MARK: Values

    /// `on` and `off`, `true` and `false`, `1` and `0`.
    func flag(_ key: String, default fallback: Bool) throws(MachineError) -> Bool {
        switch values[key] {
        case nil: fallback
        case "on", "true", "1", "yes": true
        case "off", "false", "0", "no": false
        case let value?: throw MachineError("\(source): \(key) is on or off, not \"\(value)\"")
        }
    }

    /// A number within bounds.
    func number(_ key: String, in bounds: ClosedRange<Int>, default fallback: Int) throws(MachineError) -> Int
    {
        guard let text = values[key] else { return fallback }
        guard let value = Int(text), bounds.contains(value) else {
            throw MachineError(
                "\(source): \(key) is \(bounds.lowerBound) to \(bounds.upperBound), not \"\(text)\""
            )
        }
        return value
    }

    /// How a device of another program reaches memory: `dma` is `messages` or `mapped`.
    func isMapped() throws(MachineError) -> Bool {
        switch values["dma"] {
        case nil, "messages": false
        case "mapped": true
        case let value?: throw MachineError("\(source): dma is messages or mapped, not \"\(value)\"")
        }
    }

    /// Refuses what cannot stand below a root port, where software gives the bus its number, and so the StreamID.
    func checkNeedsNoFixedStream() throws(MachineError) {
        guard kind == .vfioUser, try isMapped() else { return }
        throw MachineError(
            "\(source): dma=mapped needs a function on a root bus, whose StreamID software does not change; "
                + "dma=messages does not"
        )
    }

    /// What must be there.
    func required(_ key: String) throws(MachineError) -> String {
        guard let value = values[key], !value.isEmpty else {
            throw MachineError("\(source): a \(kind.rawValue) needs \(key)=...")
        }
        return value
    }
}

extension BoardDescription {
    /// The devices that the tree itself gives a model, in its order.
    func deviceSpecifications() throws(MachineError) -> [DeviceSpecification] {
        var found: [DeviceSpecification] = []
        for device in devices {
            guard let node = tree.node(at: device.path) else { continue }
            if let specification = try DeviceSpecification(node.properties, of: device.path) {
                found.append(specification)
            }
        }
        for host in pcieHosts {
            for child in host.children {
                if let specification = try DeviceSpecification(child.properties, of: child.path) {
                    found.append(specification)
                }
            }
        }
        return found
    }
}
