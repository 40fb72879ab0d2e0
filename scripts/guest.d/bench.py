#!/usr/bin/env python3
"""Measures disks in two guests that run side by side: smmud's behind smmud's SMMU, and QEMU's own behind QEMU's own.

scripts/bench-guest starts it; its options are explained there. Each guest idles while the other measures, and they
take turns, so that what else the host does falls on both.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import qemu
import run
import tree
from devicetree import TreeError, parse

DISK_SIZE = 128 << 20
KINDS = {"pci": "virtio-blk", "nvme": "nvme"}
# QEMU's virtio-blk has a queue for each CPU, of which dts/guest.dts has two; so has smmud's here. NVMe has more, which
# are looked at for a while before a doorbell is asked for: it has a host of its own here.
QUEUES = {"virtio-blk": ",queues=2", "nvme": ",poll=1000"}
# (name, pattern, bytes of a request, requests outstanding)
LOADS = [("4k-random", "random", 4096, (1, 32)), ("128k-sequential", "sequential", 131072, (1, 8))]
# A busy host, or one that is paused for a while, is no reason to give up.
SILENCE_SECONDS = 180
SIDES = ("smmud", "qemu")


class Case:
    def __init__(self, kind, direction, load, depth):
        name, self.pattern, self.block, _ = load
        self.kind, self.direction, self.depth = kind, direction, depth
        self.name = f"{KINDS[kind]}-{name}-{direction}-{depth}"
        # By side: (requests per second, host CPU seconds per request) of each round.
        self.samples = {side: [] for side in SIDES}

    def request(self, milliseconds):
        return f"{self.kind} {self.pattern} {self.direction} {self.block} {self.depth} {milliseconds}"

    def median(self, side, index=0):
        return statistics.median(sample[index] for sample in self.samples[side])

    def ratios(self):
        """smmud's requests per second by QEMU's, of each round."""
        return [own[0] / other[0] for own, other in zip(*(self.samples[side] for side in SIDES))]

    def result(self):
        ratios = self.ratios()
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        sides = {
            side: {
                "requestsPerSecond": self.median(side),
                "mebibytesPerSecond": self.median(side) * self.block / (1 << 20),
                "cpuMicrosecondsPerRequest": self.median(side, 1) * 1e6,
            } for side in SIDES
        }
        return {"name": self.name, **sides, "ratio": middle, "ratioQuartiles": [low, high], "rounds": len(ratios)}


def cases(wanted):
    every = [Case(kind, direction, load, depth) for kind in KINDS for load in LOADS
             for depth in load[3] for direction in ("read", "write")]
    return [case for case in every if wanted in case.name]


def cpu_seconds(process):
    """What a process has used of the host's CPUs, all its threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Conversation:
    """A guest that runs the scenario `bench`, by its console."""

    def __init__(self, name, console, processes, log):
        self.name, self.console, self.processes = name, console, processes
        self.log = open(log, "wb")
        self.rest = b""

    def line(self, seconds):
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            self.console.settimeout(max(0.01, end - time.monotonic()))
            try:
                data = self.console.recv(65536)
            except TimeoutError:
                raise run.GuestError(f"{self.name}: the guest says nothing for {seconds:g} s: {self.rest!r}") from None
            if not data:
                raise run.GuestError(f"{self.name}: the guest ended")
            self.log.write(data)
            self.log.flush()
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode(errors="replace").strip()

    def wait_for(self, start, seconds):
        """The rest of the next line that starts so; a check that failed is an error."""
        while True:
            line = self.line(seconds)
            if line.startswith("CHECK") and " FAILED" in line:
                raise run.GuestError(f"{self.name}: {line}")
            if line.startswith(start):
                return line[len(start):]

    def measure(self, case, milliseconds):
        """(requests per second, host CPU seconds per request)."""
        before = sum(map(cpu_seconds, self.processes))
        self.console.sendall((case.request(milliseconds) + "\n").encode())
        count, took = map(int, self.wait_for("CHECK bench ok ", SILENCE_SECONDS + milliseconds / 1000).split())
        used = sum(map(cpu_seconds, self.processes)) - before
        return count * 1e9 / took, used / count


class OwnGuest:
    """QEMU with its own SMMU, virtio-blk and NVMe, at the same places as smmud's."""

    def __init__(self, arguments, folder, options, disks):
        folder.mkdir()
        self.log = folder / "qemu.log"
        command = [
            *run.guest_command(arguments, folder, options, ",iommu=smmuv3"),
            *(word for index, disk in enumerate(disks) for word in
              ("-drive", f"if=none,id=disk{index},format=raw,cache=writeback,file={str(disk).replace(',', ',,')}")),
            "-device", "virtio-blk-pci,drive=disk0,bus=pcie.0,addr=1.0,iommu_platform=on,disable-legacy=on",
            "-device", "nvme,drive=disk1,serial=bench,bus=pcie.0,addr=2.0",
        ]
        with open(self.log, "wb") as log:
            self.process = run.start(command, log)
        try:
            self.console = qemu.Channel(folder / "console.sock", self.process).socket
        except qemu.QEMUError as error:
            self.stop()
            raise run.GuestError(f"{error}\n{self.log.read_text()[-4000:].strip()}") from None

    stop = run.Guest.stop


def make_disks(folder):
    """Four images that are equal: with data in them, so that no read finds a hole, and in the host's page cache."""
    data = random.Random(1).randbytes(1 << 20)
    paths = [folder / f"{side}-{kind}.img" for side in SIDES for kind in KINDS]
    for path in paths:
        with open(path, "wb") as file:
            for _ in range(DISK_SIZE >> 20):
                file.write(data)
    return {"smmud": paths[:2], "qemu": paths[2:]}


def measure(conversations, wanted, arguments):
    for conversation in conversations.values():
        conversation.wait_for("BENCH ready", 180)
    for case in wanted:
        for number in range(arguments.rounds + 1):
            # Each is first in every second round; the one before the first warms up and does not count.
            order = SIDES if number % 2 else SIDES[::-1]
            for side in order:
                sample = conversations[side].measure(case, arguments.milliseconds if number else 100)
                if number:
                    case.samples[side].append(sample)
        if not arguments.json:
            print_row(case)


def print_row(case):
    result = case.result()
    own, other = result["smmud"], result["qemu"]
    print(
        f"{result['name']:34}{own['requestsPerSecond']:9.0f}{other['requestsPerSecond']:9.0f}"
        f"{own['mebibytesPerSecond']:9.1f}{other['mebibytesPerSecond']:9.1f}"
        f"{own['cpuMicrosecondsPerRequest']:8.0f}{other['cpuMicrosecondsPerRequest']:8.0f}"
        f"{result['ratio']:8.2f}  {result['ratioQuartiles'][0]:.2f} to {result['ratioQuartiles'][1]:.2f}", flush=True)


def bench(arguments, folder):
    wanted = cases(arguments.filter)
    if not wanted:
        raise run.GuestError(f"no case has {arguments.filter} in its name: {', '.join(one.name for one in cases(''))}")
    disks = make_disks(folder)
    arguments.device = [
        f"{name},at=0000:00:{slot:02}.0,file={str(disk).replace(',', ',,')}{QUEUES[name]}"
        for slot, (name, disk) in enumerate(zip(KINDS.values(), disks["smmud"]), 1)
    ]
    arguments.disk, arguments.qemu = [], []
    options, board, blob, gic, window, functions, carrier_bus = run.machine(arguments, folder)
    daemon, guests, complaint = run.Daemon(arguments, board, folder, gic), [], None
    try:
        guest = run.Guest(arguments, folder, options, blob, daemon.sockets, window, functions, carrier_bus)
        guests.append(guest)
        other = OwnGuest(arguments, folder / "qemu", options, disks["qemu"])
        guests.append(other)
        conversations = {
            "smmud": Conversation("smmud", guest.console, [guest.process, daemon.process], folder / "console.log"),
            "qemu": Conversation("qemu", other.console, [other.process], folder / "qemu/console.log"),
        }
        if arguments.verbose:
            print(f"bench-guest: smmuctl --socket {folder / 'control.sock'}; QEMU is process {guest.process.pid}, "
                  f"smmud {daemon.process.pid}", file=sys.stderr)
        if not arguments.json:
            print(f"{'':34}{'requests/s':^18}{'MiB/s':^18}{'host us each':^16}  ratio of requests/s\n"
                  f"{'':34}" + f"{'smmud':>9}{'QEMU':>9}" * 2 + f"{'smmud':>8}{'QEMU':>8}{'median':>8}  quartiles", flush=True)
        measure(conversations, wanted, arguments)
    finally:
        complaint = daemon.complaint()
        for one in guests:
            one.stop()
        complaint = daemon.stop() or complaint
    if complaint:
        raise run.GuestError(complaint)
    if arguments.json:
        print(json.dumps({"append": arguments.append, "smmu": arguments.smmu, "cases": [one.result() for one in wanted]}, indent=2))


def parse_arguments():
    parser = argparse.ArgumentParser()
    for name in ("cache", "smmud", "dts", "kernel", "initrd"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--append", default="")
    parser.add_argument("--smmu", default="full")
    parser.add_argument("--filter", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--milliseconds", type=int, default=1000)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    arguments.append = f"{arguments.append} quiet smmud.test=bench".strip()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="smmud-bench."))
    try:
        bench(arguments, folder)
        return 0
    except KeyboardInterrupt:
        return run.INTERRUPTED
    except (run.GuestError, TreeError, qemu.QEMUError) as error:
        print(f"bench-guest: {error}", file=sys.stderr)
        return run.FAILED
    finally:
        if arguments.logs:
            arguments.logs.mkdir(parents=True, exist_ok=True)
            for name in ("console.log", "smmud.log", "qemu.log", "qemu/console.log", "qemu/qemu.log"):
                if (folder / name).exists():
                    shutil.copy(folder / name, arguments.logs / name.replace("/", "-"))
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
