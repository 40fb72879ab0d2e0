// A function's ATS and PRI registers, and the ATC that does as they say.

import Synchronization

extension PCIFunction {
    /// Gives the function an ATC, which its ports share; it follows the function's registers from now on.
    ///
    /// Once, before software sees the function. Its ports are ``ATCPort``s of that ATC.
    package func connect(_ cache: AddressTranslationCache) {
        state.withLock { $0.translationCache = cache }
        cache.pageRequests.connect { [weak self] bits in self?.setPageRequestStatus(bits) }
        cache.configure(pageServices)
    }

    /// The ATC; nil where the function has none.
    package var translationCache: AddressTranslationCache? { state.withLock { $0.translationCache } }

    /// Page Request Status.Stopped.
    private static let stoppedBit = 8

    /// Stopped is 1 while Page Request Control.Enable is 0: those who wait for a response then go on without one.
    func updatePageRequestStatus(_ state: inout State) {
        guard let start = offsets.pri else { return }
        state.space.setBit(Self.stoppedBit, at: start + 6, to: !state.space.bit(0, at: start + 4))
    }

    /// Response Failure or Unexpected Page Request Group Index: they stay until software writes 1 to them.
    private func setPageRequestStatus(_ bits: UInt16) {
        guard let start = offsets.pri else { return }
        state.withLock { state in
            for bit in 0..<2 where bits >> UInt16(bit) & 1 != 0 {
                state.space.setBit(bit, at: start + 6, to: true)
            }
        }
    }

    /// Whether a write of 1 to 4 bytes sets Page Request Control.Reset, which reads as 0, with Enable 0.
    func resetsPageRequests(_ value: UInt32, at offset: Int, byteCount: Int) -> Bool {
        guard let start = offsets.pri else { return false }
        let place = start + 4
        guard place >= offset, place &- offset < byteCount, byteCount <= 4 else { return false }
        return value >> UInt32(8 * (place - offset)) & 0b11 == 0b10
    }
}
