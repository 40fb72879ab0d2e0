// JSON in and out: one line, keys in order, nesting bounded before anything recursive looks at it.

import FoundationEssentials

/// The one way in which this package writes and reads JSON.
package enum ControlJSON {
    /// How deep arrays and objects may lie within one another.
    ///
    /// What we define needs six.
    package static let nestingDepthMax = 32

    /// `value` as one line without its newline, keys in alphabetical order, so that equal values are equal texts.
    package static func line(_ value: some Encodable) throws(ControlError) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        do { return [UInt8](try encoder.encode(value)) } catch {
            throw .internalError("the answer cannot be written as JSON: \(error)")
        }
    }

    /// `value` over several lines, for people and for files.
    package static func prettyText(_ value: some Encodable) throws(ControlError) -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
        do { return String(decoding: try encoder.encode(value), as: UTF8.self) } catch {
            throw .internalError("the answer cannot be written as JSON: \(error)")
        }
    }

    /// Whether arrays and objects in `text` lie at most ``nestingDepthMax`` deep.
    ///
    /// Looks at brackets outside strings alone, so it says nothing of whether the text is JSON.
    package static func isNestingBounded(_ text: [UInt8]) -> Bool {
        var depth = 0
        var isInString = false
        var isEscaped = false
        for byte in text {
            if isInString {
                if isEscaped {
                    isEscaped = false
                } else if byte == UInt8(ascii: "\\") {
                    isEscaped = true
                } else if byte == UInt8(ascii: "\"") {
                    isInString = false
                }
                continue
            }
            switch byte {
            case UInt8(ascii: "\""): isInString = true
            case UInt8(ascii: "["), UInt8(ascii: "{"): depth += 1
            case UInt8(ascii: "]"), UInt8(ascii: "}"): depth -= 1
            default: break
            }
            if depth > nestingDepthMax { return false }
        }
        return true
    }

    /// Reads a `Value` from `text`, any decoding error unchanged.
    static func decode<Value: Decodable>(_ type: Value.Type, from text: [UInt8]) throws -> Value {
        try JSONDecoder().decode(type, from: Data(text))
    }
}

/// A key whose name is only known at run time.
struct AnyCodingKey: CodingKey {
    let stringValue: String
    let intValue: Int?
    init(stringValue: String) { (self.stringValue, intValue) = (stringValue, nil) }
    init(intValue: Int) { (stringValue, self.intValue) = (String(intValue), intValue) }
}

extension DecodingError {
    /// Where in the value it went wrong, as `source.iova` or `specifier[1]`; nil at the top.
    var pathText: String? {
        let path: [any CodingKey]
        switch self {
        case .keyNotFound(let key, let context): path = context.codingPath + [key]
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .dataCorrupted(let context):
            path = context.codingPath
        @unknown default: return nil
        }
        var text = ""
        for key in path {
            if let index = key.intValue {
                text += "[\(index)]"
            } else {
                text += text.isEmpty ? key.stringValue : "." + key.stringValue
            }
        }
        return text.isEmpty ? nil : text
    }

    /// What is wrong, without where.
    var reasonText: String {
        switch self {
        case .keyNotFound: "it is missing"
        case .typeMismatch(let type, _): "it has the wrong type; expected \(Self.jsonName(of: type))"
        case .valueNotFound: "it is null"
        case .dataCorrupted(let context): context.debugDescription
        @unknown default: String(describing: self)
        }
    }

    private static func jsonName(of type: any Any.Type) -> String {
        switch type {
        case is String.Type: "a string"
        case is Bool.Type: "true or false"
        case is any BinaryInteger.Type: "a whole number"
        case is [String: Any].Type: "an object"
        case is [Any].Type: "an array"
        default: "a value of another kind"
        }
    }
}
