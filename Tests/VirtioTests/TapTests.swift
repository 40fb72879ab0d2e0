// The network device on a TAP interface of the kernel's: frames out of it and into it.

import CTestNetwork
import Glibc
import HostIO
import Synchronization
import SystemPackage
import Testing
import Virtio

/// A network of the kernel's own with one TAP interface in it, of which nothing outside knows.
///
/// Only a thread moves into the new network, not the process, and it ends when the descriptors are made: they stay
/// in that network, and it goes with the last of them.
private final class TapNetwork: Sendable {
    struct Failure: Error, CustomStringConvertible { let description: String }

    /// The device's end.
    let backend: NetPackets
    /// Sees what comes out of the interface, and sends into it: a packet socket for ``etherType``.
    private let wire: CInt

    private static let name = "smmud-test0"
    /// For local experiments (IEEE 802): no frame of the kernel's own is of this type.
    private static let etherType: UInt16 = 0x88B5

    /// Makes the interface; it is down.
    init() throws {
        let outcome = Mutex<Result<(backend: NetPackets, wire: CInt), Failure>?>(nil)
        let thread = try SystemThread.start(named: "tap-network") {
            let made = Result { () throws(Failure) in try Self.make() }
            outcome.withLock { $0 = made }
        }
        SystemThread.join(thread)
        (backend, wire) = try #require(outcome.withLock { $0 }).get()
    }

    deinit { close(wire) }

    /// Runs on a thread that does nothing else.
    private static func make() throws(Failure) -> (backend: NetPackets, wire: CInt) {
        try check("CLONE_NEWNET", smmud_test_enter_new_network())
        let backend: NetPackets
        do throws(Errno) {
            backend = try NetPackets.tap(name)
        } catch {
            throw Failure(description: "a TAP interface, by /dev/net/tun: \(error)")
        }
        let wire = smmud_test_packet_socket(name, etherType)
        try check("a packet socket at \(name)", wire)
        return (backend, wire)
    }

    private static func check(_ call: String, _ result: CInt) throws(Failure) {
        guard result >= 0 else { throw Failure(description: "\(call): \(Errno(rawValue: -result))") }
    }

    /// Brings the interface up or down.
    func set(isUp: Bool) throws {
        try Self.check("the interface's flags", smmud_test_set_interface(wire, Self.name, isUp ? 1 : 0))
    }

    /// The next frame that came out of the interface.
    func receive() throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: 20000)
        let count = recv(wire, &bytes, bytes.count, 0)
        try #require(count >= 0, "no frame came out: \(Errno(rawValue: errno))")
        return Array(bytes[..<count])
    }

    /// Sends a frame into the interface.
    func send(_ frame: [UInt8]) throws {
        try #require(Glibc.send(wire, frame, frame.count, 0) == frame.count, "\(Errno(rawValue: errno))")
    }
}

/// Only root can make interfaces; where root cannot either, the tests fail and say what the kernel said.
private let mayMakeInterfaces = geteuid() == 0

@Suite(.enabled(if: mayMakeInterfaces, "a TAP interface needs root"))
struct TapTests {
    private let machine: TestMachine
    private let network: TapNetwork

    init() throws {
        machine = try TestMachine()
        network = try TapNetwork()
    }

    /// A frame between two stations, of `count` bytes in all.
    private func frame(_ seed: Int, _ count: Int) -> [UInt8] {
        let header: [UInt8] =
            [0x52, 0x54, 0, 0x12, 0x34, 0x56] + [0x52, 0x54, 0, 0x65, 0x43, 0x21] + [0x88, 0xB5]
        return header + (header.count..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ seed) }
    }

    @Test("frames that the driver sends come out of the interface, byte for byte, whatever their length")
    func out() throws {
        try network.set(isUp: true)
        let net = try NetDriver(machine, network.backend)
        for (seed, count) in [14, 15, 60, 61, 1513, 1514].enumerated() {
            try net.send(frame(seed, count))
            #expect(try network.receive() == frame(seed, count))
        }
        #expect(net.net.statistics["drops"] == 0)
    }

    @Test("frames that are sent into the interface reach the driver behind a header of zeros and one buffer")
    func into() throws {
        try network.set(isUp: true)
        let net = try NetDriver(machine, network.backend)
        for (seed, count) in [60, 61, 1514].enumerated() {
            let buffer = net.offer(2048)
            try network.send(frame(seed, count))
            let used = try net.receive.await()
            #expect(used.length == UInt32(12 + count))
            let bytes = machine.bytes(12 + count, buffer)
            #expect(Array(bytes[..<12]) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
            #expect(Array(bytes[12...]) == frame(seed, count))
        }
    }

    @Test("frames that wait in the interface while there is no buffer come in their order")
    func waiting() throws {
        try network.set(isUp: true)
        let net = try NetDriver(machine, network.backend)
        for seed in 0..<8 { try network.send(frame(seed, 100)) }
        for seed in 0..<8 {
            let buffer = net.offer(2048)
            _ = try net.receive.await()
            #expect(Array(machine.bytes(112, buffer)[12...]) == frame(seed, 100))
        }
    }

    @Test(
        "an interface that is down takes no frame: it is dropped and counted, and the next one goes once it is up"
    )
    func down() throws {
        let net = try NetDriver(machine, network.backend)
        try net.send(frame(1, 60))
        #expect(net.net.statistics["drops"] == 1)
        try network.set(isUp: true)
        try net.send(frame(2, 60))
        #expect(try network.receive() == frame(2, 60))
    }

    @Test("a name that no interface can have, or that is taken, is refused with the system's reason")
    func names() {
        #expect(throws: Errno.invalidArgument) { try NetPackets.tap("") }
        #expect(throws: Errno.invalidArgument) { try NetPackets.tap("sixteen-letters-") }
    }
}
