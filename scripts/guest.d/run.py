#!/usr/bin/env python3
"""Runs a guest: smmud, QEMU, the guest's console. scripts/guest starts it; its options are explained there.

Exits with what the guest says by a line `GUEST-EXIT n`, with 124 after the time is out, with 125 where smmud or QEMU
failed, and with 130 on Ctrl-C.
"""

import argparse
import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tty
from pathlib import Path

import qemu
import tree
from devicetree import TreeError, parse, parse_size

TIMED_OUT, FAILED, INTERRUPTED = 124, 125, 130
# Ctrl-A x, as in QEMU's own console, ends the guest.
ESCAPE = b"\x01"
# smmud knows no ITS, and a kernel with one ignores the MSI frame. A GICv3 in QEMU always looks as if it had one.
ALWAYS_APPEND = "irqchip.gicv3_nolpi=1"


DISK_SIZE = 64 << 20
# What the guest writes to its virtio console.
CONSOLE_FILE = "hvc0.txt"
# RAM is QEMU's, and the SMMUs' driver is the guest's.
MEMORY_OF_GUEST = ["--memory", "client", "--driver", "none"]


class GuestError(Exception):
    pass


def parse_arguments():
    parser = argparse.ArgumentParser()
    for name in ("cache", "smmud", "dts", "kernel", "initrd"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--append", default="")
    parser.add_argument("--smmu", default="full")
    parser.add_argument("--device", action="append", default=[])
    parser.add_argument("--qemu", action="append", default=[])
    parser.add_argument("--disk", action="append", default=[], type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--timeout", type=float, default=0)
    return parser.parse_args()


def devices(arguments, board, folder):
    """The --device options for smmud: the caller's, or else one device of each kind where the machine has a place."""
    if arguments.device:
        if arguments.disk:
            raise GuestError("--disk is for the devices that are there without --device; name the file in file=...")
        return [word for device in arguments.device for word in ("--device", device)]
    disks = list(arguments.disk)

    def disk():
        if disks:
            return str(disks.pop(0)).replace(",", ",,")
        path = folder / f"disk{len(list(folder.glob('disk*')))}.img"
        with open(path, "wb") as file:
            file.truncate(DISK_SIZE)
        return path

    found = []
    if tree.find_compatible(board, "pci-host-ecam-generic"):
        found += [
            f"virtio-blk,at=0000:00:01.0,file={disk()}", f"nvme,at=0000:00:02.0,file={disk()}",
            "virtio-net,at=0000:00:03.0,link=a,mac=52:54:00:00:00:01",
            "virtio-net,at=0000:00:04.0,link=a,mac=52:54:00:00:00:02",
            f"virtio-console,at=0000:00:05.0,file={folder / CONSOLE_FILE}",
        ]
    places = [node.path for node in board.walk()
              if node.compatible("virtio,mmio") and "smmud,device" not in node.properties]
    found += [f"virtio-blk,at={place},file={disk()}" for place in places[:1]]
    found += [f"virtio-rng,at={place}" for place in places[1:2]]
    if disks:
        raise GuestError(f"there is no device for --disk {disks[0]}: use --device virtio-blk,at=...,file=...")
    return [word for device in found for word in ("--device", device)]


def layout(arguments, board):
    """What smmud says of the sockets that it is going to serve. The one place that knows its form."""
    command = [arguments.smmud, board, "--smmu", arguments.smmu, *MEMORY_OF_GUEST, "--vfio-user-layout", *arguments.devices]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if run.returncode:
        raise GuestError(f"smmud refuses the machine:\n{run.stderr.strip()}")
    answer = json.loads(run.stdout)
    window = answer.get("window")
    if window is None:
        raise GuestError("smmud has nothing to show a guest: no registers, or they are too far apart")
    return (parse_size(window["base"]), parse_size(window["size"])), answer["functions"]


def end_with_parent():
    """In a child: to be killed with us, however we end."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def start(command, log, **streams):
    """A child in a session of its own: Ctrl-C in the terminal is for us, and we end it in our order."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **streams}
    return subprocess.Popen(
        list(map(str, command)), start_new_session=True, preexec_fn=end_with_parent, **streams)


class Daemon:
    """smmud, with its sockets in `folder`."""

    def __init__(self, arguments, board, folder, gic):
        self.log = folder / "smmud.log"
        self.sockets = folder / "vfio-user"
        self.sockets.mkdir()
        command = [
            arguments.smmud, board, "--smmu", arguments.smmu, *MEMORY_OF_GUEST, "--vfio-user", self.sockets,
            "--qtest", folder / "qtest.sock", "--qtest-gic", gic,
            "--control", folder / "control.sock", "--dma", folder / "dma.sock", *arguments.devices,
        ]
        with open(self.log, "wb") as log:
            self.process = start(command, log, stdout=subprocess.PIPE)
        self.wait_until_ready()

    def wait_until_ready(self):
        for line in self.process.stdout:
            if line.startswith(b"smmud: ready"):
                return
        raise GuestError(f"smmud did not start:\n{self.log.read_text().strip()}")

    def complaint(self):
        """Why a daemon that should run does not, or None."""
        status = self.process.poll()
        if status is None:
            return None
        how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
        return f"smmud {how}\n{self.log.read_text()[-4000:].strip()}"

    def stop(self):
        """Ends it. Not to end within ten seconds of being asked to is an error as well."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                return "smmud did not end when it was asked to"
        return None if self.process.returncode == 0 else self.complaint()


def guest_command(arguments, folder, options, machine=""):
    """QEMU with the guest's CPUs, memory, kernel and console. `machine` is more of its machine's options."""
    return [
        *qemu.program(arguments.cache), *qemu.machine_arguments(options, f",memory-backend=ram{machine}"),
        "-object", f"memory-backend-memfd,id=ram,size={options['memory']},share=on", "-no-reboot",
        "-kernel", arguments.kernel, "-initrd", arguments.initrd,
        "-append", f"console=ttyAMA0 panic=-1 {ALWAYS_APPEND} {arguments.append}".strip(),
        "-chardev", f"socket,id=console,path={folder / 'console.sock'},server=on,wait=off",
        "-serial", "chardev:console",
    ]


class Guest:
    """QEMU, and its console."""

    def __init__(self, arguments, folder, options, blob, sockets, window, functions, carrier_bus):
        self.log = folder / "qemu.log"
        command = [
            *guest_command(arguments, folder, options), "-S", "-dtb", blob,
            # The daemon connects as soon as there is a socket of the name that it knows, and keeps it.
            "-qtest", f"unix:{folder / 'qtest-setup.sock'},server=on,wait=off", "-qtest-log", "none",
            "-qmp", f"unix:{folder / 'qmp.sock'},server=on,wait=off",
            *qemu.carrier_arguments(sockets / "window.sock", carrier_bus),
            *qemu.function_arguments(sockets, functions), *arguments.qemu,
        ]
        with open(self.log, "wb") as log:
            self.process = start(command, log)
        try:
            self.console = qemu.Channel(folder / "console.sock", self.process).socket
            monitor = qemu.Monitor(folder / "qmp.sock", self.process)
            qtest = qemu.QTest(folder / "qtest-setup.sock", self.process)
            qemu.open_window(qtest, carrier_bus, *window)
            if qtest.read32(window[0]) == 0xFFFFFFFF:
                raise GuestError("smmud's window reads as all ones through QEMU")
            qtest.close()
            os.rename(folder / "qtest-setup.sock", folder / "qtest.sock")
            monitor.ask("cont")
            monitor.close()
        except (qemu.QEMUError, GuestError) as error:
            self.stop()
            raise GuestError(f"{error}\n{self.log.read_text()[-4000:].strip()}") from None

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Console:
    """Copies between the guest's console and ours, and looks for the guest's result."""

    def __init__(self, guest, daemon, log, deadline):
        self.guest, self.daemon, self.deadline = guest, daemon, deadline
        self.log = log
        self.rest = b""
        self.result = None
        self.panic = False
        self.escaped = False

    def take(self, data):
        """Output of the guest."""
        self.log.write(data)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        *lines, self.rest = (self.rest + data).split(b"\n")
        # A guest that never ends its line cannot make this grow.
        self.rest = self.rest[-4096:]
        for line in lines:
            word, _, number = line.strip().partition(b" ")
            if word == b"GUEST-EXIT" and number.isdigit():
                self.result = int(number) & 0xFF
            self.panic = self.panic or b"Kernel panic - not syncing" in line

    def typed(self, data):
        """Input of ours. False where it says to end."""
        for byte in data:
            key = bytes([byte])
            if self.escaped:
                self.escaped = False
                if key in b"xX":
                    return False
                self.guest.console.sendall(key)
            elif key == ESCAPE:
                self.escaped = True
            else:
                self.guest.console.sendall(key)
        return True

    def run(self, keyboard):
        with selectors.DefaultSelector() as selector:
            selector.register(self.guest.console, selectors.EVENT_READ)
            if keyboard is not None:
                selector.register(keyboard, selectors.EVENT_READ)
            while True:
                left = self.deadline - time.monotonic()
                if left <= 0:
                    return TIMED_OUT
                for key, _ in selector.select(min(left, 0.5)):
                    if key.fileobj is self.guest.console:
                        data = self.guest.console.recv(65536)
                        if not data:
                            return self.end()
                        self.take(data)
                        continue
                    data = os.read(keyboard, 4096)
                    if not data:
                        selector.unregister(keyboard)
                    elif not self.typed(data):
                        return INTERRUPTED
                if self.daemon.process.poll() is not None:
                    return FAILED

    def end(self):
        """The guest has ended."""
        try:
            self.guest.process.wait(10)
        except subprocess.TimeoutExpired:
            return FAILED
        if self.result is not None:
            return self.result
        return 1 if self.panic else FAILED


def converse(guest, daemon, log, deadline):
    """The console until the guest ends, with a terminal of ours in raw mode meanwhile."""
    console = Console(guest, daemon, log, deadline)
    guest.console.settimeout(None)
    if not sys.stdin.isatty():
        return console, console.run(None)
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        # Our own output still needs its carriage returns.
        raw = termios.tcgetattr(keyboard)
        raw[1] |= termios.OPOST | termios.ONLCR
        termios.tcsetattr(keyboard, termios.TCSANOW, raw)
        return console, console.run(keyboard)
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def machine(arguments, folder):
    """Everything that is the same for QEMU and smmud: (options, smmud's blob, the guest's blob, GIC, and so on)."""
    options = tree.machine_options(parse(tree.compile_source(arguments.dts)))
    qemu_blob, gic = qemu.probe(arguments.cache, options, folder)
    board = folder / "board.dtb"
    board.write_bytes(tree.machine_blob(arguments.dts, parse(qemu_blob)))
    arguments.devices = devices(arguments, parse(board.read_bytes()), folder)
    window, functions = layout(arguments, board)
    root = parse(qemu_blob)
    text, left_out = tree.merge(parse(board.read_bytes()), root, window)
    if left_out:
        print(f"guest: no device of smmud's is at {', '.join(left_out)}: disabled", file=sys.stderr)
    blob = folder / "guest.dtb"
    blob.write_bytes(tree.dtc(["-I", "dts", "-O", "dtb"], text.encode()))
    return options, board, blob, gic, window, functions, tree.last_bus(root) + 1


def run(arguments, folder):
    deadline = time.monotonic() + arguments.timeout if arguments.timeout else float("inf")
    options, board, blob, gic, window, functions, carrier_bus = machine(arguments, folder)
    daemon, guest, status = Daemon(arguments, board, folder, gic), None, FAILED
    try:
        guest = Guest(arguments, folder, options, blob, daemon.sockets, window, functions, carrier_bus)
        print(f"guest: smmuctl --socket {folder / 'control.sock'} shows the machine while it runs", file=sys.stderr)
        with open(folder / "console.log", "wb") as log:
            console, status = converse(guest, daemon, log, deadline)
    finally:
        if guest is not None:
            guest.stop()
        complaint = daemon.complaint() if status == FAILED else None
        complaint = daemon.stop() or complaint
    if complaint:
        raise GuestError(complaint)
    if status == TIMED_OUT:
        print(f"guest: not done after {arguments.timeout:g} s", file=sys.stderr)
    elif status == FAILED:
        raise GuestError(f"the guest ended without a result\n{guest.log.read_text()[-4000:].strip()}")
    elif console.panic:
        print("guest: the guest's kernel panicked", file=sys.stderr)
    if b"CHECK console write ok" in (folder / "console.log").read_bytes():
        status = check_console(folder / CONSOLE_FILE) or status
    return status


def check_console(path):
    """Whether what the guest's scenario wrote has come out here: 0, or 1."""
    is_there = path.exists() and b"written through the SMMU" in path.read_bytes()
    print(f"CHECK console arrives {'ok' if is_there else 'FAILED it is not in ' + str(path)}", flush=True)
    return 0 if is_there else 1


def main():
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # UNIX socket paths are 107 characters at most, so a folder of ours, not one of the repository's.
    folder = Path(tempfile.mkdtemp(prefix="smmud-guest."))
    try:
        return run(arguments, folder)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (GuestError, TreeError, qemu.QEMUError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return FAILED
    finally:
        if arguments.logs:
            arguments.logs.mkdir(parents=True, exist_ok=True)
            for name in ("console.log", "smmud.log", "qemu.log", "guest.dtb", "board.dtb"):
                if (folder / name).exists():
                    shutil.copy(folder / name, arguments.logs / name)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
