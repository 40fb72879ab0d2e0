// A field as a source outside this project places it, and the check of an accessor against it.

import AddressSpace
import SMMUv3Spec
import SeededRandomness
import Testing

/// A word or structure seen as its 64-bit words.
protocol GoldenWord: Sendable {
    var dwords: [UInt64] { get }
    init(dwords: [UInt64])
    static var dwordCount: Int { get }
}

/// Which bits of which word a field takes, and the accessor that claims to reach them.
struct GoldenField<Word: Sendable>: Sendable {
    let name: String
    let dword: Int
    let mask: UInt64
    /// How far the field's values lie from bit 0; none for an address, whose bits stay where they are.
    let shift: UInt64
    let get: @Sendable (Word) -> UInt64
    let set: @Sendable (inout Word, UInt64) -> Void

    private init(
        _ name: String,
        _ dword: Int,
        _ mask: UInt64,
        shift: UInt64? = nil,
        get: @escaping @Sendable (Word) -> UInt64,
        set: @escaping @Sendable (inout Word, UInt64) -> Void
    ) {
        self.name = name
        self.dword = dword
        self.mask = mask
        self.shift = shift ?? UInt64(mask.trailingZeroBitCount)
        self.get = get
        self.set = set
    }

    static func bit(
        _ name: String,
        _ dword: Int,
        _ mask: UInt64,
        _ path: any WritableKeyPath<Word, Bool> & Sendable
    ) -> Self {
        Self(name, dword, mask, get: { $0[keyPath: path] ? 1 : 0 }, set: { $0[keyPath: path] = $1 != 0 })
    }

    static func number<Value: FixedWidthInteger & UnsignedInteger & Sendable>(
        _ name: String,
        _ dword: Int,
        _ mask: UInt64,
        _ path: any WritableKeyPath<Word, Value> & Sendable
    ) -> Self {
        Self(
            name,
            dword,
            mask,
            get: { UInt64($0[keyPath: path]) },
            set: { $0[keyPath: path] = Value(truncatingIfNeeded: $1) }
        )
    }

    static func address(
        _ name: String,
        _ dword: Int,
        _ mask: UInt64,
        _ path: any WritableKeyPath<Word, UInt64> & Sendable
    ) -> Self {
        Self(name, dword, mask, shift: 0, get: { $0[keyPath: path] }, set: { $0[keyPath: path] = $1 })
    }

    static func code<Value: RawRepresentable & Sendable>(
        _ name: String,
        _ dword: Int,
        _ mask: UInt64,
        _ path: any WritableKeyPath<Word, Value> & Sendable
    ) -> Self where Value.RawValue == UInt8 {
        Self(
            name,
            dword,
            mask,
            get: { UInt64($0[keyPath: path].rawValue) },
            set: { word, value in
                guard let value = Value(rawValue: UInt8(truncatingIfNeeded: value)) else { return }
                word[keyPath: path] = value
            }
        )
    }

    static func stream(
        _ name: String,
        _ dword: Int,
        _ mask: UInt64,
        _ path: any WritableKeyPath<Word, StreamID> & Sendable
    ) -> Self {
        Self(
            name,
            dword,
            mask,
            get: { UInt64($0[keyPath: path].rawValue) },
            set: { $0[keyPath: path] = StreamID(UInt32(truncatingIfNeeded: $1)) }
        )
    }

    static func substream(
        _ name: String,
        _ dword: Int,
        _ mask: UInt64,
        _ path: any WritableKeyPath<Word, SubstreamID> & Sendable
    ) -> Self {
        Self(
            name,
            dword,
            mask,
            get: { UInt64($0[keyPath: path].rawValue) },
            set: { $0[keyPath: path] = SubstreamID(UInt32(truncatingIfNeeded: $1)) }
        )
    }
}

/// Checks every accessor against the bits that its field has: both ways, alone and among ones, at both ends.
func check<Word: GoldenWord>(_ fields: [GoldenField<Word>], _: Word.Type = Word.self) {
    let none = [UInt64](repeating: 0, count: Word.dwordCount)
    let all = [UInt64](repeating: .max, count: Word.dwordCount)
    for field in fields {
        let name = Comment(rawValue: field.name)
        func words(_ base: [UInt64], _ word: UInt64) -> [UInt64] {
            var words = base
            words[field.dword] = word
            return words
        }
        let widest = field.mask >> field.shift
        let least = (field.mask & (~field.mask + 1)) >> field.shift
        for value in [widest, least, widest & 0x5555_5555_5555_5555] {
            // Reading: the field alone, and every other bit alone.
            #expect(field.get(Word(dwords: words(none, value << field.shift))) == value, name)
            let others = words(all, ~field.mask | value << field.shift)
            #expect(field.get(Word(dwords: others)) == value, name)
            // Writing: into zeros and into ones, nothing else moves.
            var zeros = Word(dwords: none)
            field.set(&zeros, value)
            #expect(zeros.dwords == Word(dwords: words(none, value << field.shift)).dwords, name)
            var ones = Word(dwords: all)
            field.set(&ones, value)
            #expect(ones.dwords == Word(dwords: others).dwords, name)
        }
        #expect(field.get(Word(dwords: words(all, ~field.mask))) == 0, name)
    }
}

// MARK: Every type as its words

extension STE: GoldenWord {
    static var dwordCount: Int { 8 }
    var dwords: [UInt64] { words.elements }
    init(dwords: [UInt64]) { self.init(words: SIMD8(dwords)) }
}

extension CD: GoldenWord {
    static var dwordCount: Int { 8 }
    var dwords: [UInt64] { words.elements }
    init(dwords: [UInt64]) { self.init(words: SIMD8(dwords)) }
}

extension L1STD: GoldenWord {
    static var dwordCount: Int { 1 }
    var dwords: [UInt64] { [word] }
    init(dwords: [UInt64]) { self.init(word: dwords[0]) }
}

extension L1CD: GoldenWord {
    static var dwordCount: Int { 1 }
    var dwords: [UInt64] { [word] }
    init(dwords: [UInt64]) { self.init(word: dwords[0]) }
}

extension Command: GoldenWord {
    static var dwordCount: Int { 2 }
    var dwords: [UInt64] { words.elements }
    init(dwords: [UInt64]) { self.init(words: SIMD2(dwords)) }
}

extension EventRecord: GoldenWord {
    static var dwordCount: Int { 4 }
    var dwords: [UInt64] { words.elements }
    init(dwords: [UInt64]) { self.init(words: SIMD4(dwords)) }
}

extension PRIEntry: GoldenWord {
    static var dwordCount: Int { 2 }
    var dwords: [UInt64] { words.elements }
    init(dwords: [UInt64]) { self.init(words: SIMD2(dwords)) }
}

extension Descriptor: GoldenWord {
    static var dwordCount: Int { 1 }
    var dwords: [UInt64] { [rawValue] }
    init(dwords: [UInt64]) { self.init(rawValue: dwords[0]) }
}

extension SIMD where Scalar == UInt64 {
    /// The elements in order.
    var elements: [UInt64] { indices.map { self[$0] } }
}

extension RegisterWord {
    static var dwordCount: Int { 1 }
    var dwords: [UInt64] { [UInt64(truncatingIfNeeded: rawValue)] }
    init(dwords: [UInt64]) { self.init(rawValue: RawValue(truncatingIfNeeded: dwords[0])) }
}

extension IDR0: GoldenWord {}
extension IDR1: GoldenWord {}
extension IDR2: GoldenWord {}
extension IDR3: GoldenWord {}
extension IDR5: GoldenWord {}
extension IDR6: GoldenWord {}
extension IIDR: GoldenWord {}
extension AIDR: GoldenWord {}
extension CR0: GoldenWord {}
extension CR1: GoldenWord {}
extension CR2: GoldenWord {}
extension STATUSR: GoldenWord {}
extension GBPA: GoldenWord {}
extension AGBPA: GoldenWord {}
extension IRQCtrl: GoldenWord {}
extension GError: GoldenWord {}
extension IRQCfg0: GoldenWord {}
extension IRQCfg1: GoldenWord {}
extension IRQCfg2: GoldenWord {}
extension StrtabBase: GoldenWord {}
extension StrtabBaseCfg: GoldenWord {}
extension QueueBase: GoldenWord {}
extension CmdqProd: GoldenWord {}
extension CmdqCons: GoldenWord {}
extension OutputQueueProd: GoldenWord {}
extension OutputQueueCons: GoldenWord {}
extension CmdqControlPageBase: GoldenWord {}
extension ECMDQProd: GoldenWord {}
extension ECMDQCons: GoldenWord {}
extension GATOSCtrl: GoldenWord {}
extension GATOSSid: GoldenWord {}
extension GATOSAddr: GoldenWord {}
extension GATOSPar: GoldenWord {}
extension VATOSSel: GoldenWord {}
extension PMCGEvtyper: GoldenWord {}
extension PMCGSmr: GoldenWord {}
extension PMCGCfgr: GoldenWord {}
extension PMCGCr: GoldenWord {}
extension PMCGCapr: GoldenWord {}
extension PMCGScr: GoldenWord {}
extension PMCGIRQCtrl: GoldenWord {}
extension PMCGIRQStatus: GoldenWord {}
extension MPAMIDR: GoldenWord {}
extension GMPAM: GoldenWord {}
extension GBPMPAM: GoldenWord {}

extension SplitMix {
    /// A word of all zeros, all ones, few ones, many ones, or any.
    mutating func nextWord() -> UInt64 {
        switch next() % 5 {
        case 0: return 0
        case 1: return .max
        case 2: return next() & next() & next()
        case 3: return next() | next() | next()
        default: return next()
        }
    }
}

/// Checks that a table of fields for people says what the source says, that no two fields share a bit, and
/// that whatever the words hold each field decodes to what its accessor reads.
func checkDecoder<Word: GoldenWord & FieldDecodable>(
    _ layout: [FieldLayout],
    _ golden: [GoldenField<Word>],
    seed: UInt64 = 0x5EED
) {
    let described = Set(layout.map { Place($0.name, $0.low / 64, UInt64.ones($0.high, $0.low)) })
    #expect(described == Set(golden.map(Place.init)))
    for (index, field) in layout.enumerated() {
        for other in layout[..<index] {
            #expect(field.low > other.high || field.high < other.low, "\(field.name) overlaps \(other.name)")
        }
    }
    checkDecodedValues(golden, seed: seed)
}

/// Checks that whatever the words hold each field decodes to what its accessor reads.
func checkDecodedValues<Word: GoldenWord & FieldDecodable>(_ golden: [GoldenField<Word>], seed: UInt64) {
    var random = SplitMix(seed: seed)
    for _ in 0..<200 {
        let word = Word(dwords: (0..<Word.dwordCount).map { _ in random.nextWord() })
        for field in word.fields {
            let place = Place(field.name, field.low / 64, UInt64.ones(field.high, field.low))
            let source = golden.first { Place($0) == place }
            #expect(source.map { $0.get(word) } == field.value, "\(field), seed \(seed)")
        }
    }
}

/// A field's name and bits.
private struct Place: Hashable {
    let name: String
    let dword: Int
    let mask: UInt64

    init(_ name: String, _ dword: Int, _ mask: UInt64) {
        self.name = name
        self.dword = dword
        self.mask = mask
    }

    init<Word>(_ field: GoldenField<Word>) {
        self.init(field.name, field.dword, field.mask)
    }
}

extension UInt64 {
    /// Ones in bits high to low of a structure, within their word.
    static func ones(_ high: Int, _ low: Int) -> UInt64 {
        (low...high).reduce(0) { $0 | 1 << UInt64($1 % 64) }
    }
}
