#!/usr/bin/env python3
"""A client of smmud's DMA socket in Python's standard library alone. docs/dma-protocol.md is its specification.

As a program it reads or writes on behalf of a device, inline or through memory that it shares with the daemon:

    dma_client.py read  dma-controller@100000 0x10000 64
    dma_client.py write sid:0:0x42   0x10000 "some text" --shared

It prints what it read, or the fault, and exits with 3 where there was one.
"""
import argparse, mmap, os, socket, struct, sys

HEADER = struct.Struct("<IHHQIIIIQQQQ")  # length, opcode, flags, id, endpoint, stream, substream, buffer, iova, ...
ANSWER = struct.Struct("<IHHQQQIIQQQ")  # length, opcode, status, id, transferred, address, event, handle, values
HELLO, ECHO, OPEN, CLOSE, READ, WRITE, ATTACH_BUFFER, DETACH_BUFFER, RAM_INFO, RAM_FD = range(1, 11)
SUBSTREAM, PRIVILEGED, INSTRUCTION, BUFFER, DIRECT, STREAM = (1 << bit for bit in range(6))
MAGIC = int.from_bytes(b"SMMUDDMA", "little")


class Refused(Exception):
    """The daemon did not carry the request out."""


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)
        self.id = 0
        self.descriptors = []
        self.inline_max = self.call(HELLO, iova=MAGIC, count=1)[0]["value0"]

    def call(self, opcode, payload=b"", flags=0, endpoint=0, stream=0, substream=0, buffer=0, iova=0, count=0,
             offset=0, descriptors=()):
        """Sends one request and waits for its answer: a dictionary of the header's fields, and the payload."""
        self.id += 1
        header = HEADER.pack(64 + len(payload), opcode, flags, self.id, endpoint, stream, substream, buffer, iova,
                             count, offset, 0)
        sent = socket.send_fds(self.socket, [header], list(descriptors))
        self.socket.sendall(header[sent:] + payload)
        names = "length opcode status id transferred address event handle value0 value1 value2".split()
        answer = dict(zip(names, ANSWER.unpack(self.receive(64))))
        payload = self.receive(answer["length"] - 64)
        if answer["status"] >= 16:
            raise Refused(f"status {answer['status']}: {payload.decode()}")
        return answer, payload

    def receive(self, count):
        data = b""
        while len(data) < count:
            piece, descriptors, _, _ = socket.recv_fds(self.socket, count - len(data), 4)
            if not piece:
                raise ConnectionError("the daemon closed the connection")
            data += piece
            self.descriptors += descriptors
        return data

    def open(self, name):
        """A handle for a device's name, or for sid:SMMU:STREAM."""
        if name.startswith("sid:"):
            _, smmu, stream = name.split(":")
            return self.call(OPEN, flags=DIRECT, endpoint=int(smmu, 0), stream=int(stream, 0))[0]["handle"]
        return self.call(OPEN, name.encode())[0]["handle"]

    def share(self, size):
        """Memory that the daemon sees too: its handle, and the mapping."""
        file = os.memfd_create("dma-client")
        os.ftruncate(file, size)
        handle = self.call(ATTACH_BUFFER, count=size, descriptors=[file])[0]["handle"]
        memory = mmap.mmap(file, size)
        os.close(file)
        return handle, memory


def main():
    number = lambda text: int(text, 0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["read", "write"])
    parser.add_argument("device", help="a device's name or alias, or sid:SMMU:STREAM")
    parser.add_argument("iova", type=number)
    parser.add_argument("what", help="how many bytes to read, or the text to write")
    parser.add_argument("--socket", default=os.environ.get("SMMUD_DMA_SOCKET", "/run/smmud/dma.sock"))
    parser.add_argument("--substream", type=number)
    parser.add_argument("--privileged", action="store_true")
    parser.add_argument("--instruction", action="store_true", help="an instruction fetch; reads only")
    parser.add_argument("--shared", action="store_true", help="through shared memory instead of inline")
    options = parser.parse_args()

    client = Client(options.socket)
    flags = SUBSTREAM if options.substream is not None else 0
    flags |= (PRIVILEGED if options.privileged else 0) | (INSTRUCTION if options.instruction else 0)
    data = b"" if options.verb == "read" else options.what.encode()
    count = number(options.what) if options.verb == "read" else len(data)
    request = dict(endpoint=client.open(options.device), substream=options.substream or 0, iova=options.iova,
                   count=count)
    opcode = READ if options.verb == "read" else WRITE
    if options.shared:
        buffer, memory = client.share(max(count, 1))
        memory[:len(data)] = data
        answer, _ = client.call(opcode, flags=flags | BUFFER, buffer=buffer, **request)
        data = memory[:answer["transferred"]]
    else:
        answer, data = client.call(opcode, data, flags=flags, **request)

    if options.verb == "read":
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    if answer["status"] != 0:
        kind = {1: f"event {answer['event']:#x}", 2: "aborted", 3: "bus error"}.get(answer["status"], "?")
        print(f"fault: {kind} at {answer['address']:#x} after {answer['transferred']} bytes", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Refused, OSError) as problem:
        print(f"dma_client: {problem}", file=sys.stderr)
        sys.exit(1)
