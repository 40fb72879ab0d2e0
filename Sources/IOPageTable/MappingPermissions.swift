// What a mapping lets a device do, and how its memory is accessed.

/// What one mapping allows and how memory behind it is accessed; the bits are those of Linux's `IOMMU_*` flags.
package struct MappingPermissions: OptionSet, Hashable, Sendable {
    package let rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    /// The device may read.
    ///
    /// Stage 1 has no write-only pages: a writable page is readable as well.
    package static let read = Self(rawValue: 1 << 0)
    /// The device may write.
    package static let write = Self(rawValue: 1 << 1)
    /// The device is coherent with the CPU's caches: Normal write-back, Inner Shareable.
    package static let cacheable = Self(rawValue: 1 << 2)
    /// Instruction fetches are refused.
    package static let noExecute = Self(rawValue: 1 << 3)
    /// Registers are behind it, such as an MSI doorbell: the type is Device-nGnRE.
    ///
    /// Prevails over ``cacheable``.
    package static let device = Self(rawValue: 1 << 4)
    /// Only privileged transactions pass.
    package static let privileged = Self(rawValue: 1 << 5)

    package static let readWrite: Self = [.read, .write]
}

extension MappingPermissions: CustomStringConvertible {
    /// `rw`, `r-`, then the names of the other flags: `rw cacheable noExecute`.
    package var description: String {
        var words = [(contains(.read) ? "r" : "-") + (contains(.write) ? "w" : "-")]
        if contains(.cacheable) { words.append("cacheable") }
        if contains(.noExecute) { words.append("noExecute") }
        if contains(.device) { words.append("device") }
        if contains(.privileged) { words.append("privileged") }
        return words.joined(separator: " ")
    }
}
