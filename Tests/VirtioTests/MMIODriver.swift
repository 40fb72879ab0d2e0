// A driver of virtio over MMIO, in the order of Linux's virtio_mmio.

import DeviceModel
import Testing
import Virtio

final class MMIODriver: TestDriver {
    let machine: TestMachine
    let window: VirtioMMIODevice
    let line: InterruptLine

    init(_ machine: TestMachine, _ device: any VirtioDevice) throws {
        self.machine = machine
        line = InterruptLine(
            identity: InterruptIdentity(controller: "/gic", specifier: [0, 16, 4]),
            label: "virtio"
        )
        window = try VirtioMMIODevice(device: device, line: line, makePort: machine.makePort)
    }

    deinit { window.shutdown() }

    func read(_ offset: UInt64) -> UInt64 { (try? window.read(at: offset, width: .word)) ?? .max }
    func write(_ value: UInt64, _ offset: UInt64) {
        do { try window.write(value, at: offset, width: .word) } catch {
            Issue.record("write at \(offset): \(error)")
        }
    }

    var status: UInt8 { UInt8(read(0x70)) }
    func setStatus(_ value: UInt8) { write(UInt64(value), 0x70) }

    func offeredFeatures() -> UInt64 {
        write(1, 0x14)
        let high = read(0x10) << 32
        write(0, 0x14)
        return high | read(0x10)
    }

    func setFeatures(_ features: UInt64) {
        write(1, 0x24)
        write(features >> 32, 0x20)
        write(0, 0x24)
        write(features & 0xFFFF_FFFF, 0x20)
    }

    func setQueue(_ index: Int, _ queue: DriverQueue) {
        write(UInt64(index), 0x30)
        #expect(read(0x44) == 0)
        #expect(read(0x34) >= UInt64(queue.size))
        write(UInt64(queue.size), 0x38)
        for (offset, address) in [(0x80, queue.descriptors), (0x90, queue.available), (0xA0, queue.used)] {
            write(address & 0xFFFF_FFFF, UInt64(offset))
            write(address >> 32, UInt64(offset) + 4)
        }
        write(1, 0x44)
    }

    func notify(_ index: Int) { write(UInt64(index), 0x50) }

    func takeInterrupts() -> UInt8 {
        let status = read(0x60)
        write(status, 0x64)
        return UInt8(status)
    }

    func configuration(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
        (try? window.read(at: 0x100 + offset, width: width)) ?? .max
    }
    func setConfiguration(_ value: UInt64, _ offset: UInt64, _ width: AccessWidth) {
        do { try window.write(value, at: 0x100 + offset, width: width) } catch {
            Issue.record("configuration write at \(offset): \(error)")
        }
    }
}
