#!/usr/bin/env python3
"""Makes the guest's initial RAM disk: initrd.py CACHE RELEASE [PROGRAM...], with that release's modules, and
arm64 programs to put into /bin.

Not compressed, modules neither: the guest would decompress them under emulation. Does nothing when it is there and
made of the same things.
"""

import hashlib
import lzma
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Besides what they need. A module that this kernel has built in is none of its files, and is left out.
MODULES = [
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "virtio_console", "nvme", "arm_smmuv3_pmu",
    "ext4", "crc32c_generic", "vfio-pci", "vfio_iommu_type1",
]
LIBRARIES = ["libc.so.6", "libext2fs.so.2", "libe2p.so.2", "libcom_err.so.2", "libblkid.so.1", "libuuid.so.1"]


class Archive:
    """A cpio archive, format "newc": what the kernel unpacks. Times and owners are 0, so equal content is equal."""

    def __init__(self):
        self.parts = []
        self.number = 0
        self.folders = set()

    def entry(self, name, mode, data=b"", device=(0, 0)):
        self.number += 1
        name = name.encode() + b"\0"
        fields = [self.number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        for part in (head, data):
            self.parts.append(part + b"\0" * (-len(part) % 4))

    def folder(self, name):
        if name and name not in self.folders:
            self.folder(os.path.dirname(name))
            self.folders.add(name)
            self.entry(name, 0o040755)

    def file(self, name, data, mode=0o644):
        self.folder(os.path.dirname(name))
        self.entry(name, 0o100000 | mode, data)

    def data(self):
        self.number = -1
        self.entry("TRAILER!!!", 0)
        return b"".join(self.parts)


def module_files(kernel):
    """(kernel version, file of each module by its name)."""
    releases = sorted((kernel / "modules").iterdir())
    if len(releases) != 1:
        raise SystemExit(f"initrd: one kernel is wanted in {kernel}/modules, there are {len(releases)}")
    files = {re.sub(r"\.ko(\.xz)?$", "", path.name).replace("-", "_"): path for path in releases[0].rglob("*.ko*")}
    return releases[0].name, files


def read_module(path):
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def needs(data):
    """What `depends=` in a module's .modinfo says."""
    found = re.search(rb"\0depends=([^\0]*)\0", data)
    return [name.decode().replace("-", "_") for name in found[1].split(b",") if name] if found else []


def add_modules(archive, kernel):
    release, files = module_files(kernel)
    loaded, order = {}, []

    def add(name):
        """The names of what has to be loaded for it, itself last."""
        name = name.replace("-", "_")
        if name not in files:
            return []
        if name not in loaded:
            data = read_module(files[name])
            archive.file(f"lib/modules/{release}/{name}.ko", data)
            before = [one for other in needs(data) for one in add(other)]
            loaded[name] = [*dict.fromkeys(before), name]
        return loaded[name]

    for name in MODULES:
        chain = add(name)
        if chain:
            order.append(f"{name}: {' '.join(chain)}")
    archive.file(f"lib/modules/{release}/order", ("\n".join(order) + "\n").encode())


def build(root, kernel, programs):
    archive = Archive()
    archive.folder("dev")
    # Before devtmpfs is mounted, init's own output goes here.
    archive.entry("dev/console", 0o020600, device=(5, 1))
    archive.file("bin/busybox", (root / "usr/bin/busybox").read_bytes(), 0o755)
    for name in ("mke2fs", "e2fsck"):
        archive.file(f"sbin/{name}", (root / "usr/sbin" / name).read_bytes(), 0o755)
    libraries = root / "usr/lib/aarch64-linux-gnu"
    archive.file("lib/ld-linux-aarch64.so.1", (libraries / "ld-linux-aarch64.so.1").read_bytes(), 0o755)
    for name in LIBRARIES:
        archive.file(f"lib/aarch64-linux-gnu/{name}", (libraries / name).read_bytes(), 0o755)
    archive.file("init", (HERE / "guest/init").read_bytes(), 0o755)
    for script in sorted((HERE / "guest").glob("*.sh")):
        archive.file(f"smmud/{script.name}", script.read_bytes())
    for program in programs:
        archive.file(f"bin/{program.name}", program.read_bytes(), 0o755)
    add_modules(archive, kernel)
    return archive.data()


def main():
    cache, release, programs = Path(sys.argv[1]), sys.argv[2], list(map(Path, sys.argv[3:]))
    kernel = cache / f"kernel-{release}"
    stamp = hashlib.sha256()
    for path in [Path(__file__), *sorted((HERE / "guest").iterdir()), *programs, cache / "fetched", kernel / "config"]:
        stamp.update(path.read_bytes())
    made, kept = cache / f"initrd-{release}", cache / f"initrd-{release}.stamp"
    if made.exists() and kept.exists() and kept.read_text() == stamp.hexdigest():
        return
    part = cache / f"initrd-{release}.part.{os.getpid()}"
    part.write_bytes(build(cache / "guest", kernel, programs))
    os.replace(part, made)
    kept.write_text(stamp.hexdigest())


if __name__ == "__main__":
    main()
