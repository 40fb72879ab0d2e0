// A client of the control service, without a socket.

import ControlProtocol
import Machine
import Testing

/// Speaks the control protocol with a machine: text in, types out.
final class TestClient {
    let service: ControlService
    let session: ControlSession
    private var server = ControlServerCodec()
    private var codec = ControlClientCodec()

    init(_ machine: Machine) {
        service = ControlService(machine: machine, information: DaemonInformation(version: "test"))
        session = service.makeSession()
    }

    deinit { session.close() }

    /// Sends bytes as they are, and returns the answers.
    private func send(_ bytes: [UInt8]) -> [[UInt8]] {
        bytes.withUnsafeBytes { server.receive($0) }.compactMap { action in
            switch action {
            case .handle(let request): service.answer(request, session)
            case .send(let line): line
            }
        }
    }

    /// Sends a line and returns the answers as text.
    func send(_ line: String) -> [String] {
        send(Array((line + "\n").utf8)).map { String(decoding: $0, as: UTF8.self) }
    }

    /// Calls a method.
    func call<Method: ControlMethod>(_ method: Method.Type, _ parameters: Method.Parameters) throws
        -> Method.Result
    {
        let (_, line) = try codec.call(method, parameters)
        for answer in send(line) {
            for case .answer(let answer) in answer.withUnsafeBytes({ codec.receive($0) }) {
                return try answer.result(as: Method.Result.self)
            }
        }
        throw TestBoardError(description: "no answer to \(Method.name)")
    }
}
