// Which functions have an ATC, and how it comes before their ports.

import PCIFunction
import SMMUv3
import SMMUv3Spec

extension DeviceBuilder {
    /// The ATC of a function; nil where it has none.
    ///
    /// ATS takes three: the SMMU (SMMU_IDR0.ATS), a host bridge that passes it on (`ats-supported` in the tree), and
    /// a function of ours. Software enables it.
    func translationCache(for specification: DeviceSpecification, _ endpoint: Endpoint) throws(MachineError)
        -> AddressTranslationCache?
    {
        guard specification.kind.keys.contains("ats"), try specification.flag("ats", default: true) else {
            return nil
        }
        guard endpoint.passesATS, let smmu = smmu(before: endpoint), smmu.identification.idr0.ats else {
            guard specification.values["ats"] == nil else {
                throw MachineError(
                    "\(specification.source): ats=on needs ats-supported in the host bridge's node, and an SMMU "
                        + "that has ATS: --smmu full"
                )
            }
            return nil
        }
        var cacheOptions = AddressTranslationCacheOptions()
        cacheOptions.entryCount = options.atcEntries
        return AddressTranslationCache(options: cacheOptions)
    }

    /// What a function with an ATC shows of it.
    func capabilities(of cache: AddressTranslationCache?, _ endpoint: Endpoint) -> [PCICapability] {
        guard cache != nil else { return [] }
        // An invalidate queue depth of 0 is 32.
        var result: [PCICapability] = [.ats(invalidateQueueDepth: 0)]
        if smmu(before: endpoint)?.identification.idr0.pri == true {
            result.append(.pri(outstandingRequests: 32))
        }
        return result
    }

    /// Whether the SMMU before an endpoint tells SubstreamIDs apart.
    func hasSubstreams(_ endpoint: Endpoint) -> Bool {
        (smmu(before: endpoint)?.identification.idr1.ssidsize ?? 0) > 0
    }

    private func smmu(before endpoint: Endpoint) -> SMMUv3? {
        guard let index = endpoint.smmuIndex, ports.smmus.indices.contains(index) else { return nil }
        return ports.smmus[index]
    }
}

extension MachineFunction {
    /// The same with an ATC, which follows the function's registers.
    func connected(to cache: AddressTranslationCache?) -> MachineFunction {
        guard let cache else { return self }
        function.connect(cache)
        return MachineFunction(
            address: address,
            kind: kind,
            endpoint: endpoint,
            function: function,
            statistics: { [statistics] in statistics() + cache.statistics },
            shutDown: { [shutDown] in
                // Whoever waits for a page response goes on first: the device's threads are waited for.
                cache.stop()
                shutDown()
            }
        )
    }
}
