#!/usr/bin/env python3
"""Starts QEMU, tells it what its command line cannot, and asks it what only it knows."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from devicetree import TreeError, parse

# Where QEMU's `virt` machine has the configuration space of PCIe (highmem-ecam, its default).
ECAM = 0x4010000000
# Where it has the GICv2m frame, and the registers MSI_TYPER and MSI_SETSPI_NS of it.
MSI_FRAME = 0x08020000
MSI_TYPER, MSI_SETSPI_NS = 0x8, 0x40
# 4 KiB of it for each function.
CONFIG_BUS_SHIFT = 20


class QEMUError(Exception):
    pass


def program(cache):
    """QEMU as a command: with the loader and the libraries that were unpacked beside it."""
    host = Path(cache) / "host"
    machine = os.uname().machine
    libraries = host / "usr/lib" / f"{machine}-linux-gnu"
    loaders = list((host / "usr/lib64").glob("ld-linux*")) + list(libraries.glob("ld-linux*"))
    if not loaders:
        raise QEMUError(f"no loader in {host}: remove {cache}, and start again")
    # The libraries' own folders hold what the linker finds by a path of its own elsewhere.
    paths = [libraries, *sorted(folder.parent for folder in libraries.glob("*/lib*.so*"))]
    return [
        str(loaders[0]), "--library-path", ":".join(dict.fromkeys(map(str, paths))),
        str(host / "usr/bin/qemu-system-aarch64"), "-L", str(host / "usr/share/qemu"),
    ]


def machine_arguments(options, extra=""):
    """`options` are those of tree.machine_options."""
    return [
        "-machine", f"virt,gic-version={options['gic']},msi={options['msi']},virtio-mmio-transports=0{extra}",
        "-cpu", options["cpu"], "-smp", str(options["cpus"]), "-m", options["memory"], "-display", "none",
        "-nic", "none", "-nodefaults",
    ]


class Channel:
    """Lines to and from one of QEMU's sockets."""

    def __init__(self, path, process, seconds=20):
        end = time.monotonic() + seconds
        self.path = path
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                self.socket.close()
                if process.poll() is not None:
                    raise QEMUError("QEMU did not start") from None
                if time.monotonic() > end:
                    raise QEMUError(f"QEMU does not listen on {path}") from None
                time.sleep(0.01)
        self.socket.settimeout(seconds)
        self.file = self.socket.makefile("rw")

    def line(self):
        try:
            line = self.file.readline()
        except TimeoutError:
            raise QEMUError(f"QEMU does not answer on {self.path}") from None
        except OSError as error:
            raise QEMUError(f"QEMU closed {self.path}: {error.strerror}") from None
        if not line:
            raise QEMUError(f"QEMU closed {self.path}")
        return line

    def send(self, text):
        try:
            self.file.write(text + "\n")
            self.file.flush()
        except OSError as error:
            raise QEMUError(f"QEMU closed {self.path}: {error.strerror}") from None

    def close(self):
        self.file.close()
        self.socket.close()


class Monitor(Channel):
    """QMP."""

    def __init__(self, path, process):
        super().__init__(path, process)
        self.line()
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.send(json.dumps({"execute": command, "arguments": arguments}))
        while True:
            answer = json.loads(self.line())
            if "error" in answer:
                raise QEMUError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


class QTest(Channel):
    """Reads and writes of the machine's physical addresses. One client at a time; the next may follow."""

    def ask(self, command):
        self.send(command)
        answer = self.line().split()
        if not answer or answer[0] != "OK":
            raise QEMUError(f"qtest: {command}: {' '.join(answer)}")
        return answer[1:]

    def ask_all(self, commands):
        """The same for many, without waiting for each answer."""
        self.send("\n".join(commands))
        for command in commands:
            if self.line().split()[:1] != ["OK"]:
                raise QEMUError(f"qtest: {command} failed")

    def write32(self, address, value):
        self.ask(f"writel {address:#x} {value:#x}")

    def read32(self, address):
        return int(self.ask(f"readl {address:#x}")[0], 0)


def probe(cache, options, folder):
    """QEMU's own device tree for this machine, and the QOM path of its GIC. Asked once, then kept."""
    name = "-".join(str(options[key]) for key in ("gic", "msi", "cpu", "cpus", "memory"))
    kept = Path(cache) / f"virt-{name}.json"
    blob = kept.with_suffix(".dtb")
    if not (kept.exists() and blob.exists()):
        sockets = folder / "probe.sock"
        process = subprocess.Popen(
            program(cache) + machine_arguments(options)
            + ["-S", "-qmp", f"unix:{sockets},server=on,wait=off"], stdin=subprocess.DEVNULL)
        try:
            monitor = Monitor(sockets, process)
            devices = monitor.ask("qom-list", path="/machine/unattached")
            gics = [device["name"] for device in devices
                    if device["type"] in ("child<arm-gicv3>", "child<arm_gic>")]
            if len(gics) != 1:
                raise QEMUError("QEMU's machine has no GIC")
            monitor.ask("dumpdtb", filename=str(folder / "virt.dtb"))
            monitor.ask("quit")
            process.wait(10)
        finally:
            process.kill()
            process.wait()
        os.replace(folder / "virt.dtb", blob)
        kept.write_text(json.dumps({"gic": f"/machine/unattached/{gics[0]}"}))
    data = blob.read_bytes()
    parse(data)
    return data, json.loads(kept.read_text())["gic"]


def function_arguments(sockets, functions):
    """A vfio-user-pci for each of smmud's functions, at the place that it says."""
    arguments, slots = [], {}
    for function in functions:
        slots.setdefault(function["device"], []).append(function["function"])
    for function in functions:
        if function["bus"] != 0:
            raise TreeError(f"{function['socket']}: only bus 0 can be had in the guest")
        device = {
            "driver": "vfio-user-pci", "bus": "pcie.0", "addr": f"{function['device']:x}.{function['function']:x}",
            "socket": {"type": "unix", "path": str(sockets / function["socket"])},
        }
        if len(slots[function["device"]]) > 1:
            device["multifunction"] = True
        arguments += ["-device", json.dumps(device)]
    return arguments


def carrier_arguments(socket_path, bus):
    """The function that carries the window, on a bus that the guest never looks at. Only a bridge may sit on a pxb."""
    device = {"driver": "vfio-user-pci", "bus": "carrier-port", "addr": "0.0",
              "socket": {"type": "unix", "path": str(socket_path)}}
    return [
        "-device", f"pxb-pcie,id=carrier-host,bus_nr={bus},bus=pcie.0,addr=0x1f",
        "-device", "pcie-root-port,id=carrier-port,bus=carrier-host,addr=0.0,chassis=255,slot=255",
        "-device", json.dumps(device),
    ]


def open_window(qtest, bus, base, size):
    """What a guest's PCI code would do for the carrier, which it does not see: bus numbers, bridge window, BAR 0.

    Not possible earlier: the reset of the machine, which comes before its first instruction, clears the BAR.
    """
    port, carrier = ECAM + (bus << CONFIG_BUS_SHIFT), ECAM + (bus + 1 << CONFIG_BUS_SHIFT)
    if size & size - 1 or base % size:
        raise TreeError(f"smmud's window of {size:#x} at {base:#x} is no BAR: a power of two, and aligned to it")
    # Primary, secondary, subordinate bus; memory base and limit in MiB; memory space and bus master on.
    qtest.write32(port + 0x18, bus | bus + 1 << 8 | bus + 1 << 16)
    qtest.write32(port + 0x20, base >> 16 & 0xFFF0 | base + size - 1 & 0xFFF00000)
    qtest.write32(port + 0x04, 0x7)
    bind_messages(qtest, carrier, base)
    qtest.write32(carrier + 0x10, base)
    qtest.write32(carrier + 0x04, 0x7)
    if qtest.read32(carrier + 0x10) & ~0xF != base:
        raise QEMUError(f"the carrier's BAR did not take {base:#x}")


def bind_messages(qtest, carrier, base):
    """Has the carrier's MSI-X vector n send what a message of 32 + n to the MSI frame is.

    smmud signals the vector then: QEMU's main loop reads one eventfd, where a line of qtest costs it a read, an answer
    and a turn in which it holds its lock while the interrupted CPU waits for that. The table is in BAR 2, which stands
    at the window's place for that long.
    """
    capability = qtest.read32(carrier + 0x34) & 0xFF
    if not capability or qtest.read32(carrier + capability) & 0xFF != 0x11:
        return
    typer = qtest.read32(MSI_FRAME + MSI_TYPER)
    first, count = typer >> 16 & 0x3FF, typer & 0x3FF
    size = (qtest.read32(carrier + capability) >> 16 & 0x7FF) + 1
    qtest.write32(carrier + 0x18, base)
    qtest.write32(carrier + 0x04, 0x7)
    # From the last to the first: QEMU makes room for all at once.
    entries = [(base + 16 * (data - 32), data) for data in range(first, min(first + count, 32 + size))]
    qtest.ask_all([
        f"writel {entry + offset:#x} {value:#x}" for entry, data in reversed(entries)
        for offset, value in ((0, MSI_FRAME + MSI_SETSPI_NS), (4, 0), (8, data), (12, 0))
    ])
    qtest.write32(carrier + capability, 1 << 31)
    qtest.write32(carrier + 0x04, 0)
    qtest.write32(carrier + 0x18, 0)


if __name__ == "__main__":
    # qemu.py CACHE: the command that starts QEMU, a word in each line.
    print("\n".join(program(sys.argv[1])))
