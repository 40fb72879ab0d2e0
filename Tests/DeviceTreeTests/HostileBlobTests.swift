// Blobs that were valid until somebody changed them: a load may refuse them, and never traps.

import DeviceTree
import SeededRandomness
import Testing

@Suite("Hostile blobs")
struct HostileBlobTests {
    /// Words that tend to break arithmetic, and small numbers, which are phandles and cell counts.
    private static let words: [UInt32] = [0, 1, 2, 3, 4, 5, 16, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, .max]

    /// Changes a few bytes, words or the length.
    private func mutate(_ blob: [UInt8], _ random: inout SplitMix) -> [UInt8] {
        var blob = blob
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            guard blob.count >= 8 else { return blob }
            let place = Int.random(in: 0..<blob.count - 4, using: &random)
            switch Int.random(in: 0..<8, using: &random) {
            case 0: blob.removeLast(Int.random(in: 1..<blob.count, using: &random))
            case 1...3: blob[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            case 4: blob[place] = UInt8.random(in: 0...255, using: &random)
            default:
                let word = Self.words.randomElement(using: &random) ?? 0
                let start = place & ~3
                for (offset, shift) in [24, 16, 8, 0].enumerated() {
                    blob[start + offset] = UInt8(truncatingIfNeeded: word >> UInt32(shift))
                }
            }
        }
        return blob
    }

    private func attack(_ blob: [UInt8], count: Int, seed: UInt64) {
        var random = SplitMix(seed: seed)
        var accepted = 0
        for _ in 0..<count {
            let mutant = mutate(blob, &random)
            do throws(DeviceTreeErrors) {
                _ = try BoardDescription.load(mutant)
                accepted += 1
            } catch {
                // A refusal always says why.
                if error.diagnostics.isEmpty || error.description.isEmpty {
                    Issue.record("an empty refusal; seed \(seed)")
                }
            }
        }
        // Some mutants are harmless: if none were, the tests would only ever see the first check.
        #expect(accepted > 0, "seed \(seed)")
        #expect(accepted < count, "seed \(seed)")
    }

    @Test(
        "Thousands of mutants of our own boards",
        arguments: ["dts/soc.dts", "dts/virt.dts"],
        [1, 2] as [UInt64]
    )
    func own(_ source: String, _ seed: UInt64) throws {
        attack(try compile(source), count: 1000, seed: seed)
    }

    @Test("Mutants of every broken fixture")
    func fixtures() throws {
        for (index, fixture) in Fixture.all.enumerated() {
            let blob = try compile("\(Fixture.folder)/\(fixture.name)", isForced: true)
            var random = SplitMix(seed: UInt64(index))
            for _ in 0..<20 { _ = try? BoardDescription.load(mutate(blob, &random)) }
        }
    }

    @Test("Mutants of real boards", arguments: ["arm/fvp-base-revc.dtb", "hisilicon/hip07-d05.dtb"])
    func real(_ name: String) throws {
        attack(try board(name), count: 300, seed: 3)
    }

    @Test("Every truncation of a blob is refused")
    func truncations() throws {
        let blob = try compile("dts/virt.dts")
        for length in stride(from: 0, to: blob.count, by: 7) {
            #expect(throws: DeviceTreeErrors.self) { try BoardDescription.load(Array(blob.prefix(length))) }
        }
    }

    @Test("A tree in which everything overlaps, dangles and loops is refused in reasonable space")
    func everythingWrong() throws {
        var text = "/dts-v1/; / { #address-cells = <2>; #size-cells = <2>; interrupt-parent = <1>;\n"
        for index in 0..<2000 {
            text += "n\(index) { compatible = \"arm,smmu-v3\"; reg = <0 0 0 0x20000>; interrupts = <1 2 3>; "
            text += "iommus = <\(index) 1>; interrupt-parent = <\(index + 3)>; phandle = <\(index + 2)>; };\n"
        }
        let source = try TemporaryFile(Array((text + "};").utf8))
        let blob = try run("dtc", ["-q", "-f", "-I", "dts", "-O", "dtb", source.path])
        do throws(DeviceTreeErrors) {
            _ = try BoardDescription.load(blob)
            Issue.record("it was accepted")
        } catch {
            #expect(error.diagnostics.count == 100)
        }
    }
}
