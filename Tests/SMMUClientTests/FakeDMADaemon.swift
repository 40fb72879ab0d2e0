// A DMA daemon of 100 lines for the clients' tests: one device, one mapped page, no SMMU.

import CLinux
import ControlProtocol
import Glibc

/// Serves one connection.
///
/// The device `dma@1000` has StreamID 0x42 and sees 4096 bytes at IOVA 0x10000; every
/// access beyond ends in F_TRANSLATION. RAM is one region of 8192 bytes at 0x80000000; the page is its second half.
struct FakeDMADaemon: ~Copyable {
    private let socket: CInt
    private let memory: Memory
    private var decoder = DMARequestDecoder()
    private var received = StreamBuffer(capacity: 4096)
    private var descriptors: [CInt] = []
    private var buffers: [UInt32: UnsafeMutableRawBufferPointer] = [:]

    private static let page: Range<UInt64> = 0x10000..<0x11000

    /// The RAM, which may outlive a connection.
    final class Memory: @unchecked Sendable {
        // @unchecked: connections are served one after the other.
        let bytes: UnsafeMutableRawBufferPointer
        let file: CInt

        init() {
            file = smmud_memfd_create_sealed("fake", 8192)
            let base = mmap(nil, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
            bytes = UnsafeMutableRawBufferPointer(start: base, count: 8192)
        }

        deinit {
            close(file)
            munmap(bytes.baseAddress, bytes.count)
        }
    }

    init(socket: CInt, memory: Memory = Memory()) {
        self.socket = socket
        self.memory = memory
    }

    deinit {
        close(socket)
        for buffer in buffers.values { munmap(buffer.baseAddress, buffer.count) }
    }

    /// Serves until the client goes.
    mutating func run() {
        while true {
            switch decoder.next(in: received.readable) {
            case .needs(let byteCount):
                received.makeRoom(for: byteCount)
                guard receive() else { return }
            case .request(let request):
                answer(request)
                received.consume(Int(request.byteCount))
            case .rejected(let request, let rejection):
                send(rejection.answer(to: request))
                received.consume(Int(request.byteCount))
            case .broken(let request, let rejection):
                send(rejection.answer(to: request))
                return
            }
        }
    }

    private mutating func receive() -> Bool {
        let space = received.freeSpace()
        var vector = iovec(iov_base: space.baseAddress, iov_len: space.count)
        var fresh: [CInt] = [-1, -1, -1, -1]
        var count = 0
        var isTruncated = false
        let byteCount = smmud_recv_fds(socket, &vector, 1, &fresh, fresh.count, &count, &isTruncated, 0)
        guard byteCount > 0 else { return false }
        descriptors += fresh.prefix(count)
        received.filled(byteCount)
        return true
    }

    private func send(_ bytes: [UInt8], descriptors: [CInt] = []) {
        bytes.withUnsafeBytes { bytes in
            var vector = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress),
                iov_len: bytes.count
            )
            // A test's answers fit the socket's buffer.
            _ = smmud_send_fds(socket, &vector, 1, descriptors, descriptors.count, 0)
        }
    }

    private mutating func answer(_ request: DMARequest) {
        let payload = Array(request.payload(in: received.readable))
        switch request.opcode {
        case .hello:
            send(DMAResponseEncoder.message(.hello(to: request, DMALimits(inlineByteCountMax: 65536))))
        case .echo: send(DMAResponseEncoder.message(DMAResponse(to: request), payload: payload))
        case .open: open(request, payload)
        case .read, .write: transfer(request, payload)
        case .attachBuffer: attach(request)
        case .ramInfo:
            let region = DMAMemoryRegion(base: 0x8000_0000, length: 8192, fileOffset: 0, index: 0)
            send(
                DMAResponseEncoder.message(
                    DMAResponse(to: request),
                    payload: DMAMemoryRegion.payload(of: [region])
                )
            )
        case .ramFile:
            let answer = DMAResponse(to: request, value0: 0x8000_0000, value1: 8192, value2: 0)
            send(DMAResponseEncoder.message(answer), descriptors: [memory.file])
        default: send(DMAResponseEncoder.message(DMAResponse(to: request)))
        }
    }

    private func open(_ request: DMARequest, _ payload: [UInt8]) {
        guard request.flags.contains(.direct) || String(decoding: payload, as: UTF8.self) == "dma@1000" else {
            send(DMARejection(.notFound, "there is no such device").answer(to: request))
            return
        }
        let stream = request.flags.contains(.direct) ? request.stream : 0x42
        send(
            DMAResponseEncoder.message(
                DMAResponse(to: request, handle: 1, value0: UInt64(stream), value1: 0, value2: 8)
            )
        )
    }

    private mutating func attach(_ request: DMARequest) {
        guard !descriptors.isEmpty else {
            send(DMARejection(.noDescriptor, "no descriptor came").answer(to: request))
            return
        }
        let descriptor = descriptors.removeFirst()
        let base = mmap(nil, Int(request.count), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        close(descriptor)
        let handle = UInt32(buffers.count + 1)
        buffers[handle] = UnsafeMutableRawBufferPointer(start: base, count: Int(request.count))
        send(DMAResponseEncoder.message(DMAResponse(to: request, handle: handle, value0: request.count)))
    }

    private func transfer(_ request: DMARequest, _ payload: [UInt8]) {
        let end = min(Self.page.upperBound, request.iova + request.count)
        let count = Self.page.contains(request.iova) ? Int(end - request.iova) : 0
        let place = count == 0 ? 0 : Int(request.iova - Self.page.lowerBound) + 4096
        let target = UnsafeMutableRawBufferPointer(rebasing: memory.bytes[place..<place + count])
        var data: [UInt8] = []
        if let buffer = buffers[request.buffer], request.flags.contains(.buffer) {
            let shared = UnsafeMutableRawBufferPointer(rebasing: buffer[Int(request.offset)...].prefix(count))
            if request.opcode == .read {
                shared.copyMemory(from: .init(target))
            } else {
                target.copyMemory(from: .init(shared))
            }
        } else if request.opcode == .read {
            data = Array(target)
        } else {
            target.copyBytes(from: payload.prefix(count))
        }
        let isWhole = UInt64(count) == request.count
        let answer = DMAResponse(
            to: request,
            isWhole ? .ok : .fault,
            transferred: UInt64(count),
            address: isWhole ? 0 : request.iova + UInt64(count),
            event: isWhole ? 0 : 0x10
        )
        send(DMAResponseEncoder.message(answer, payload: data))
    }
}
