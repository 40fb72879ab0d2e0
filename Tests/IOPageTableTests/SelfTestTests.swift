// The 126 configurations of the kernel's io-pgtable self-test, 63 of each stage, and random sequences against a model.

import AddressSpace
import SeededRandomness
import Testing

@testable import IOPageTable

@Suite("Page tables in every configuration")
struct SelfTestTests {
    struct Shape: Sendable, CustomTestStringConvertible {
        let granule: PageTableGranule
        let input: Int
        let output: Int
        var testDescription: String { "\(granule), ias \(input), oas \(output)" }
    }

    static let shapes: [Shape] = {
        let sizes = [32, 36, 40, 42, 44, 48]
        return PageTableGranule.allCases.flatMap { granule in
            sizes.flatMap { output in
                sizes.filter { $0 <= output }.map { Shape(granule: granule, input: $0, output: output) }
            }
        }
    }()

    @Test func thereAreSixtyThree() { #expect(Self.shapes.count == 63) }

    static let stages: [PageTableStage] = [.one, .two(forcesWriteBack: false)]

    @Test("the kernel's self-test sequence passes", arguments: shapes, stages)
    func kernelSequence(_ shape: Shape, _ stage: PageTableStage) throws {
        let gib: UInt64 = 1 << 30
        var bench = try PageTableBench(
            shape.granule,
            input: shape.input,
            output: shape.output,
            stage: stage
        )
        for iova in [42, gib + 42, 2 * gib + 42] { #expect(try bench.physical(iova) == nil) }

        let sizes = bench.table.configuration.pageByteCounts
        for (index, size) in sizes.enumerated() {
            let iova = UInt64(index) * gib
            try bench.map(iova, iova, size, [.read, .write, .noExecute, .cacheable])
            #expect(throws: IOPageTableError.alreadyMapped(IOVirtualAddress(iova))) {
                try bench.map(iova, iova + size, size, [.read, .noExecute])
            }
            #expect(try bench.physical(iova + 42) == iova + 42)
        }
        for (index, size) in sizes.enumerated() {
            let iova = UInt64(index) * gib
            #expect(try bench.unmap(iova, size) == UnmapOutcome(byteCount: size, stoppedBy: nil))
            #expect(try bench.physical(iova + 42) == nil)
            try bench.map(iova, iova, size, [.write])
            #expect(try bench.physical(iova + 42) == iova + 42)
        }
        let size = try #require(sizes.last)
        let last = (1 << UInt64(shape.input)) - size
        try bench.map(last, last, size, [.read, .write, .noExecute, .cacheable])
        #expect(try bench.unmap(last, size).byteCount == size)
    }

    struct Walkabout: Sendable, CustomTestStringConvertible {
        let granule: PageTableGranule
        let policy: PartialUnmapPolicy
        let seed: UInt64
        var stage: PageTableStage { seed == 3 ? .two(forcesWriteBack: false) : .one }
        var testDescription: String { "\(granule), \(policy), seed \(seed), stage \(stage)" }
    }

    static let walkabouts = PageTableGranule.allCases.flatMap { granule in
        [PartialUnmapPolicy.refuse, .split].flatMap { policy in
            (1...3).map { Walkabout(granule: granule, policy: policy, seed: $0) }
        }
    }

    @Test("random maps and unmaps agree with a dictionary", arguments: walkabouts)
    func randomSequence(_ run: Walkabout) throws {
        var random = SplitMix(seed: run.seed)
        var bench = try PageTableBench(run.granule, partialUnmap: run.policy, stage: run.stage)
        let frames = bench.frames
        var model = PageModel(configuration: bench.table.configuration)
        for _ in 0..<150 {
            let request = model.randomRequest(&random)
            bench.log.entries = []
            if Bool.random(using: &random) {
                model.checkMap(request, &bench)
            } else {
                try model.checkUnmap(request, &bench)
            }
        }
        try model.checkTranslations(bench)
        #expect(frames.liveCount == bench.table.tableCount)
    }
}

/// What ought to be mapped, page by page.
struct PageModel {
    struct Request {
        let iova: UInt64
        let physical: UInt64
        let pages: UInt64
    }
    let configuration: PageTableConfiguration
    let page: UInt64
    let block: UInt64
    /// How many pages the window of the test holds: some blocks' worth.
    let windowPages: UInt64
    var pages: [UInt64: UInt64] = [:]

    init(configuration: PageTableConfiguration) {
        self.configuration = configuration
        page = configuration.pageByteCounts[0]
        block = configuration.pageByteCounts[1]
        windowPages = 3 * block / page
    }

    /// A range within the window: often aligned to blocks, often short.
    func randomRequest(_ random: inout SplitMix) -> Request {
        let perBlock = block / page
        let isAligned = UInt64.random(in: 0..<3, using: &random) == 0
        var first = UInt64.random(in: 0..<windowPages, using: &random)
        var count = UInt64.random(in: 1...UInt64.random(in: 1...perBlock + 8, using: &random), using: &random)
        if isAligned {
            first -= first % perBlock
            count = perBlock * UInt64.random(in: 1...2, using: &random)
        }
        count = min(count, windowPages - first)
        let shift = isAligned ? 0 : UInt64.random(in: 0...1, using: &random)
        return Request(iova: first * page, physical: 0x40_0000_0000 + (first + shift) * page, pages: count)
    }

    mutating func checkMap(_ request: Request, _ bench: inout PageTableBench) {
        let wanted = (0..<request.pages).map { request.iova + $0 * page }
        let firstTaken = wanted.first { pages[$0] != nil }
        do throws(IOPageTableError) {
            try bench.map(request.iova, request.physical, request.pages * page)
            #expect(firstTaken == nil)
            for (index, iova) in wanted.enumerated() { pages[iova] = request.physical + UInt64(index) * page }
        } catch {
            guard case .alreadyMapped(let iova) = error else {
                Issue.record("map failed with \(error)")
                return
            }
            #expect(firstTaken != nil)
            #expect(pages[iova.rawValue] != nil)
        }
    }

    mutating func checkUnmap(_ request: Request, _ bench: inout PageTableBench) throws {
        let outcome = try bench.unmap(request.iova, request.pages * page)
        let end = request.iova + outcome.byteCount
        for iova in stride(from: request.iova, to: end, by: Int(page)) where pages[iova] != nil {
            #expect(bench.log.covers(iova), "0x\(String(iova, radix: 16)) was unmapped without a word")
            pages[iova] = nil
        }
        switch outcome.stoppedBy {
        case nil: #expect(outcome.byteCount == request.pages * page)
        case .notMapped(let iova)?:
            #expect(iova.rawValue == end)
            #expect(pages[end] == nil)
        case .partOfBlock(let iova, let size)?:
            #expect(configuration.partialUnmap == .refuse)
            #expect(iova.rawValue == end)
            #expect(size == block)
            #expect(pages[end] != nil)
        case let error?: Issue.record("unmap stopped with \(error)")
        }
    }

    func checkTranslations(_ bench: borrowing PageTableBench) throws {
        for index in 0..<windowPages {
            let found = try bench.physical(index * page)
            if found != pages[index * page] {
                Issue.record("page \(index): \(String(describing: found))")
                return
            }
        }
    }
}
