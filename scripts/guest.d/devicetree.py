"""Flattened device trees: reads a blob into nodes, and writes nodes as source for dtc."""

import re
import struct


class TreeError(Exception):
    pass


class Node:
    def __init__(self, name, parent=None):
        self.name = name
        self.parent = parent
        self.properties = {}
        self.children = {}

    @property
    def path(self):
        if self.parent is None:
            return "/"
        return self.parent.path.rstrip("/") + "/" + self.name

    def walk(self):
        yield self
        for child in self.children.values():
            yield from child.walk()

    def cells(self, name):
        data = self.properties.get(name, b"")
        return list(struct.unpack(f">{len(data) // 4}I", data[: len(data) // 4 * 4]))

    def cell(self, name, default):
        return (self.cells(name) or [default])[0]

    def strings(self, name):
        return [part.decode("ascii", "replace") for part in self.properties.get(name, b"").split(b"\0") if part]

    def compatible(self, *names):
        return any(name in self.strings("compatible") for name in names)

    def child(self, path):
        """The node of a relative path, or None."""
        node = self
        for part in path.strip("/").split("/"):
            node = node.children.get(part) if node and part else node
        return node


def parse(blob):
    """The root node of a blob (Devicetree Specification, chapter 5)."""
    if len(blob) < 40 or struct.unpack_from(">I", blob)[0] != 0xD00DFEED:
        raise TreeError("this is no device tree blob")
    structure, strings = struct.unpack_from(">II", blob, 8)
    position, node, root = structure, None, None
    while True:
        (token,) = struct.unpack_from(">I", blob, position)
        position += 4
        if token == 1:  # FDT_BEGIN_NODE
            end = blob.index(b"\0", position)
            name = blob[position:end].decode("ascii")
            position = (end + 4) & ~3
            child = Node(name, node)
            if node is None:
                root = child
            else:
                node.children[name] = child
            node = child
        elif token == 2:  # FDT_END_NODE
            node = node.parent
        elif token == 3:  # FDT_PROP
            size, offset = struct.unpack_from(">II", blob, position)
            end = blob.index(b"\0", strings + offset)
            name = blob[strings + offset:end].decode("ascii")
            node.properties[name] = blob[position + 8:position + 8 + size]
            position = (position + 8 + size + 3) & ~3
        elif token == 9:  # FDT_END
            return root
        elif token != 4:  # FDT_NOP
            raise TreeError(f"token {token} in the structure block")


def ranges_to_root(node, address):
    """An address of `node`'s parent bus as the CPU sees it, or None where `ranges` does not let it through."""
    bus = node.parent
    while bus.parent is not None:
        if "ranges" not in bus.properties:
            return None
        data = bus.cells("ranges")
        child_cells, size_cells = bus.cell("#address-cells", 2), bus.cell("#size-cells", 1)
        parent_cells = bus.parent.cell("#address-cells", 2)
        step = child_cells + parent_cells + size_cells
        if data:
            for at in range(0, len(data) - step + 1, step):
                first = number(data[at:at + child_cells])
                size = number(data[at + child_cells + parent_cells:at + step])
                if first <= address < first + size:
                    address += number(data[at + child_cells:at + child_cells + parent_cells]) - first
                    break
            else:
                return None
        bus = bus.parent
    return address


def number(cells):
    value = 0
    for cell in cells:
        value = value << 32 | cell
    return value


def registers(node):
    """The ranges of a node's `reg` as the CPU sees them, as (address, size). Empty where they are no addresses."""
    if node.parent is None or "reg" not in node.properties:
        return []
    address_cells, size_cells = node.parent.cell("#address-cells", 2), node.parent.cell("#size-cells", 1)
    # A bus of numbers (CPUs) has no sizes; a PCI address is three cells and no place in memory.
    if size_cells == 0 or address_cells not in (1, 2):
        return []
    data, step, found = node.cells("reg"), address_cells + size_cells, []
    for at in range(0, len(data) - step + 1, step):
        address = ranges_to_root(node, number(data[at:at + address_cells]))
        if address is not None:
            found.append((address, number(data[at + address_cells:at + step])))
    return found


def source(root):
    """The tree as text for dtc. Values are bytes: their types are lost in a blob, and not needed."""
    lines = ["/dts-v1/;", ""]

    def write(node, depth):
        indent = "\t" * depth
        lines.append(f"{indent}{node.name or '/'} {{")
        for name, value in node.properties.items():
            lines.append(f"{indent}\t{name} = [{value.hex()}];" if value else f"{indent}\t{name};")
        for child in node.children.values():
            write(child, depth + 1)
        lines.append(f"{indent}}};")

    write(root, 0)
    return "\n".join(lines) + "\n"


def size_text(value):
    """Bytes as QEMU's options take them: 1G, 1536M."""
    for unit, name in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if value and value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)


def parse_size(text):
    """0x10000000, 4096, 1M."""
    match = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)([KMG]?)", text)
    if not match:
        raise TreeError(f"{text}: no size")
    return int(match[1], 0) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]
