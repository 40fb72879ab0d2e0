// The reports, letter by letter: what a person sees.

import ControlProtocol
import SMMUClient
import Testing

@Suite("Reports")
struct ReportTests {
    @Test("The board is a tree with each SMMU's interrupts and endpoints below it")
    func board() {
        #expect(
            BoardReport.text(Fixtures.board) == """
                A board  (smmud,soc)
                ├─ SMMU 0  /iommu@2b400000
                │  ├─ registers  0x2b400000-0x2b4fffff (1 MiB)
                │  ├─ features   SMMUv3.1, StreamID 16 bits, SubstreamID 8 bits, output 48 bits, granules 4K 16K 64K, \
                stage 1, COHACC
                │  ├─ coherent   yes
                │  ├─ quirks     hisilicon,broken-prefetch-cmd
                │  ├─ MSIs to    /its@2f020000
                │  ├─ driver     running
                │  ├─ interrupts
                │  │  ├─ line 0  eventq  SPI 74 (INTID 106), edge-rising  at /interrupt-controller@2f000000  2 pulses
                │  │  └─ line 1  gerror  <640 1>                          at /mbigen@a0080000                asserted
                │  └─ endpoints
                │     ├─ /soc/display@a000000         StreamIDs 0x100 0x101  domain dma, or display@a000000
                │     └─ /pcie@40000000/0000:00:01.0  StreamID 0x1008        SubstreamID 8 bits, coherent, \
                or 0000:00:01.0
                ├─ SMMU 1  /iommu@2b600000  status disabled
                │  ├─ registers  0x2b600000-0x2b61ffff (128 KiB)
                │  ├─ coherent   no
                │  └─ driver     none
                ├─ endpoints with no SMMUv3 before them
                │  ├─ /soc/vpu@b000000   behind /soc/iommu@b800000
                │  └─ /soc/uart@c000000  no IOMMU
                ├─ PCIe host  /pcie@40000000
                │  ├─ buses      0x00-0xff of segment 0
                │  ├─ ECAM       0x40000000-0x4fffffff (256 MiB)
                │  ├─ window     0x50000000-0x5fffffff (256 MiB) is mem32 prefetchable 0x50000000
                │  └─ iommu-map  RequesterIDs 0x0-0xffff are StreamIDs from 0x1000 at /iommu@2b400000
                ├─ memory
                │  └─ 0x80000000-0xffffffff (2 GiB)  /memory@80000000  84 KiB resident
                ├─ reserved memory
                │  └─ 0x88000000-0x880fffff (1 MiB)  /reserved-memory/fb@88000000  no-map  \
                IOVAs 0x88000000-0x880fffff (1 MiB) of /soc/display@a000000
                ├─ performance counters
                │  └─ /pmu@2b420000  0x2b420000-0x2b420fff (4 KiB)  of /iommu@2b400000
                └─ warnings
                   └─ /soc/camera@b100000: shares StreamID 0x100 with another

                2 SMMUs, 4 endpoints, 1 PCIe host, 2 GiB of memory, 1 warning

                """
        )
    }

    @Test("A name from a device tree cannot command a terminal")
    func controlCharacters() {
        let text = BoardReport.text(BoardInfo(model: "a\u{1b}[2Jb\r"))
        #expect(text.hasPrefix("a?[2Jb?\n"))
    }

    @Test("An event shows its record and its fields, or is one line")
    func events() {
        let line =
            "#7  /iommu@2b400000  F_TRANSLATION (0x10)  StreamID 0x1008  SubstreamID 0x1  "
            + "/pcie@40000000/0000:00:01.0  address 0x11000\n"
        #expect(EventReport.text([Fixtures.event], showsFields: false) == line)
        #expect(
            EventReport.text([Fixtures.event]) == line + """
                    0x00001008_00001810 0x00000208_00000000 0x00000000_00011000 0x00000000_00000000
                    [99]       RnW    0x1  read
                    [105:104]  CLASS  0x2  IN

                """
        )
        #expect(EventReport.text([]) == "no events\n")
    }

    @Test("An explanation shows each step with words and fields, and ends with the fault")
    func explanations() {
        #expect(
            TranslationReport.text(Fixtures.explanation) == """
                1. STE of StreamID 0x1008  at 0x82001200
                     +0x00  0x40000000_4300000b 0x00000000_00000000 0x00000000_00000000 0x00000000_00000000
                     +0x20  0x00000000_00000000 0x00000000_00000000 0x00000000_00000000 0x00000000_00000000
                     [0]    V       0x1
                     [3:1]  Config  0x5  stage 1
                     → stage 1
                2. no SubstreamID: CD 0
                3. level 3 descriptor  at 0x84003080
                     0x00000000_00000000
                     → invalid
                =  fault: F_TRANSLATION (0x10) at IOVA 0x11000, 8 bytes transferred: no valid descriptor at level 3

                """
        )
    }

    @Test("A translation is a line")
    func translations() {
        let translation = TranslationInfo(
            address: 0x8000_1040,
            pageSize: 4096,
            regime: "stage 1",
            permissions: .readWrite,
            attributes: "Normal WB"
        )
        #expect(
            TranslationReport.text(.translation(translation))
                == "physical 0x80001040, stage 1, 4 KiB page, rw, Normal WB\n"
        )
    }

    @Test("Faults without an event say what they are")
    func faults() {
        let bus = FaultInfo(
            kind: .bus,
            address: 0x1000,
            physicalAddress: 0xfff0_0000,
            bytesTransferred: 1,
            message: ""
        )
        #expect(
            Format.fault(bus)
                == "fault: nobody answers at physical 0xfff00000 at IOVA 0x1000, 1 byte transferred"
        )
        let aborted = FaultInfo(kind: .aborted, address: 0x1000, bytesTransferred: 0, message: "GBPA.ABORT")
        #expect(
            Format.fault(aborted)
                == "fault: aborted without an event at IOVA 0x1000, 0 bytes transferred: GBPA.ABORT"
        )
    }

    @Test("Interrupt lines are a table, a signal is a line")
    func interrupts() {
        #expect(
            Reports.interrupts(Fixtures.board.interrupts) == """
                LINE  DEVICE           LABEL   INTERRUPT                        CONTROLLER              \
                        PULSES  ASSERTED
                   0  /iommu@2b400000  eventq  SPI 74 (INTID 106), edge-rising  /interrupt-controller@2f\
                000000       2         0
                   1  /iommu@2b400000  gerror  <640 1>                          /mbigen@a0080000        \
                             0       now

                """
        )
        let signal = InterruptNotification(
            line: 0,
            label: "eventq",
            device: "/iommu@2b400000",
            controller: "/intc",
            specifier: [0, 74, 1],
            intid: 106,
            signal: .pulse,
            count: 3,
            dropped: 2
        )
        #expect(
            Reports.signal(signal)
                == "line 0  /iommu@2b400000 eventq  INTID 106 at /intc  pulse (3)  (2 before it were lost)\n"
        )
    }

    @Test("Registers have as many digits as bits")
    func registers() {
        let registers = [
            RegisterInfo(
                name: "SMMU_CR0",
                offset: 0x20,
                width: 32,
                value: 0xd,
                fields: [FieldInfo(name: "SMMUEN", high: 0, low: 0, value: 1, meaning: "translation enabled")]
            ),
            RegisterInfo(name: "SMMU_STRTAB_BASE", offset: 0x80, width: 64, value: 0x4000_0000_8000_0000),
        ]
        #expect(
            Reports.registers(registers) == """
                0x00020  SMMU_CR0          0x0000000d
                           [0]  SMMUEN  0x1  translation enabled
                0x00080  SMMU_STRTAB_BASE  0x4000000080000000

                """
        )
    }

    @Test("Mappings and counters are tables")
    func tables() {
        let mappings = [
            MappingInfo(
                device: "/soc/display@a000000",
                iova: 0x10000,
                address: 0x8000_0000,
                length: 65536,
                permissions: .readWrite,
                allocated: true
            ),
            MappingInfo(
                device: "/pcie",
                iova: 0x100_0000,
                address: 0x8000_0000,
                length: 4096,
                permissions: Permissions(read: true, write: false),
                substream: 3
            ),
        ]
        #expect(
            Reports.mappings(mappings) == """
                DEVICE                SUBSTREAM       IOVA    PHYSICAL  LENGTH  PERM
                /soc/display@a000000  -            0x10000  0x80000000  64 KiB  rw    allocated
                /pcie                 0x3        0x1000000  0x80000000   4 KiB  r

                """
        )
        let group = CounterGroup(
            owner: "bus",
            counters: [
                Counter(name: "loads", value: 1234), Counter(name: "aborts", value: 3, meaning: "no answer"),
            ]
        )
        #expect(
            Reports.counters([group]) == """
                bus
                  loads   1234
                  aborts     3  no answer

                """
        )
    }

    @Test("A hexdump leaves equal lines out and ends with the address after the last byte")
    func hexdumps() {
        #expect(
            Hexdump.text(Array("hello, world! 1234567".utf8) + [UInt8](repeating: 0, count: 64), at: 0x10000)
                == """
                0000000000010000 68 65 6c 6c 6f 2c 20 77  6f 72 6c 64 21 20 31 32  |hello, world! 12|
                0000000000010010 33 34 35 36 37 00 00 00  00 00 00 00 00 00 00 00  |34567...........|
                0000000000010020 00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
                *
                0000000000010050 00 00 00 00 00                                    |.....|
                0000000000010055

                """
        )
        #expect(Hexdump.text([], at: 0) == "0000000000000000\n")
        #expect(Hexdump.text([1, 2], at: .max).hasSuffix("0000000000000001\n"))
    }

    @Test(
        "Sizes are told in the largest unit that fits",
        arguments: [
            (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"),
            (0x10_0000, "1 MiB"), (UInt64.max, "15.9 EiB"),
        ]
    )
    func sizes(byteCount: UInt64, text: String) {
        #expect(Format.size(byteCount) == text)
    }

    @Test("A range that leaves 64 bits is told as it is given")
    func ranges() {
        #expect(Format.range(RangeInfo(base: 0x1000, size: 0x1000)) == "0x1000-0x1fff (4 KiB)")
        #expect(Format.range(RangeInfo(base: 0x1000, size: 0)) == "0x1000 (size 0x0)")
        #expect(
            Format.range(RangeInfo(base: 0x1000, size: Hex(UInt64.max))) == "0x1000 (size 0xffffffffffffffff)"
        )
    }
}
