// The driver, the model and the control service of one machine together.

import ControlProtocol
import Machine
import SMMUv3
import Testing

@Suite("The machine's own driver on the machine's own SMMU")
struct DriverTests {
    private func start(_ configure: (inout MachineOptions) -> Void = { _ in }) throws -> (Machine, TestClient)
    {
        var options = MachineOptions()
        configure(&options)
        let machine = try Machine(board: try TestBoard.load(TestBoard.small), options: options)
        machine.startDriver()
        return (machine, TestClient(machine))
    }

    @Test(
        "what is mapped is written and read by DMA; what is unmapped faults, with its event and its interrupt",
        arguments: [SMMUv3Options.CommandExecution.thread, .inline]
    )
    func mapTransferUnmap(_ execution: SMMUv3Options.CommandExecution) throws {
        let (machine, client) = try start { $0.smmu.commandExecution = execution }
        defer { machine.stop() }
        #expect(machine.driverState(ofSMMU: 0).state == .running, "\(machine.driverState(ofSMMU: 0))")
        let mapping = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "dma@40000000", iova: 0x10000, length: 0x2000)
        )
        #expect(mapping.iova == 0x10000)
        #expect(mapping.length == 0x2000)

        let text = ByteString(Array("across the page".utf8))
        let written = try client.call(
            Methods.DMAWrite.self,
            .init(device: "dma@40000000", iova: 0x10FF8, data: text)
        )
        #expect(written.fault == nil)
        let read = try client.call(
            Methods.DMARead.self,
            .init(device: "dma@40000000", stream: 0x11, iova: 0x10FF8, length: 15)
        )
        #expect(read.data == text)
        let memory = try client.call(
            Methods.MemoryRead.self,
            .init(address: Hex(mapping.address.value + 0xFF8), length: 15)
        )
        #expect(memory.data == text)

        #expect(
            try client.call(Methods.IOMMUUnmap.self, .init(device: "dma@40000000", iova: 0x10000)).unmapped
                == 0x2000
        )
        let after = try client.call(
            Methods.DMARead.self,
            .init(device: "dma@40000000", iova: 0x10FF8, length: 15)
        )
        #expect(after.fault?.name == "F_TRANSLATION")
        #expect(after.data.bytes.isEmpty)
        let event = try #require(try client.call(Methods.EventsList.self, .init()).events.last)
        #expect(event.recorded)
        #expect(event.device == "/dma@40000000")
        // F_TRANSLATION, StreamID 0x10; a read (RnW, bit 99), CLASS IN (105:104 = 0b10); the address.
        #expect(event.words == [0x0000_0010_0000_0010, 0x0000_0208_0000_0000, 0x1_0FF8, 0])
        let interrupts = try client.call(Methods.InterruptsList.self, .init()).interrupts
        #expect(interrupts.first { $0.label == "eventq" }?.pulses == 1)
        #expect(interrupts.first { $0.label == "eventq" }?.intid == 106)
    }

    @Test("iommu.strict=0: DMA reaches what was unmapped until the flush queue's 10 ms are over")
    func lazyUnmaps() throws {
        let (machine, client) = try start {
            $0.append = "iommu.strict=0"
            $0.smmu.commandExecution = .inline
        }
        defer { machine.stop() }
        let mapping = try client.call(Methods.IOMMUMap.self, .init(device: "dma@40000000", length: 0x1000))
        let parameters = Methods.DMARead.Parameters(
            device: "dma@40000000",
            iova: mapping.iova,
            length: 8
        )
        #expect(try client.call(Methods.DMARead.self, parameters).fault == nil)
        _ = try client.call(Methods.IOMMUUnmap.self, .init(device: "dma@40000000", iova: mapping.iova))
        // Inline there is no timer's thread: the window stays open.
        #expect(try client.call(Methods.DMARead.self, parameters).fault == nil)
        // A map at a chosen address flushes.
        _ = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "dma@40000000", iova: 0x10000, length: 0x1000)
        )
        #expect(try client.call(Methods.DMARead.self, parameters).fault?.name == "F_TRANSLATION")
        let log = try client.call(Methods.DriverLog.self, .init()).lines.map(\.text)
        #expect(
            log.contains("iommu: DMA domain TLB invalidation policy: lazy mode (set via kernel command line)")
        )
    }

    @Test("iommu.passthrough=1: an endpoint's addresses are physical until it is attached")
    func passthrough() throws {
        let (machine, client) = try start { $0.append = "iommu.passthrough=1 iommu.strict=maybe" }
        defer { machine.stop() }
        let memory = try client.call(Methods.MemoryAllocate.self, .init(length: 0x1000))
        let data = ByteString([1, 2, 3, 4])
        let written = try client.call(
            Methods.DMAWrite.self,
            .init(device: "dma@40000000", iova: memory.address, data: data)
        )
        #expect(written.fault == nil)
        #expect(
            try client.call(Methods.MemoryRead.self, .init(address: memory.address, length: 4)).data == data
        )
        _ = try client.call(Methods.IOMMUAttach.self, .init(device: "dma@40000000", domain: .dma))
        let after = try client.call(
            Methods.DMAWrite.self,
            .init(device: "dma@40000000", iova: memory.address, data: data)
        )
        #expect(after.fault?.name == "F_TRANSLATION")
        let log = try client.call(Methods.DriverLog.self, .init()).lines.map(\.text)
        #expect(log.contains("Malformed early option 'iommu.strict'"))
    }

    @Test("PCIe functions, SubstreamIDs, identity and blocked domains")
    func domains() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let nic = try client.call(Methods.IOMMUMap.self, .init(device: "0000:00:02.0", length: 100))
        #expect(nic.length == 0x1000)
        let data = ByteString([1, 2, 3, 4])
        #expect(
            try client.call(Methods.DMAWrite.self, .init(device: "00:02.0", iova: nic.iova, data: data)).fault
                == nil
        )
        let second = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "dma@40000000", iova: nic.iova, length: 1, substream: 5)
        )
        let plain = Methods.DMAWrite.Parameters(device: "dma@40000000", iova: second.iova, data: data)
        #expect(try client.call(Methods.DMAWrite.self, plain).fault?.name == "F_TRANSLATION")
        var substream = plain
        substream.substream = 5
        #expect(try client.call(Methods.DMAWrite.self, substream).fault == nil)
        substream.substream = 6
        #expect(try client.call(Methods.DMAWrite.self, substream).fault?.name == "C_BAD_CD")
        substream.substream = 16
        #expect(try client.call(Methods.DMAWrite.self, substream).fault?.name == "C_BAD_SUBSTREAMID")

        _ = try client.call(Methods.IOMMUAttach.self, .init(device: "0000:00:02.0", domain: .identity))
        let through = try client.call(
            Methods.DMARead.self,
            .init(device: "0000:00:02.0", iova: nic.address, length: 4)
        )
        #expect(through.data == data)
        _ = try client.call(Methods.IOMMUAttach.self, .init(device: "0000:00:02.0", domain: .blocked))
        let blocked = try client.call(
            Methods.DMARead.self,
            .init(device: "0000:00:02.0", iova: nic.address, length: 4)
        )
        #expect(blocked.fault?.kind == .aborted)
    }

    @Test("a device's direct region is mapped one to one from the start, and nothing else")
    func directRegion() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let inside = try client.call(
            Methods.Translate.self,
            .init(device: "display@40010000", iova: 0x9000_8123)
        )
        guard case .translation(let translation) = inside else {
            Issue.record("no translation: \(inside)")
            return
        }
        #expect(translation.address == 0x9000_8123)
        let outside = try client.call(
            Methods.Translate.self,
            .init(device: "display@40010000", iova: 0x9001_0000)
        )
        guard case .fault(let fault) = outside else {
            Issue.record("no fault: \(outside)")
            return
        }
        #expect(fault.name == "F_TRANSLATION")
    }

    @Test(
        "explain shows every structure from the registers to the page, with the addresses of the driver's tables"
    )
    func explain() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let mapping = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "dma@40000000", iova: 0x7F_1234_5000, length: 0x1000)
        )
        let result = try client.call(
            Methods.Explain.self,
            .init(device: "dma@40000000", iova: 0x7F_1234_5678, access: .write)
        )
        #expect(
            result.steps.map(\.kind) == [
                "register", "register", "register", "l1std", "ste", "cd", "descriptor", "descriptor",
                "descriptor",
                "descriptor",
            ]
        )
        guard case .translation(let translation) = result.outcome else {
            Issue.record("no translation")
            return
        }
        #expect(translation.address.value == mapping.address.value + 0x678)
        #expect(translation.pageSize == 0x1000)
        // The leaf's address: bits 20:12 of the IOVA are 0x145, eight bytes each.
        #expect((result.steps.last?.address?.value ?? 0) & 0xFFF == 0x145 * 8)
    }

    @Test("wrong requests are answered with what is wrong, and leave everything as it was")
    func refusals() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        _ = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "dma@40000000", iova: 0x10000, length: 0x1000)
        )
        func refusal(_ parameters: Methods.IOMMUMap.Parameters) -> ControlError? {
            do {
                _ = try client.call(Methods.IOMMUMap.self, parameters)
                return nil
            } catch {
                return error as? ControlError
            }
        }
        #expect(refusal(.init(device: "dma@40000000", iova: 0x10000, length: 1))?.code == .conflict)
        #expect(refusal(.init(device: "dma@40000000", iova: 0x10001, length: 1))?.code == .failed)
        #expect(
            refusal(.init(device: "dma@40000000", iova: 0x20000, address: 0x123, length: 1))?.code
                == .invalidParameters
        )
        #expect(refusal(.init(device: "dma@40000000", length: 0))?.code == .invalidParameters)
        #expect(refusal(.init(device: "dma@40000000", length: Size(UInt64.max)))?.code == .invalidParameters)
        #expect(refusal(.init(device: "dma@40000000", length: 0x100_0000_0000))?.code == .exhausted)
        #expect(refusal(.init(device: "nobody", length: 1))?.code == .notFound)
        #expect(refusal(.init(device: "ethernet@40020000", length: 1))?.code == .noDriver)
        #expect(refusal(.init(device: "display@40010000", iova: 0x9000_0000, length: 1))?.code == .conflict)
        #expect(refusal(.init(device: "dma@40000000", length: 1, substream: 16))?.code == .failed)
        #expect(try client.call(Methods.IOMMUMappings.self, .init()).mappings.count == 1)
    }

    @Test("partial unmaps split a mapping; its memory is free only when the last part has gone")
    func partialUnmap() throws {
        let (machine, client) = try start()
        defer { machine.stop() }
        let mapping = try client.call(
            Methods.IOMMUMap.self,
            .init(device: "dma@40000000", iova: 0x10000, length: 0x4000)
        )
        func unmap(_ iova: Hex, _ length: Size?) throws -> Size {
            try client.call(
                Methods.IOMMUUnmap.self,
                .init(device: "dma@40000000", iova: iova, length: length)
            ).unmapped
        }
        #expect(try unmap(0x11000, 0x1000) == 0x1000)
        let parts = try client.call(Methods.IOMMUMappings.self, .init(device: "dma@40000000")).mappings
        #expect(parts.map(\.iova) == [0x10000, 0x12000])
        #expect(parts.map(\.address.value) == [mapping.address.value, mapping.address.value + 0x2000])
        #expect(throws: ControlError.self) { try unmap(0x11000, 0x1000) }
        #expect(try unmap(0x10000, nil) == 0x1000)
        #expect(try unmap(0x12000, nil) == 0x2000)
        #expect(try client.call(Methods.IOMMUMappings.self, .init()).mappings.isEmpty)
    }

    @Test("with --driver none nobody touches the SMMU: its registers stay as reset leaves them")
    func noDriver() throws {
        let (machine, client) = try start { $0.driver = .none }
        defer { machine.stop() }
        #expect(try client.call(Methods.RegisterRead.self, .init(register: .name("CR0"))).value == 0)
        #expect(try client.call(Methods.RegisterRead.self, .init(register: .name("STRTAB_BASE"))).value == 0)
        #expect(throws: ControlError.self) {
            try client.call(Methods.IOMMUMap.self, .init(device: "dma@40000000", length: 1))
        }
        // SMMUEN == 0: bypass.
        let data = ByteString([9, 8, 7])
        _ = try client.call(
            Methods.DMAWrite.self,
            .init(device: "dma@40000000", iova: 0x8800_0000, data: data)
        )
        #expect(try client.call(Methods.MemoryRead.self, .init(address: 0x8800_0000, length: 3)).data == data)
    }
}
