"""The guest's device tree: QEMU's own, with the nodes of the machine that smmud reads merged into it.

dts/guest.dts states the rules for the one who writes such a machine. Phandles need no translation here: the machine's
source is compiled a second time with the phandles of QEMU's nodes given to those that stand for them, so dtc itself
puts the right numbers into every reference. QEMU's begin at 0x8000, dtc's own at 1.
"""

import subprocess
from pathlib import Path

from devicetree import TreeError, number, parse, registers, size_text, source

# These are QEMU's whatever the machine's tree says of them: QEMU makes them from its command line.
QEMU_OWN = {"chosen", "aliases", "cpus", "psci", "timer", "pmu"}
# Of a PCIe host that stands where QEMU's does, what the machine decides.
PCIE_FROM_MACHINE = (
    "reg", "bus-range", "ranges", "iommu-map", "iommu-map-mask", "msi-map", "msi-map-mask", "ats-supported",
    "dma-coherent",
)
CPU_MODELS = {f"arm,{name}": name for name in (
    "cortex-a35", "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "cortex-a76", "cortex-a710",
    "neoverse-n1", "neoverse-n2", "neoverse-v1",
)}
RAM_BASE = 0x40000000
SPI_COUNT = 256


def dtc(arguments, text=None):
    run = subprocess.run(["dtc", "-q", *arguments], input=text, capture_output=True)
    if run.returncode:
        raise TreeError(f"dtc: {run.stderr.decode().strip()}")
    return run.stdout


def compile_source(path, extra=""):
    """The blob of a source file, with more source text after it."""
    text = f'/include/ "{Path(path).resolve()}"\n{extra}'
    return dtc(["-I", "dts", "-O", "dtb", "-o", "-", "-"], text.encode())


def find_compatible(root, *names):
    return next((node for node in root.walk() if node.compatible(*names)), None)


def machine_options(board):
    """What QEMU's machine has to be like for this board: GIC, where MSIs go, CPUs, memory."""
    gic = find_compatible(board, "arm,gic-v3", "arm,cortex-a15-gic", "arm,gic-400")
    if gic is None:
        raise TreeError("the machine has no GIC (arm,gic-v3)")
    version = "3" if gic.compatible("arm,gic-v3") else "2"
    if find_compatible(gic, "arm,gic-v2m-frame"):
        msi = "gicv2m"
    else:
        msi = "its" if find_compatible(gic, "arm,gic-v3-its") else "off"
    cpus = [node for node in (board.child("cpus") or board).children.values()
            if "cpu" in node.strings("device_type")]
    if not cpus:
        raise TreeError("the machine has no CPU")
    model = next((CPU_MODELS[name] for name in cpus[0].strings("compatible") if name in CPU_MODELS), None)
    if model is None:
        raise TreeError(f"QEMU has no CPU like {' '.join(cpus[0].strings('compatible'))}")
    memory = [span for node in board.children.values() if "memory" in node.strings("device_type")
              for span in registers(node)]
    if len(memory) != 1 or memory[0][0] != RAM_BASE:
        raise TreeError(f"the machine's memory has to be one range from {RAM_BASE:#x}, where QEMU's is")
    return {"gic": version, "msi": msi, "cpus": len(cpus), "cpu": model, "memory": size_text(memory[0][1])}


def stand_in(node, others):
    """QEMU's node that stands where this one stands, or None."""
    own = registers(node)
    for other in others:
        if not set(node.strings("compatible")) & set(other.strings("compatible")):
            continue
        theirs = registers(other)
        if own and theirs and own[0][0] == theirs[0][0]:
            return other
        if not own and not theirs and node.path == other.path:
            return other
    return None


def pairs(board, qemu):
    """Each node of the machine that QEMU has too, and QEMU's."""
    others = [node for node in qemu.walk() if node.properties.get("compatible")]
    found = [(node, stand_in(node, others)) for node in board.walk() if node.parent is not None]
    return {node: other for node, other in found if other is not None}


def machine_blob(path, qemu):
    """The machine's blob, with QEMU's phandles wherever a node is QEMU's."""
    board = parse(compile_source(path))
    extra, taken = [], {node.cell("phandle", 0) for node in qemu.walk()} - {0}
    shared = pairs(board, qemu)
    for node, other in shared.items():
        if other.cell("phandle", 0):
            extra.append(f"&{{{node.path}}} {{ phandle = <{other.cell('phandle', 0):#x}>; }};")
    for node in board.walk():
        if node not in shared and node.cell("phandle", 0) in taken:
            raise TreeError(f"{node.path}: its phandle {node.cell('phandle', 0):#x} is one of QEMU's")
    return compile_source(path, "\n".join(extra) + "\n")


def spis(node, gic_phandle):
    """The SPIs of a node whose interrupts go to the GIC."""
    owner = node
    while owner is not None and "interrupt-parent" not in owner.properties:
        owner = owner.parent
    if owner is None or owner.cell("interrupt-parent", 0) != gic_phandle:
        return []
    cells = node.cells("interrupts")
    return [cells[at + 1] for at in range(0, len(cells) - 2, 3) if cells[at] == 0]


def has_no_model(node, window):
    """Whether nobody answers at a node's registers: smmud's window covers all that it has a model for."""
    return any(not (window[0] <= address and address + size <= window[0] + window[1])
               for address, size in registers(node))


def check_interrupts(node, taken, gic_phandle):
    """A node of smmud's has interrupts that are not QEMU's."""
    for spi in spis(node, gic_phandle):
        if spi in taken:
            raise TreeError(f"{node.path}: SPI {spi} is also the one of QEMU's {taken[spi]}")
        if spi >= SPI_COUNT:
            raise TreeError(f"{node.path}: there is no SPI {spi}: QEMU's GIC has {SPI_COUNT}")


def merge(board, qemu, window):
    """QEMU's tree with the machine's nodes, as source for dtc, and the paths of nodes that no model is behind.

    Those are disabled, so that the guest leaves them alone. `window` is (base, size).
    """
    left_out = []
    shared = pairs(board, qemu)
    gic = find_compatible(qemu, "arm,gic-v3", "arm,cortex-a15-gic")
    if gic not in shared.values():
        raise TreeError("the machine's GIC does not stand where QEMU's does: distributor at 0x8000000")
    gic_phandle = gic.cell("phandle", 0)
    # QEMU's PCIe host uses SPIs by its interrupt-map, which the machine keeps as it is.
    taken = {spi: node.path for node in qemu.walk() for spi in spis(node, gic_phandle)}

    def adopt(node, into):
        for child in node.children.values():
            other = shared.get(child)
            if other is not None:
                if other.compatible("pci-host-ecam-generic"):
                    for name in PCIE_FROM_MACHINE:
                        other.properties.pop(name, None)
                        if name in child.properties:
                            other.properties[name] = child.properties[name]
                adopt(child, other)
            elif node.parent is None and (child.name in QEMU_OWN or "memory" in child.strings("device_type")):
                continue
            else:
                for inner in child.walk():
                    check_interrupts(inner, taken, gic_phandle)
                    if has_no_model(inner, window):
                        inner.properties["status"] = b"disabled\0"
                        left_out.append(inner.path)
                child.parent = into
                into.children[child.name] = child

    adopt(board, qemu)
    check_window(qemu, window)
    return source(qemu), left_out


def check_window(root, window):
    """The guest's PCIe memory keeps off the window: QEMU serves it by a function that the guest does not see."""
    host = find_compatible(root, "pci-host-ecam-generic")
    if host is None:
        raise TreeError("QEMU's tree has no PCIe host")
    cells = host.cells("ranges")
    for at in range(0, len(cells) - 6, 7):
        kind, first, size = cells[at] >> 24 & 3, number(cells[at + 3:at + 5]), number(cells[at + 5:at + 7])
        if kind != 1 and first < window[0] + window[1] and window[0] < first + size:
            raise TreeError(
                f"{host.path}: its memory from {first:#x} contains smmud's window at {window[0]:#x}: let its `ranges` "
                "begin later")


def last_bus(root):
    host = find_compatible(root, "pci-host-ecam-generic")
    return (host.cells("bus-range") or [0, 0xFF])[1]
