// What a control request can be answered with when it is not carried out.

/// A JSON-RPC error object: a number for the class of error, a sentence for a person, details for a program.
package struct ControlError: Error, Equatable, Sendable, Codable {
    /// JSON-RPC's numbers below -32600, and ours from -32000 down to -32099.
    package struct Code: RawRepresentable, Hashable, Sendable, Codable {
        package let rawValue: Int
        package init(rawValue: Int) { self.rawValue = rawValue }

        /// The line is no JSON.
        package static let parseError = Self(rawValue: -32700)
        /// The line is JSON and no request.
        package static let invalidRequest = Self(rawValue: -32600)
        package static let methodNotFound = Self(rawValue: -32601)
        /// A parameter is missing, unknown, of the wrong type or out of range; `data.parameter` names it.
        package static let invalidParameters = Self(rawValue: -32602)
        /// The daemon's own mistake.
        package static let internalError = Self(rawValue: -32603)
        /// The request was understood and could not be carried out; none of the others says why.
        package static let failed = Self(rawValue: -32000)
        /// No SMMU, device, register, line or counter has this name.
        package static let notFound = Self(rawValue: -32001)
        /// Nobody answers at the physical address, or who does refuses the access.
        package static let busError = Self(rawValue: -32002)
        /// The daemon's own driver does not run on that SMMU, or there is no SMMU before that device.
        package static let noDriver = Self(rawValue: -32003)
        /// Memory, I/O addresses or another resource of the machine is used up.
        package static let exhausted = Self(rawValue: -32004)
        /// What was asked for stands in the way of something else: an IOVA that is mapped already.
        package static let conflict = Self(rawValue: -32005)
        /// Nothing is mapped or allocated there.
        package static let notMapped = Self(rawValue: -32006)
        /// A limit of the protocol: a line or a length that is too long, too many subscriptions.
        package static let limit = Self(rawValue: -32007)
    }

    /// Details for a program.
    ///
    /// Only `kind` is always there.
    package struct Detail: Equatable, Sendable, Codable {
        /// A word for the class of error, the same for the same ``ControlError/code``: `bus-error`.
        package var kind: String
        /// The parameter that is at fault.
        package var parameter: String?
        /// The name that was not found: a device's, a register's.
        package var name: String?
        /// The address at which it went wrong.
        package var address: Hex?

        package init(kind: String, parameter: String? = nil, name: String? = nil, address: Hex? = nil) {
            self.kind = kind
            self.parameter = parameter
            self.name = name
            self.address = address
        }
    }

    package var code: Code
    package var message: String
    package var data: Detail?

    package init(code: Code, message: String, data: Detail? = nil) {
        self.code = code
        self.message = message
        self.data = data
    }
}

extension ControlError {
    package static func parseError(_ message: String) -> Self {
        Self(code: .parseError, message: message, data: Detail(kind: "parse-error"))
    }

    package static func invalidRequest(_ message: String) -> Self {
        Self(code: .invalidRequest, message: message, data: Detail(kind: "invalid-request"))
    }

    package static func methodNotFound(_ name: String) -> Self {
        Self(
            code: .methodNotFound,
            message: "there is no method \"\(name)\"",
            data: Detail(kind: "method-not-found", name: name)
        )
    }

    /// Parameters that cannot be taken; `parameter` names the one at fault, nil all of them as a whole.
    package static func invalidParameter(_ parameter: String?, _ message: String) -> Self {
        Self(
            code: .invalidParameters,
            message: parameter.map { "parameter \"\($0)\": \(message)" } ?? message,
            data: Detail(kind: "invalid-parameters", parameter: parameter)
        )
    }

    package static func internalError(_ message: String) -> Self {
        Self(code: .internalError, message: message, data: Detail(kind: "internal-error"))
    }

    package static func failed(_ message: String) -> Self {
        Self(code: .failed, message: message, data: Detail(kind: "failed"))
    }

    /// No thing of that name: `message` says what kind of thing it would be, and what would be right.
    package static func notFound(_ name: String, _ message: String) -> Self {
        Self(code: .notFound, message: message, data: Detail(kind: "not-found", name: name))
    }

    /// Nobody answers at the physical `address`.
    package static func busError(at address: UInt64, _ message: String) -> Self {
        Self(code: .busError, message: message, data: Detail(kind: "bus-error", address: Hex(address)))
    }

    package static func noDriver(_ message: String) -> Self {
        Self(code: .noDriver, message: message, data: Detail(kind: "no-driver"))
    }

    package static func exhausted(_ message: String) -> Self {
        Self(code: .exhausted, message: message, data: Detail(kind: "exhausted"))
    }

    /// Something older stands in the way, at `address` if it has one.
    package static func conflict(at address: UInt64? = nil, _ message: String) -> Self {
        Self(
            code: .conflict,
            message: message,
            data: Detail(kind: "conflict", address: address.map { Hex($0) })
        )
    }

    /// Nothing is mapped or allocated at `address`.
    package static func notMapped(at address: UInt64, _ message: String) -> Self {
        Self(code: .notMapped, message: message, data: Detail(kind: "not-mapped", address: Hex(address)))
    }

    package static func limit(_ message: String) -> Self {
        Self(code: .limit, message: message, data: Detail(kind: "limit"))
    }
}

extension ControlError: CustomStringConvertible {
    package var description: String { message }
}
