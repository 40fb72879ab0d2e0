#!/usr/bin/env python3
"""Tests of what scripts/guest does without a guest: how device trees are merged, and how disks become devices."""

import argparse
import io
import os
import socket
import sys
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import bench
import initrd
import qemu
import run
import tree
from devicetree import TreeError, parse, parse_size, registers, source

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = ROOT / "dts/guest.dts"
WINDOW = (0x10000000, 0x100000)

# As QEMU 11.1 has it, without what nothing here looks at. Its phandles begin at 0x8000.
QEMU_SOURCE = """/dts-v1/;
/ {
    interrupt-parent = <0x8003>; #address-cells = <2>; #size-cells = <2>; compatible = "linux,dummy-virt";
    psci { compatible = "arm,psci-1.0"; method = "hvc"; };
    memory@40000000 { device_type = "memory"; reg = <0 0x40000000 0 0x40000000>; };
    pl061@9030000 { compatible = "arm,pl061"; reg = <0 0x9030000 0 0x1000>; interrupts = <0 7 4>; };
    pcie@10000000 {
        compatible = "pci-host-ecam-generic"; device_type = "pci"; #address-cells = <3>; #size-cells = <2>;
        #interrupt-cells = <1>; interrupt-map-mask = <0x1800 0 0 7>; interrupt-map = <0 0 0 1 0x8003 0 0 0 3 4>;
        ranges = <0x1000000 0 0 0 0x3eff0000 0 0x10000>, <0x2000000 0 0x10000000 0 0x10000000 0 0x2eff0000>;
        reg = <0x40 0x10000000 0 0x10000000>; bus-range = <0 0xff>; msi-map = <0 0x8004 0 0x10000>; dma-coherent;
    };
    pl011@9000000 { compatible = "arm,pl011"; reg = <0 0x9000000 0 0x1000>; interrupts = <0 1 4>; };
    intc@8000000 {
        phandle = <0x8003>; compatible = "arm,gic-v3"; reg = <0 0x8000000 0 0x10000 0 0x80a0000 0 0xf60000>;
        #interrupt-cells = <3>; interrupt-controller; #address-cells = <2>; #size-cells = <2>; ranges;
        v2m@8020000 {
            phandle = <0x8004>; compatible = "arm,gic-v2m-frame"; msi-controller; reg = <0 0x8020000 0 0x1000>;
        };
    };
    cpus {
        #address-cells = <1>; #size-cells = <0>;
        cpu@0 { device_type = "cpu"; compatible = "arm,cortex-a72"; reg = <0>; };
    };
    apb-pclk { phandle = <0x8000>; compatible = "fixed-clock"; #clock-cells = <0>; clock-frequency = <24000000>; };
    chosen { stdout-path = "/pl011@9000000"; };
};
"""


def blob(text):
    return tree.dtc(["-I", "dts", "-O", "dtb"], text.encode())


def qemu_tree():
    return parse(blob(QEMU_SOURCE))


class MergeTests(unittest.TestCase):
    """The machine of dts/guest.dts, and changes to it."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def machine(self, *replacements):
        text = MACHINE.read_text()
        for old, new in replacements:
            self.assertIn(old, text)
            text = text.replace(old, new)
        path = Path(self.folder.name) / "machine.dts"
        path.write_text(text)
        return path

    def merged(self, *replacements, window=WINDOW):
        other = qemu_tree()
        board = parse(tree.machine_blob(self.machine(*replacements), other))
        text, self.left_out = tree.merge(board, other, window)
        return parse(blob(text))

    def refused(self, reason, *replacements, window=WINDOW):
        with self.assertRaisesRegex(TreeError, reason):
            self.merged(*replacements, window=window)

    def test_every_node_of_smmuds_is_there(self):
        root = self.merged()
        for name in ("iommu@10000000", "iommu@10040000", "pmu@10020000", "pmu@10060000", "virtio@10080000"):
            self.assertIn(name, root.children)

    def test_the_machines_own_cpus_memory_and_uart_are_not(self):
        root = self.merged()
        self.assertEqual(list(root.child("cpus").children), ["cpu@0"])
        self.assertNotIn("serial@9000000", root.children)
        self.assertNotIn("interrupt-controller@8000000", root.children)
        self.assertEqual(len([name for name in root.children if name.startswith("memory")]), 1)

    def test_references_lead_to_qemus_gic_and_to_the_machines_smmus(self):
        root = self.merged()
        self.assertEqual(root.cell("interrupt-parent", 0), root.child("intc@8000000").cell("phandle", 0))
        smmu = root.child("iommu@10000000").cell("phandle", 0)
        self.assertEqual(root.child("pcie@10000000").cells("iommu-map"), [0, smmu, 0, 0x8000])
        self.assertEqual(root.child("pcie@10000000").cells("msi-map"), [0, 0x8004, 0, 0x8000])
        platform = root.child("iommu@10040000").cell("phandle", 0)
        self.assertEqual(root.child("virtio@10080000").cells("iommus"), [platform, 0x10])
        self.assertEqual(len({smmu, platform, 0x8003, 0x8004}), 4)

    def test_the_pcie_host_keeps_qemus_interrupts_and_takes_the_machines_addresses(self):
        host = self.merged().child("pcie@10000000")
        self.assertEqual(host.cells("bus-range"), [0, 0x7F])
        self.assertEqual(host.cells("reg"), [0x40, 0x10000000, 0, 0x08000000])
        self.assertEqual(host.cells("interrupt-map"), [0, 0, 0, 1, 0x8003, 0, 0, 0, 3, 4])

    def test_what_no_model_is_behind_is_disabled(self):
        root = self.merged(window=(0x10000000, 0x80000))
        self.assertEqual(self.left_out, ["/virtio@10080000", "/virtio@10081000"])
        self.assertEqual(root.child("virtio@10080000").strings("status"), ["disabled"])
        self.assertNotIn("status", root.child("pmu@10060000").properties)
        self.merged()
        self.assertEqual(self.left_out, [])

    def test_a_device_with_an_interrupt_of_qemus_is_refused(self):
        self.refused("SPI 7 is also the one of QEMU's /pl061@9030000", ("<0 193 4>", "<0 7 4>"))

    def test_an_spi_that_qemus_gic_has_not_is_refused(self):
        self.refused("no SPI 256", ("<0 193 4>", "<0 256 4>"))

    def test_pcie_memory_over_the_window_is_refused(self):
        self.refused("contains smmud's window", (
            "0x00 0x11000000  0x00 0x11000000  0x00 0x2dff0000", "0x00 0x10000000  0x00 0x10000000  0x00 0x2eff0000"))

    def test_a_gic_at_another_address_is_refused(self):
        self.refused("GIC does not stand where QEMU's does", ("0x08000000 0x0 0x010000", "0x07000000 0x0 0x010000"))

    def test_a_phandle_of_qemus_is_refused(self):
        self.refused("its phandle 0x8003 is one of QEMU's", (
            "smmu_pcie: iommu@10000000 {", "smmu_pcie: iommu@10000000 { phandle = <0x8003>;"))

    def test_a_source_with_an_error_is_refused_with_dtcs_reason(self):
        self.refused("v3m", ("&v2m", "&v3m"))

    def test_qemus_options_follow_the_machine(self):
        options = tree.machine_options(parse(tree.compile_source(MACHINE)))
        self.assertEqual(options, {"gic": "3", "msi": "gicv2m", "cpus": 2, "cpu": "cortex-a72", "memory": "1G"})

    def test_memory_that_qemu_has_not_is_refused(self):
        for old, new in (("0x0 0x40000000 0x0 0x40000000", "0x0 0x80000000 0x0 0x40000000"),
                         ("0x0 0x40000000 0x0 0x40000000", "0x0 0x40000000 0x0 0x1000>, <0x8 0x0 0x0 0x1000")):
            board = parse(tree.compile_source(self.machine((old, new))))
            with self.assertRaisesRegex(TreeError, "one range from 0x40000000"):
                tree.machine_options(board)


class DeviceTreeTests(unittest.TestCase):
    def test_what_is_written_reads_as_it_was(self):
        first = qemu_tree()
        second = parse(blob(source(first)))
        self.assertEqual(
            [(node.path, node.properties) for node in first.walk()],
            [(node.path, node.properties) for node in second.walk()])

    def test_registers_go_through_ranges(self):
        root = parse(blob("""/dts-v1/; / { #address-cells = <2>; #size-cells = <2>;
            soc { #address-cells = <1>; #size-cells = <1>; ranges = <0x0 0x1 0x40000000 0x10000>;
                a@100 { reg = <0x100 0x20>, <0x20000 0x10>; };
                b { #address-cells = <1>; #size-cells = <1>; ranges; c@8 { reg = <8 1>; }; }; };
            bus { #address-cells = <1>; #size-cells = <1>; d@0 { reg = <0 4>; }; }; };"""))
        self.assertEqual(registers(root.child("soc/a@100")), [(0x140000100, 0x20)])
        self.assertEqual(registers(root.child("soc/b/c@8")), [(0x140000008, 1)])
        self.assertEqual(registers(root.child("bus/d@0")), [])

    def test_no_blob_is_refused(self):
        for data in (b"", b"\0" * 100, b"\xd0\x0d\xfe\xed"):
            with self.assertRaises(TreeError):
                parse(data)

    def test_sizes(self):
        self.assertEqual([parse_size(text) for text in ("0x10000000", "1M", "4096", "2G")],
                         [0x10000000, 1 << 20, 4096, 2 << 30])
        with self.assertRaises(TreeError):
            parse_size("-1")


class DeviceTests(unittest.TestCase):
    def devices(self, **arguments):
        arguments = {"device": [], "disk": [], **arguments}
        board = parse(tree.compile_source(MACHINE))
        with tempfile.TemporaryDirectory() as folder:
            return run.devices(argparse.Namespace(**arguments), board, Path(folder))

    def test_each_disk_takes_the_next_place(self):
        words = self.devices(disk=[Path("a,b"), Path("c"), Path("d")])
        # The console has a file too, which is no disk.
        found = [word for word in words if "file=" in word and not word.startswith("virtio-console")]
        self.assertEqual(found, [
            "virtio-blk,at=0000:00:01.0,file=a,,b", "nvme,at=0000:00:02.0,file=c",
            "virtio-blk,at=/virtio@10080000,file=d"])

    def test_a_disk_too_many_is_refused(self):
        with self.assertRaisesRegex(run.GuestError, "--disk e"):
            self.devices(disk=[Path(name) for name in "bcde"])

    def test_devices_of_the_callers_are_all_there_is(self):
        device = "nvme,at=0000:00:01.0,file=x"
        self.assertEqual(self.devices(device=[device]), ["--device", device])
        with self.assertRaises(run.GuestError):
            self.devices(device=[device], disk=[Path("y")])


class ConsoleTests(unittest.TestCase):
    def console(self, *pieces):
        console = run.Console(None, None, io.BytesIO(), 0)
        kept, sys.stdout = sys.stdout, io.TextIOWrapper(io.BytesIO())
        try:
            for piece in pieces:
                console.take(piece)
        finally:
            sys.stdout = kept
        return console

    def test_a_result_is_found_in_whatever_pieces_it_comes(self):
        self.assertEqual(self.console(b"x\r\nGUEST-", b"EXIT 7\r", b"\n").result, 7)
        self.assertEqual(self.console(b"GUEST-EXIT 1\nGUEST-EXIT 0\n").result, 0)

    def test_what_only_looks_like_a_result_is_none(self):
        for text in (b"GUEST-EXIT 7", b"# GUEST-EXIT 7\n", b"GUEST-EXIT\n", b"GUEST-EXIT -1\n", b"GUEST-EXIT x\n"):
            self.assertIsNone(self.console(text).result)

    def test_a_panic_is_noticed(self):
        self.assertTrue(self.console(b"[ 1.0] Kernel panic - not syncing: VFS\r\n").panic)

    def test_a_line_without_an_end_does_not_grow(self):
        self.assertLessEqual(len(self.console(*[b"x" * 65536] * 4).rest), 4096)


class QTestLog:
    """Writes to the machine, kept."""

    def __init__(self):
        self.words = {}

    def write32(self, address, value):
        self.words[address] = value

    def read32(self, address):
        return self.words.get(address, 0)


class WindowTests(unittest.TestCase):
    def test_bridge_and_bar_of_the_carrier(self):
        """Worked out from the PCI-to-PCI bridge specification, and tried in QEMU 11.1."""
        log = QTestLog()
        qemu.open_window(log, 0x80, 0x10000000, 0x100000)
        self.assertEqual(log.words, {
            0x4018000018: 0x00818180, 0x4018000020: 0x10001000, 0x4018000004: 7,
            0x4018100010: 0x10000000, 0x4018100004: 7})

    def test_windows_of_other_sizes(self):
        for base, size, limits in ((0x20000000, 0x400000, 0x20302000), (0x10010000, 0x10000, 0x10001000)):
            log = QTestLog()
            qemu.open_window(log, 0x80, base, size)
            self.assertEqual((log.words[0x4018000020], log.words[0x4018100010]), (limits, base))

    def test_what_is_no_bar_is_refused(self):
        for base, size in ((0x10000000, 0x180000), (0x10080000, 0x100000)):
            with self.assertRaisesRegex(TreeError, "no BAR"):
                qemu.open_window(QTestLog(), 0x80, base, size)


class BenchTests(unittest.TestCase):
    def case(self, name, **samples):
        found, = bench.cases(name)
        found.samples = {side: [(rate, 0.001) for rate in rates] for side, rates in samples.items()}
        return found

    def test_every_load_is_there_for_both_disks(self):
        names = [case.name for case in bench.cases("")]
        self.assertEqual(len(set(names)), 16)
        self.assertIn("virtio-blk-4k-random-read-1", names)
        self.assertIn("nvme-128k-sequential-write-8", names)

    def test_a_request_says_what_the_guests_program_takes(self):
        found, = bench.cases("nvme-4k-random-write-32")
        self.assertEqual(found.request(250), "nvme random write 4096 32 250")

    def test_the_ratio_is_the_median_of_the_rounds_own(self):
        """A round in which the host was busy slows both sides, and moves no ratio."""
        found = self.case("nvme-4k-random-read-1", smmud=[100, 10, 90], qemu=[200, 20, 60])
        self.assertEqual(found.ratios(), [0.5, 0.5, 1.5])
        result = found.result()
        self.assertEqual(result["ratio"], 0.5)
        self.assertEqual(result["smmud"]["requestsPerSecond"], 90)
        self.assertEqual(result["qemu"]["mebibytesPerSecond"], 60 * 4096 / (1 << 20))
        self.assertEqual(result["smmud"]["cpuMicrosecondsPerRequest"], 1000)

    def test_one_round_is_enough(self):
        result = self.case("nvme-128k-sequential-read-8", smmud=[3], qemu=[6]).result()
        self.assertEqual((result["ratio"], result["ratioQuartiles"]), (0.5, [0.5, 0.5]))

    def conversation(self, data):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        theirs.sendall(data)
        talk = bench.Conversation("smmud", ours, [], os.devnull)
        self.addCleanup(talk.log.close)
        return talk

    def test_a_check_that_failed_ends_the_run_with_its_reason(self):
        talk = self.conversation(b"x\r\nCHECK bench:pci translated FAILED exit code 1: identity\r\nBENCH ready\r\n")
        with self.assertRaisesRegex(run.GuestError, "smmud: CHECK bench:pci translated FAILED"):
            talk.wait_for("BENCH ready", 1)

    def test_a_guest_that_is_silent_ends_the_run(self):
        with self.assertRaisesRegex(run.GuestError, "says nothing"):
            self.conversation(b"half a line").wait_for("BENCH ready", 0.05)

    def test_disks_are_equal_and_have_no_holes(self):
        with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.object(bench, "DISK_SIZE", 2 << 20):
            disks = bench.make_disks(Path(folder))
            contents = [path.read_bytes() for side in bench.SIDES for path in disks[side]]
        self.assertEqual(len(contents), 4)
        self.assertEqual(len(set(contents)), 1)
        self.assertNotIn(bytes(512), contents[0])


class ArchiveTests(unittest.TestCase):
    def test_an_entry_of_a_cpio_archive(self):
        """Field by field, from the kernel's description of the initramfs buffer format."""
        archive = initrd.Archive()
        archive.file("a", b"xyz", 0o755)
        data = archive.data()
        self.assertEqual(data[:110], b"070701" + b"".join(b"%08X" % word for word in (
            1, 0o100755, 0, 0, 1, 0, 3, 0, 0, 0, 0, 2, 0)))
        self.assertEqual(data[110:116], b"a\0xyz\0")
        self.assertIn(b"TRAILER!!!\0", data)
        self.assertEqual(len(data) % 4, 0)

    def test_what_a_module_needs(self):
        self.assertEqual(initrd.needs(b"\0license=GPL\0depends=jbd2,mbcache\0"), ["jbd2", "mbcache"])
        self.assertEqual(initrd.needs(b"\0depends=\0"), [])


if __name__ == "__main__":
    unittest.main()
