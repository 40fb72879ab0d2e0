// Fields that are arrays of small elements, by index.

import BitFields

extension STE {
    /// S2POI<p>: the stage-2 overlay permission `index`, of whose number the low four bits count.
    public func s2POI(at index: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: s2POI &>> UInt64((index & 15) * 4)) & 0b1111
    }
}

extension CD {
    /// Attr<n> of MAIR: the memory attributes `index`, of whose number the low three bits count.
    public func mair(at index: Int) -> UInt8 { UInt8(truncatingIfNeeded: mair &>> UInt64((index & 7) * 8)) }

    /// PIIU<p>: the unprivileged base permission `index`, of whose number the low four bits count.
    public func piiu(at index: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: piiu &>> UInt64((index & 15) * 3)) & 0b111
    }

    /// PIIP<p>: the privileged base permission `index`, of whose number the low four bits count.
    public func piip(at index: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: piip &>> UInt64((index & 15) * 3)) & 0b111
    }
}
