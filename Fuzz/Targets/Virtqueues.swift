// Virtqueues and requests of a hostile driver, before the devices that serve them.

import AddressSpace
import DeviceModel
import Glibc
import Virtio

/// 64 KiB of memory, and nothing else; every access fails once there were too many.
///
/// A ring whose used part lies on its available part feeds itself for ever: the limit ends that.
private final class FlatPort: DMAPort {
    static let byteCount = 1 << 16
    var bytes = [UInt8](repeating: 0, count: FlatPort.byteCount)
    private var accessesLeft = 20_000

    /// Where `count` bytes at an address are.
    private func place(_ address: IOVirtualAddress, _ count: Int) throws(DMAFault) -> Int {
        accessesLeft -= 1
        guard accessesLeft > 0, count <= bytes.count, address.rawValue <= UInt64(bytes.count - count) else {
            throw DMAFault(cause: .event(0x10), address: address, bytesTransferred: 0)
        }
        return Int(address.rawValue)
    }

    func read(
        at address: IOVirtualAddress,
        into buffer: UnsafeMutableRawBufferPointer,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        let start = try place(address, buffer.count)
        buffer.copyBytes(from: bytes[start..<start + buffer.count])
    }

    func write(
        _ buffer: UnsafeRawBufferPointer,
        at address: IOVirtualAddress,
        _ attributes: TransactionAttributes
    ) throws(DMAFault) {
        let start = try place(address, buffer.count)
        for (index, byte) in buffer.enumerated() { bytes[start + index] = byte }
    }

    func lend(
        _ ranges: [DMARange],
        for direction: DMADirection,
        _ attributes: TransactionAttributes,
        _ body: (UnsafeBufferPointer<iovec>) -> Void
    ) throws(DMAFault) -> Bool { false }

    func rest() {}
}

/// A queue anywhere in memory, memory from the input, and a device that serves it.
///
/// Checked of every chain: that its ranges are as long as it says, and no more than its format permits.
func fuzzVirtqueues(_ input: inout FuzzInput) {
    let port = FlatPort()
    let choice = input.next()
    var features: VirtioFeatures = [.version1, .accessPlatform]
    if choice & 1 != 0 { features.insert(.packedRing) }
    if choice & 2 != 0 { features.insert(.indirectDescriptors) }
    if choice & 4 != 0 { features.insert(.eventIndex) }
    if choice & 8 != 0 { features.insert(.networkMergeableBuffers) }
    let size = UInt16(1) << UInt16(input.next() & 7)
    func area(_ input: inout FuzzInput) -> UInt64 { UInt64(input.next()) << 8 }
    let (descriptors, driverArea, deviceArea) = (area(&input), area(&input), area(&input))
    var place = 0
    while !input.isEmpty, place < FlatPort.byteCount {
        // 0xFF goes on at another page of 256 bytes, so that what is far apart is reached by short inputs; with 0 it
        // is itself.
        let byte = input.next()
        let pages = byte == 0xFF ? Int(input.next()) : 0
        guard pages == 0 else {
            place = (place / 256 + pages) * 256
            continue
        }
        port.bytes[place] = byte
        place += 1
    }
    func makeQueue(_ index: Int) -> VirtioQueue? {
        VirtioQueue(
            unattached: index,
            size: size,
            descriptors: descriptors,
            driverArea: driverArea,
            deviceArea: deviceArea,
            features,
            port: port
        )
    }
    if choice & 0x10 != 0 {
        checkChains(makeQueue(0), size)
    } else {
        serve(makeQueue, choice)
    }
}

private func checkChains(_ queue: VirtioQueue?, _ size: UInt16) {
    guard let queue else { return }
    var chain = DescriptorChain()
    do throws(VirtqueueError) {
        while try queue.next(&chain) {
            let readable = chain.readable.reduce(0) { $0 + $1.byteCount }
            let writable = chain.writable.reduce(0) { $0 + $1.byteCount }
            precondition(readable == chain.readableByteCount && writable == chain.writableByteCount)
            precondition(chain.readable.count + chain.writable.count <= Int(size) + 1024)
            precondition(readable + writable <= 1 << 32)
            try queue.complete(chain, writtenByteCount: writable)
        }
        try queue.publish()
        _ = try queue.arm()
    } catch {}
}

private func serve(_ makeQueue: (Int) -> VirtioQueue?, _ choice: UInt8) {
    let device: any VirtioDevice
    switch choice >> 5 & 3 {
    case 0: device = VirtioEntropy()
    case 1: device = VirtioConsole(backend: ConsoleDescriptors(input: -1, output: -1))
    default:
        guard let (near, far) = try? NetPackets.loop(), let address = MACAddress([2, 0, 0, 0, 0, 1]) else {
            return
        }
        // A frame waits for the receive queue.
        let frame = [UInt8](repeating: 0x55, count: 700)
        _ = frame.withUnsafeBytes { far.send($0) }
        device = VirtioNet(backend: near, address: address)
    }
    for (thread, numbers) in device.threadQueues.enumerated() {
        var queues = [VirtioQueue?](repeating: nil, count: device.queueSizesMax.count)
        for number in numbers { queues[number] = makeQueue(number) }
        do throws(VirtqueueError) { try device.makeWorker(thread).serve(queues) } catch {}
    }
}
