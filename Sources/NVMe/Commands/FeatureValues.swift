// Features: what Set Features stores and Get Features says.

import BitFields

/// Feature identifiers (FID).
enum FeatureIdentifier {
    static let arbitration: UInt8 = 0x01
    static let powerManagement: UInt8 = 0x02
    static let temperatureThreshold: UInt8 = 0x04
    static let errorRecovery: UInt8 = 0x05
    static let volatileWriteCache: UInt8 = 0x06
    static let numberOfQueues: UInt8 = 0x07
    static let interruptCoalescing: UInt8 = 0x08
    static let interruptVector: UInt8 = 0x09
    static let writeAtomicity: UInt8 = 0x0A
    static let asynchronousEvents: UInt8 = 0x0B

    static let all: [UInt8] = [
        arbitration, powerManagement, temperatureThreshold, errorRecovery, volatileWriteCache, numberOfQueues,
        interruptCoalescing, interruptVector, writeAtomicity, asynchronousEvents,
    ]
}

/// What features are set to; at reset, their defaults.
struct FeatureValues: Equatable {
    var arbitration: UInt32 = 0
    /// Kelvin; over, and under, the composite temperature's threshold.
    var overTemperature: UInt32 = 0x0157
    var underTemperature: UInt32 = 0
    var errorRecovery: UInt32 = 0
    /// WCE.
    var volatileWriteCache: UInt32 = 1
    var interruptCoalescing: UInt32 = 0
    /// CD, coalescing disable, by vector.
    var vectorsWithoutCoalescing: Set<UInt32> = []
    /// DN: atomicity beyond one block is not asked for.
    var writeAtomicity: UInt32 = 0
    var asynchronousEvents: UInt32 = 0

    /// What CDW11 of Get Features asks for, where there is such a feature.
    func value(_ feature: UInt8, _ selector: UInt32, ioQueueCount: Int) -> UInt32? {
        switch feature {
        case FeatureIdentifier.arbitration: arbitration
        case FeatureIdentifier.powerManagement: 0
        case FeatureIdentifier.temperatureThreshold: threshold(selector)
        case FeatureIdentifier.errorRecovery: errorRecovery
        case FeatureIdentifier.volatileWriteCache: volatileWriteCache
        case FeatureIdentifier.numberOfQueues: UInt32(ioQueueCount - 1) | UInt32(ioQueueCount - 1) << 16
        case FeatureIdentifier.interruptCoalescing: interruptCoalescing
        case FeatureIdentifier.interruptVector:
            selector & 0xFFFF | (vectorsWithoutCoalescing.contains(selector & 0xFFFF) ? 1 << 16 : 0)
        case FeatureIdentifier.writeAtomicity: writeAtomicity
        case FeatureIdentifier.asynchronousEvents: asynchronousEvents
        default: nil
        }
    }

    /// TMPTH by THSEL and TMPSEL: sensor 0, the composite temperature, is the only one.
    private func threshold(_ selector: UInt32) -> UInt32? {
        guard selector[bits: 16...19] == 0 else { return nil }
        switch selector[bits: 20...21] {
        case 0: return overTemperature
        case 1: return underTemperature
        default: return nil
        }
    }

    /// Sets a feature to what CDW11 says.
    ///
    /// - Returns: Whether there is such a feature, and it can be that.
    mutating func set(_ feature: UInt8, _ value: UInt32, vectorCount: Int) -> Bool {
        switch feature {
        case FeatureIdentifier.arbitration: arbitration = value & 0xFFFF_FF07
        case FeatureIdentifier.powerManagement: return value & 0x1F == 0
        case FeatureIdentifier.temperatureThreshold: return setThreshold(value)
        case FeatureIdentifier.errorRecovery:
            // DULBE: deallocated blocks read as zeros and nothing else.
            guard !value[bit: 16] else { return false }
            errorRecovery = value & 0xFFFF
        case FeatureIdentifier.volatileWriteCache: volatileWriteCache = value & 1
        case FeatureIdentifier.interruptCoalescing: interruptCoalescing = value & 0xFFFF
        case FeatureIdentifier.interruptVector:
            let vector = value & 0xFFFF
            guard vector < UInt32(vectorCount) else { return false }
            if value[bit: 16] {
                vectorsWithoutCoalescing.insert(vector)
            } else {
                vectorsWithoutCoalescing.remove(vector)
            }
        case FeatureIdentifier.writeAtomicity: writeAtomicity = value & 1
        case FeatureIdentifier.asynchronousEvents: asynchronousEvents = value & 0x1FF
        default: return false
        }
        return true
    }

    private mutating func setThreshold(_ value: UInt32) -> Bool {
        let sensor = value[bits: 16...19]
        guard sensor == 0 || sensor == 0xF else { return false }
        switch value[bits: 20...21] {
        case 0: overTemperature = value & 0xFFFF
        case 1: underTemperature = value & 0xFFFF
        default: return false
        }
        return true
    }
}
