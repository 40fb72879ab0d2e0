#!/usr/bin/env python3
"""A device works in this program's own memory, at this program's own addresses (shared virtual addresses).

    sva_client.py accelerator@400000

It shares one mapping, binds the device to its address space, and has it read a text and write another one behind it.
No address is ever mapped by hand: the device's transactions fault, and the daemon's driver brings the pages in. The
daemon runs with --driver own and an SMMU that stalls (--smmu full); the device needs pasid-num-bits and dma-can-stall.
"""
import argparse, ctypes, mmap, os, sys

from dma_client import READ, SUBSTREAM, WRITE, Client, Refused

PROCESS_MAP, PROCESS_UNMAP, PROCESS_BIND, PROCESS_UNBIND = range(13, 17)
SIZE = 1 << 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", help="a device's name or alias")
    parser.add_argument("--socket", default=os.environ.get("SMMUD_DMA_SOCKET", "/run/smmud/dma.sock"))
    options = parser.parse_args()

    file = os.memfd_create("sva-client")
    os.ftruncate(file, SIZE)
    memory = mmap.mmap(file, SIZE)
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)
    text = b"a text of this program"
    memory[0x5000:0x5000 + len(text)] = text

    client = Client(options.socket)
    device = client.open(options.device)
    client.call(PROCESS_MAP, stream=mmap.PROT_READ | mmap.PROT_WRITE, iova=address, count=SIZE, descriptors=[file])
    pasid = client.call(PROCESS_BIND, endpoint=device)[0]["handle"]
    requester = dict(endpoint=device, flags=SUBSTREAM, substream=pasid)

    answer, data = client.call(READ, iova=address + 0x5000, count=len(text), **requester)
    if answer["status"] == 0:
        reply = data.upper()
        answer, _ = client.call(WRITE, reply, iova=address + 0x9000, count=len(reply), **requester)
    if answer["status"] != 0:
        print(f"fault at {answer['address']:#x}", file=sys.stderr)
        return 3
    print(memory[0x9000:0x9000 + len(text)].decode())

    client.call(PROCESS_UNMAP, iova=address, count=SIZE)
    answer, _ = client.call(READ, iova=address + 0x5000, count=1, **requester)
    print("after the unmap:", "it still reads" if answer["status"] == 0 else f"event {answer['event']:#x}")
    client.call(PROCESS_UNBIND, endpoint=device)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Refused, OSError) as problem:
        print(f"sva_client: {problem}", file=sys.stderr)
        sys.exit(1)
