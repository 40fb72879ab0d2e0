// What a driver makes of a device: blocks that are read and written.

public import VFIOUserClient

/// Why a driver cannot do what it is asked.
public enum DriverError: Error, Equatable, Sendable {
    /// The device is another, or lacks what the driver needs.
    case unsuitable(String)
    /// The device did not do in time what it should have.
    case timedOut(String)
    /// The device refused a command, with a status of its own.
    case refused(command: String, status: Int)
    /// The connection to the device's server.
    case client(VFIOUserClientError)
    /// The file of the driver's memory was truncated.
    case memoryLost
}

extension DriverError: CustomStringConvertible {
    public var description: String {
        switch self {
        case .unsuitable(let what): "the device does not suit this driver: \(what)"
        case .timedOut(let what): "the device did not answer in time: \(what)"
        case .refused(let command, let status): "\(command): status 0x\(String(status, radix: 16))"
        case .client(let error): "\(error)"
        case .memoryLost: "the memory that is shared with the device was truncated"
        }
    }
}

/// A disk, one request at a time.
public protocol BlockDevice: AnyObject {
    /// What it calls itself.
    var name: String { get }
    /// In bytes.
    var blockByteCount: Int { get }
    var blockCount: UInt64 { get }
    /// How many bytes one call reads or writes at most.
    var transferByteCountMax: Int { get }
    /// How many interrupts came.
    var interruptCount: UInt64 { get }

    /// Reads whole blocks.
    func read(_ byteCount: Int, at block: UInt64) throws(DriverError) -> [UInt8]
    /// Writes whole blocks.
    func write(_ bytes: [UInt8], at block: UInt64) throws(DriverError)
    /// Waits until all that was written stays.
    func flush() throws(DriverError)
}

/// Calls the client, and names its error as the driver's.
func asking<Result>(_ body: () throws(VFIOUserClientError) -> Result) throws(DriverError) -> Result {
    do throws(VFIOUserClientError) {
        return try body()
    } catch {
        throw .client(error)
    }
}
