// What smmuctl shows of devices in clients' address spaces.

package import ControlProtocol

extension Reports {
    /// Clients with their areas, the devices that are bound to them, and faults by SMMU.
    package static func sharedAddresses(_ result: Methods.SVAList.Result) -> String {
        var text = ""
        for process in result.processes {
            text +=
                "process \(process.process): \(process.residentPages.value) pages resident, "
                + "\(process.broughtIn.value) brought in, \(process.spurious.value) spurious, "
                + "\(process.refused.value) refused\n"
            var table = TextTable()
            for area in process.areas {
                table.append(
                    "  " + area.address.description,
                    Format.size(area.length.value),
                    area.permissions.description
                )
            }
            text += table.text
            for bond in result.bonds where bond.process == process.process {
                text += "  \(bond.device): SubstreamID \(bond.substream), ASID \(bond.asid)\n"
            }
        }
        if result.processes.isEmpty { text += "no client shares its addresses\n" }
        guard !result.faults.isEmpty else { return text }
        var table = TextTable("SMMU", "FAULTS>", "SUCCEEDED>", "REFUSED>", "UNHANDLED>", "DISCARDED>")
        for faults in result.faults {
            table.append(
                faults.smmu,
                String(faults.reported.value),
                String(faults.succeeded.value),
                String(faults.refused.value),
                String(faults.unhandled.value),
                String(faults.discarded.value)
            )
        }
        return text + "\n" + table.text
    }
}
