// libFuzzer's way in. SMMUD_FUZZ_TARGET names the surface.

import FuzzTargets
import Glibc

/// The surface of this process.
private let target: FuzzTarget = {
    let name = getenv("SMMUD_FUZZ_TARGET").map { String(cString: $0) } ?? ""
    guard let target = FuzzTarget(rawValue: name) else {
        let names = FuzzTarget.allCases.map(\.rawValue).joined(separator: ", ")
        let complaint = "smmud-fuzz: SMMUD_FUZZ_TARGET is '\(name)'; it must be one of: \(names)\n"
        _ = complaint.withCString { write(STDERR_FILENO, $0, strlen($0)) }
        exit(2)
    }
    return target
}()

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzOneInput(_ start: UnsafeRawPointer?, _ count: Int) -> CInt {
    target.run(UnsafeRawBufferPointer(start: start, count: count))
    return 0
}
