// Prints a device as lspci would.

import VFIOUserClient
import VFIOUserDrivers

struct Dump {
    private let client: VFIOUserClient
    private let device: PCIDevice

    init(_ client: VFIOUserClient) {
        self.client = client
        device = PCIDevice(client)
    }

    func printAll() throws {
        let server = client.server
        print(
            "server: version 0.\(server.minorVersion), \(server.descriptorCountMax) descriptors a message, "
                + "\(server.dataByteCountMax) bytes of data, \(server.mappingCountMax) mappings"
                + (server.takesMultipleWrites ? ", many writes in one message" : "")
                + (server.hasTwinSocket ? ", twin socket" : "")
        )
        let info = try client.deviceInfo()
        print(
            "device: \(info.isPCI ? "PCI function" : "no PCI function")\(info.canReset ? ", can be reset" : "")"
        )
        for index in 0..<info.regionCount { try printRegion(.init(rawValue: UInt32(index))) }
        for index in 0..<info.interruptKindCount {
            let interrupts = try client.interrupts(.init(rawValue: UInt32(index)))
            guard interrupts.vectorCount > 0 else { continue }
            print(
                "  \(interrupts.kind): \(interrupts.vectorCount)"
                    + (interrupts.isAutomasked ? ", automasked" : "")
            )
        }
        if info.isPCI { try printConfiguration() }
    }

    private func printRegion(_ index: VFIOUserClient.RegionIndex) throws {
        let region = try client.region(index)
        guard region.byteCount > 0 else { return }
        let access = (region.isReadable ? "r" : "-") + (region.isWritable ? "w" : "-")
        print("  \(index): \(region.byteCount) bytes, \(access)")
        for area in region.mappableAreas {
            print("    mappable: \(area.byteCount) bytes at \(hex(area.offset))")
        }
    }

    private func printConfiguration() throws {
        let identity = "\(hex(try device.vendorID, 4)):\(hex(try device.deviceID, 4))"
        print("function \(identity), class \(hex(try device.classCode, 6))")
        for (id, offset) in try device.capabilities() {
            print("  [\(hex(offset))] \(Self.names[id] ?? "capability \(hex(id))")")
        }
        guard try client.region(.configuration).byteCount >= 4096 else { return }
        for (id, offset) in try device.extendedCapabilities() {
            print("  [\(hex(offset))] \(Self.extendedNames[id] ?? "extended capability \(hex(id))")")
        }
    }

    private static let names: [UInt8: String] = [
        0x01: "Power Management", 0x05: "MSI", 0x09: "Vendor Specific", 0x10: "PCI Express", 0x11: "MSI-X",
    ]
    private static let extendedNames: [UInt16: String] = [
        0x0001: "Advanced Error Reporting", 0x0003: "Device Serial Number", 0x000d: "Access Control Services",
        0x000f: "Address Translation Services", 0x0013: "Page Request Interface", 0x001b: "PASID",
    ]

    private func hex(_ value: some BinaryInteger, _ digits: Int = 0) -> String {
        let text = String(value, radix: 16)
        guard digits > 0 else { return "0x" + text }
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }
}
