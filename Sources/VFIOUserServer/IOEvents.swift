// Writes that come as signals of eventfds instead of messages.

import CLinux
import Glibc
import GuestMemory
import Synchronization
import SystemPackage
import VFIOUserProtocol

/// What a connection needs now and then, made when it is first asked for.
final class ConnectionServices: Sendable {
    let name: String
    private let shared = Mutex<EventWatcher?>(nil)

    init(name: String) { self.name = name }

    /// Who watches eventfds.
    ///
    /// - Throws: The system's error where it gives no descriptor.
    func watcher() throws(Errno) -> EventWatcher {
        let result: Result<EventWatcher, Errno> = shared.withLock { shared in
            if let shared { return .success(shared) }
            do throws(Errno) {
                let new = try EventWatcher(name: "\(name)-events")
                shared = new
                return .success(new)
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Stops watching, and waits for what is being done.
    func stop() { shared.withLock { $0 }?.stop() }
}

/// The ioeventfds of one connection: made for it, so that a client that is gone cannot write any more.
final class IOEvents {
    private let entries: [[VFIOUserIOEvent]]
    /// For each region, by ``VFIOUserIOEvent/descriptorIndex``.
    private var made: [Int: [OwnedEvent]] = [:]

    private final class OwnedEvent {
        let descriptor: OwnedDescriptor
        init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
    }

    init(_ device: VFIOUserDeviceDescription) { entries = device.regions.map(\.ioEvents) }

    /// The first `count` eventfds of a region, which stay ours; whoever signals one performs its writes.
    ///
    /// - Throws: The system's error where it gives no descriptor.
    func descriptors(
        _ region: Int,
        _ count: Int,
        _ watcher: EventWatcher,
        _ device: any VFIOUserDevice
    ) throws(Errno) -> [CInt] {
        while made[region, default: []].count < count {
            let index = made[region, default: []].count
            let descriptor = smmud_eventfd()
            guard descriptor >= 0 else { throw Errno(rawValue: -descriptor) }
            let owned = OwnedDescriptor(adopting: descriptor)
            let writes = entries[region].filter { $0.descriptorIndex == UInt32(index) && $0.type == 0 }
            let number = VFIOUserRegionIndex(rawValue: UInt32(region))
            _ = try watcher.watch(try owned.duplicate()) {
                for write in writes { Self.perform(write, number, device) }
            }
            made[region, default: []].append(OwnedEvent(owned))
        }
        return made[region, default: []].prefix(count).map { $0.descriptor.rawValue }
    }

    private static func perform(
        _ event: VFIOUserIOEvent,
        _ region: VFIOUserRegionIndex,
        _ device: any VFIOUserDevice
    ) {
        // Where any width is meant, a word: what was written is not known, and so is of no meaning to the device.
        let byteCount = event.size == 0 ? 4 : Int(min(event.size, 8))
        withUnsafeBytes(of: event.dataMatch.littleEndian) { bytes in
            // A write that the device refuses has nobody to be told.
            try? device.writeRegion(
                region,
                at: event.offset,
                UnsafeRawBufferPointer(rebasing: bytes[..<byteCount])
            )
        }
    }
}
