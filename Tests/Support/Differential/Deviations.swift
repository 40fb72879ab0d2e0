// Which known deviation of QEMU a difference is.

import SMMUv3Spec

/// QEMU's known deviations.
enum Deviations {
    /// The names of those that explain a difference; none where it is not known.
    static func names(_ difference: Difference, _ verdict: Verdict, _ scenes: [Int: Scene]) -> [String] {
        guard case .dma(let index) = difference.place, !difference.isEither else { return [] }
        let (model, qemu) = (verdict.model.dmas[index], verdict.qemu.dmas[index])
        return scenes[index]?.referee?.names(model: model, qemu: qemu) ?? []
    }
}
