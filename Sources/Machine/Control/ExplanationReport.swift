// An explained look-up as the control socket tells it: every step with its words and fields.

import AddressSpace
import ControlProtocol
import DeviceModel
import DeviceTree
import SMMUv3
import SMMUv3Spec

/// Turns the SMMU's explanation into steps for people and programs.
struct ExplanationReport {
    let smmu: MachineSMMU
    let transaction: Transaction

    func steps(of explanation: Explanation) -> [ExplainStep] {
        registerSteps()
            + explanation.steps.map { step in
                switch step {
                case .fetched(let structure): self.step(structure)
                case .note(let text): ExplainStep(kind: "decision", title: text)
                }
            }
            + explanation.staleness.map {
                ExplainStep(kind: "stale", title: "a cache disagrees with memory", note: $0)
            }
    }

    /// The registers that every look-up starts from.
    private func registerSteps() -> [ExplainStep] {
        [RegisterOffset.cr0ack, RegisterOffset.strtabBase, RegisterOffset.strtabBaseCfg].compactMap {
            offset in
            guard let register = RegisterMap.register(at: offset) else { return nil }
            let width: AccessWidth = register.byteCount == 8 ? .doubleword : .word
            guard let value = try? smmu.model.read(at: offset, width: width) else { return nil }
            return ExplainStep(
                kind: "register",
                title: register.name,
                address: Hex(smmu.node.architectedRegisters.first &+ offset),
                words: [Hex(value)],
                fields: RegisterMap.fields(at: offset, value: value).map(\.info)
            )
        }
    }

    private func step(_ structure: FetchedStructure) -> ExplainStep {
        switch structure {
        case .l1std(let address, let descriptor):
            step("l1std", "level-1 stream table descriptor", address, [descriptor.word], descriptor.fields)
        case .ste(let address, let ste):
            step("ste", "STE of StreamID \(transaction.streamID)", address, Self.words(ste.words), ste.fields)
        case .l1cd(let address, let descriptor):
            step("l1cd", "level-1 CD table descriptor", address, [descriptor.word], descriptor.fields)
        case .cd(let address, let cd):
            step("cd", cdTitle, address, Self.words(cd.words), cd.fields)
        case .descriptor(let address, let descriptor, let level, let format):
            step(
                "descriptor",
                "\(format.stage == .stage1 ? "stage 1" : "stage 2") level \(level) descriptor "
                    + "(\(format.granule.byteCount >> 10) KiB granule)",
                address,
                [descriptor.rawValue],
                descriptor.fields(
                    stage: format.stage,
                    level: level,
                    granule: format.granule,
                    has52BitOutput: format.has52BitOutput,
                    ds: format.ds
                )
            )
        }
    }

    private var cdTitle: String {
        guard let substreamID = transaction.attributes.substreamID else { return "CD (no SubstreamID)" }
        return "CD of SubstreamID \(substreamID)"
    }

    private func step(
        _ kind: String,
        _ title: String,
        _ address: PhysicalAddress,
        _ words: [UInt64],
        _ fields: [DecodedField]
    ) -> ExplainStep {
        ExplainStep(
            kind: kind,
            title: title,
            address: Hex(address.rawValue),
            words: words.map { Hex($0) },
            fields: fields.map(\.info)
        )
    }

    private static func words(_ words: SIMD8<UInt64>) -> [UInt64] { words.indices.map { words[$0] } }
}

/// Memory attributes in words.
enum MemoryAttributeText {
    /// A MAIR byte and SH[1:0]: `Normal WB, inner shareable`.
    static func describe(_ attribute: UInt8, shareability: UInt8) -> String {
        guard attribute & 0xF0 != 0 else {
            return ["Device-nGnRnE", "Device-nGnRE", "Device-nGRE", "Device-GRE"][Int(attribute >> 2 & 3)]
        }
        let outer = cacheability(attribute >> 4)
        let inner = cacheability(attribute & 0xF)
        let share = ["non-shareable", "reserved shareability", "outer shareable", "inner shareable"][
            Int(shareability & 3)
        ]
        return "Normal " + (outer == inner ? inner : "inner \(inner) outer \(outer)") + ", " + share
    }

    private static func cacheability(_ nibble: UInt8) -> String {
        switch nibble >> 2 {
        case 0: nibble & 3 == 0 ? "reserved" : "WT transient"
        case 1: nibble & 3 == 0 ? "NC" : "WB transient"
        case 2: "WT"
        default: "WB"
        }
    }
}
