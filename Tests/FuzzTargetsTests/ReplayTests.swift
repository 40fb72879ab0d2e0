// Runs the fuzzers' seeds, their regressions and some noise, without a fuzzer.

import FuzzTargets
import Glibc
import SeededRandomness
import Testing

/// The folder of a target's inputs in this repository.
private func inputs(_ folder: String, of target: FuzzTarget) -> [(name: String, bytes: [UInt8])] {
    let root = #filePath.split(separator: "/", omittingEmptySubsequences: false).dropLast(3).joined(
        separator: "/"
    )
    let path = "\(root)/Fuzz/\(folder)/\(target.rawValue)"
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        if !name.hasPrefix(".") { names.append(name) }
    }
    return names.sorted().map { ($0, contents(of: "\(path)/\($0)")) }
}

private func contents(of path: String) -> [UInt8] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return [] }
    defer { close(descriptor) }
    var result: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
        let count = read(descriptor, &chunk, chunk.count)
        guard count > 0 else { return result }
        result += chunk[..<count]
    }
}

// One after the other: the SMMU's targets share one bank of RAM, as a fuzzer runs one input at a time.
@Suite(.serialized) struct FuzzReplayTests {
    @Test("Every regression and every seed of a fuzz target runs through", arguments: FuzzTarget.allCases)
    func recordedInputsRunThrough(_ target: FuzzTarget) {
        for (name, bytes) in inputs("Regressions", of: target) + inputs("Corpus", of: target) {
            // Printed before: a trap ends the process, and this line says which input it was.
            print("\(target.rawValue): \(name), \(bytes.count) bytes")
            bytes.withUnsafeBytes { target.run($0) }
        }
    }

    @Test("SplitMix runs through every fuzz target", arguments: FuzzTarget.allCases)
    func noiseRunsThrough(_ target: FuzzTarget) {
        for seed in UInt64(1)...300 {
            var noise = SplitMix(seed: seed)
            let bytes = (0..<Int(noise.next() % 600)).map { _ in UInt8(truncatingIfNeeded: noise.next()) }
            bytes.withUnsafeBytes { target.run($0) }
        }
    }

    @Test("The seeds are there: every target but the device tree's, whose seeds are compiled, has some")
    func seedsExist() {
        for target in FuzzTarget.allCases where target != .deviceTree {
            #expect(!inputs("Corpus", of: target).isEmpty, "Fuzz/Corpus/\(target.rawValue) is empty")
        }
    }
}
