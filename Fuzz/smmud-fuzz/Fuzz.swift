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

private typealias Arguments = UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>

@_silgen_name("LLVMFuzzerRunDriver")
private func runDriver(
    _ count: UnsafeMutablePointer<CInt>,
    _ arguments: UnsafeMutablePointer<Arguments>,
    _ callback: @convention(c) (UnsafeRawPointer?, Int) -> CInt
) -> CInt

/// SwiftPM has the program start here, and not at libFuzzer's own main function.
@_cdecl("smmud_fuzz_main")
public func fuzzMain(_ count: CInt, _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> CInt {
    _ = target
    var count = count
    var arguments = arguments
    return runDriver(&count, &arguments) { start, count in
        target.run(UnsafeRawBufferPointer(start: start, count: count))
        return 0
    }
}
