// The test engine without its face: frames, and the thread that carries commands out.

import AddressSpace
import DeviceModel
import Synchronization
import SystemPackage

/// Where an engine's messages go at the end of a command.
enum TestEngineMessage: Equatable {
    /// A vector of the function.
    case vector(Int)
    /// A write of the engine's own.
    case write(address: UInt64, data: UInt32)
}

/// Frames and their thread.
///
/// Locks: that of the frames is a leaf. That of the ports is held during DMA, and taken by the thread alone.
final class TestEngineCore: Sendable {
    private let frames: Mutex<TestEngineFrames>
    private let thread = JobThread()
    /// What became of frames whose command is under way.
    private let transfers = Mutex<[Int: TestEngineTransfer]>([:])
    private let ports = Mutex(Ports())
    private let makePort: @Sendable (_ stream: UInt32) -> (any DMAPort)?
    /// Sends a vector; nil where messages are writes.
    private let signal: (@Sendable (_ vector: Int) -> Void)?

    private struct Ports { var byStream: [UInt32: PortBox] = [:] }
    // SAFETY of @unchecked Sendable: it is only ever used by the engine's one thread.
    private struct PortBox: @unchecked Sendable { let port: any DMAPort }
    /// Beyond these the oldest are given back: a driver can name any stream.
    private static let portCountMax = 64

    init(
        pairCount: Int,
        defaultStream: UInt32,
        makePort: @escaping @Sendable (_ stream: UInt32) -> (any DMAPort)?,
        signal: (@Sendable (_ vector: Int) -> Void)?
    ) throws(Errno) {
        frames = Mutex(TestEngineFrames(pairCount: pairCount, defaultStream: defaultStream))
        self.makePort = makePort
        self.signal = signal
        let thread = thread
        try thread.start(named: "test-engine") { [weak self] job, epoch in self?.carryOut(job, epoch) }
    }

    deinit { thread.terminate() }

    // MARK: Registers

    func read(at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) -> UInt64 {
        guard offset & UInt64(width.rawValue - 1) == 0 else { throw .misaligned }
        return frames.withLock { frames in
            guard offset < UInt64(frames.byteCount) else { return 0 }
            return frames.read(at: Int(offset), byteCount: width.rawValue)
        }
    }

    func write(_ value: UInt64, at offset: UInt64, width: AccessWidth) throws(RegisterAccessError) {
        guard offset & UInt64(width.rawValue - 1) == 0 else { throw .misaligned }
        let job: Int? = frames.withLock { frames in
            guard offset < UInt64(frames.byteCount) else { return nil }
            let place = Int(offset)
            guard let (frame, inFrame) = frames.userFrame(at: place) else {
                frames.write(value, at: place, byteCount: width.rawValue)
                return nil
            }
            // The command word is written as a word, or with its neighbour.
            guard inFrame < TestEngineFrame.control else {
                // Counts are the engine's.
                guard !(TestEngineFrame.launched..<TestEngineFrame.messageAddress).contains(inFrame) else {
                    return nil
                }
                frames.write(value, at: place, byteCount: width.rawValue)
                return nil
            }
            guard width.rawValue >= 4 else { return nil }
            if width == .doubleword {
                frames.set(UInt32(truncatingIfNeeded: value >> 32), TestEngineFrame.control, ofUser: frame)
            }
            return launch(TestEngineCommand(rawValue: UInt32(truncatingIfNeeded: value)), frame, &frames)
        }
        if let job { thread.enqueue(job) }
    }

    /// A write of `cmd`.
    ///
    /// - Returns: The frame, where it has a command to carry out.
    private func launch(_ command: TestEngineCommand, _ frame: Int, _ frames: inout TestEngineFrames) -> Int?
    {
        // One that runs is not to be stopped.
        guard !frames.command(of: frame).isTransfer else { return nil }
        if command == .halted || command == .noFrame {
            frames.set(TestEngineCommand.halted.rawValue, TestEngineFrame.command, ofUser: frame)
            return nil
        }
        guard let transfer = TestEngineTransfer(frames, frame: frame, command) else {
            frames.set(TestEngineCommand.misconfigured.rawValue, TestEngineFrame.command, ofUser: frame)
            return nil
        }
        frames.set(command.rawValue, TestEngineFrame.command, ofUser: frame)
        let launched = frames.user32(TestEngineFrame.launched, of: frame)
        frames.set(launched &+ 1, TestEngineFrame.launched, ofUser: frame)
        transfers.withLock { $0[frame] = transfer }
        return frame
    }

    /// When this returns, no DMA of before is to come.
    func reset() {
        thread.cancel()
        transfers.withLock { $0 = [:] }
        frames.withLock { $0.reset() }
    }

    // MARK: The thread

    private func carryOut(_ frame: Int, _ epoch: UInt64) {
        guard let transfer = transfers.withLock({ $0.removeValue(forKey: frame) }) else { return }
        ports.withLock { ports in
            guard let port = makeOrFindPort(transfer.stream, &ports) else {
                return finish(frame, epoch, .misconfigured, sum: 0, faultAddress: nil, nil)
            }
            do throws(DMAFault) {
                let sum = try transfer.run(port) { thread.isCancelled(since: epoch) }
                finish(frame, epoch, .halted, sum: sum, faultAddress: nil, port)
            } catch {
                finish(frame, epoch, .error, sum: 0, faultAddress: error.address.rawValue, port)
            }
        }
    }

    private func makeOrFindPort(_ stream: UInt32, _ ports: inout Ports) -> (any DMAPort)? {
        if let box = ports.byStream[stream] { return box.port }
        guard let port = makePort(stream) else { return nil }
        if ports.byStream.count >= Self.portCountMax { ports.byStream = [:] }
        ports.byStream[stream] = PortBox(port: port)
        return port
    }

    private func finish(
        _ frame: Int,
        _ epoch: UInt64,
        _ result: TestEngineCommand,
        sum: UInt64,
        faultAddress: UInt64?,
        _ port: (any DMAPort)?
    ) {
        let message: TestEngineMessage? = frames.withLock { frames in
            guard !thread.isCancelled(since: epoch) else { return nil }
            if frames.command(of: frame) == .sum, result == .halted {
                frames.set64(sum, TestEngineFrame.data1, ofUser: frame)
            }
            if let faultAddress { frames.set64(faultAddress, TestEngineFrame.data2, ofUser: frame) }
            frames.set(result.rawValue, TestEngineFrame.command, ofUser: frame)
            let returned = frames.user32(TestEngineFrame.returned, of: frame)
            frames.set(returned &+ 1, TestEngineFrame.returned, ofUser: frame)
            let address = frames.user64(TestEngineFrame.messageAddress, of: frame)
            guard address != 0 else { return nil }
            let data = frames.user32(TestEngineFrame.messageData, of: frame)
            return signal == nil ? .write(address: address, data: data) : .vector(Int(data))
        }
        switch message {
        case .vector(let vector): signal?(vector)
        case .write(let address, let data):
            do throws(DMAFault) {
                try port?.store(UInt64(data), .word, at: IOVirtualAddress(address))
            } catch {
                frames.withLock { frames in
                    let control = frames.user32(TestEngineFrame.control, of: frame)
                    frames.set(control | 1, TestEngineFrame.control, ofUser: frame)
                }
            }
        case nil: break
        }
    }
}
