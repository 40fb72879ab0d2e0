// The kernel's command line, as far as it concerns the IOMMU.

/// What of `smmud --append` chooses the IOMMU's policy; the kernel's names, values and defaults.
package struct KernelParameters: Equatable, Sendable {
    /// `iommu.passthrough`: default domains do not translate.
    package var passthrough = false
    /// `iommu.strict`: an unmap of the DMA API is invalidated before it returns.
    package var strict = true
    /// `iommu.forcedac`: IOVAs above 4 GiB need not wait until those below are used up.
    package var forcedac = false
    /// `arm-smmu-v3.disable_bypass`: streams that nobody is attached to are aborted.
    package var disableBypass = true
    /// `arm-smmu-v3.disable_msipolling`: CMD_SYNC is waited for by CMDQ_CONS.
    package var disableMSIPolling = false
    /// What could not be read, a line each in the kernel's wording; the parameter keeps its default.
    package private(set) var complaints: [String] = []
    /// Which of the early options were on the command line.
    private var given: Set<String> = []

    /// The defaults: strict, translated.
    package init() {}

    /// Reads a command line; parameters that are somebody else's are passed over.
    ///
    /// Of a parameter that comes twice the last one counts. `-` and `_` are alike in names, as in the kernel.
    package init(_ commandLine: String) {
        for word in commandLine.split(whereSeparator: \.isWhitespace) {
            // After `--` all is for init.
            if word == "--" { break }
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let name = String(parts[0])
            guard let field = Self.field(name) else { continue }
            // Module parameters that are Booleans may stand alone; early options may not.
            let isModule = name.hasPrefix("arm")
            let text = parts.count == 2 ? String(parts[1]) : nil
            if let value = text.map(Self.bool) ?? (isModule ? true : nil) {
                self[keyPath: field] = value
                given.insert(name)
            } else if isModule {
                complaints.append("\(name): `\(text ?? "")' invalid for parameter `\(name)'")
            } else {
                complaints.append("Malformed early option '\(name)'")
            }
        }
    }

    private static func field(_ name: String) -> WritableKeyPath<Self, Bool>? {
        switch String(name.map { $0 == "-" ? "_" : $0 }) {
        case "iommu.passthrough": \.passthrough
        case "iommu.strict": \.strict
        case "iommu.forcedac": \.forcedac
        case "arm_smmu_v3.disable_bypass": \.disableBypass
        case "arm_smmu_v3.disable_msipolling": \.disableMSIPolling
        default: nil
        }
    }

    /// The kernel's kstrtobool: the first letter decides, after an `o` the second.
    private static func bool(_ text: String) -> Bool? {
        let letters = Array(text.utf8.prefix(2))
        guard let first = letters.first else { return nil }
        switch UInt8(first) {
        case UInt8(ascii: "y"), UInt8(ascii: "Y"), UInt8(ascii: "t"), UInt8(ascii: "T"), UInt8(ascii: "1"):
            return true
        case UInt8(ascii: "n"), UInt8(ascii: "N"), UInt8(ascii: "f"), UInt8(ascii: "F"), UInt8(ascii: "0"):
            return false
        case UInt8(ascii: "o"), UInt8(ascii: "O"):
            guard letters.count == 2 else { return nil }
            switch letters[1] {
            case UInt8(ascii: "n"), UInt8(ascii: "N"): return true
            case UInt8(ascii: "f"), UInt8(ascii: "F"): return false
            default: return nil
            }
        default: return nil
        }
    }

    /// The kind of default domain that the parameters choose: identity, DMA_FQ or DMA.
    ///
    /// Linux: iommu_def_domain_type.
    package var defaultDomainKind: IOMMUDomainKind { passthrough ? .identity : strict ? .dma : .dmaFQ }

    /// The lines with which the kernel tells its choice.
    package var announcement: [String] {
        func origin(_ name: String) -> String {
            given.contains(name) ? " (set via kernel command line)" : ""
        }
        let type = passthrough ? "Passthrough" : "Translated"
        let first = "iommu: Default domain type: \(type)\(origin("iommu.passthrough"))"
        guard !passthrough else { return [first] }
        let mode = strict ? "strict" : "lazy"
        return [
            first,
            "iommu: DMA domain TLB invalidation policy: \(mode) mode\(origin("iommu.strict"))",
        ]
    }
}

extension SMMUv3DriverOptions {
    /// Does as the parameters say.
    package mutating func apply(_ parameters: KernelParameters) {
        prefersLowIOVAs = !parameters.forcedac
        disablesBypass = parameters.disableBypass
        disablesMSIPolling = parameters.disableMSIPolling
    }
}
