// The driver's list of cases on the model; scripts/driver-conformance plays it on QEMU's SMMUv3 too.

import DriverConformance
import SMMUv3
import Testing

@Suite("Driver conformance")
struct DriverConformanceTests {
    @Test("on the model as it is", arguments: ConformanceCase.all)
    func model(_ test: ConformanceCase) async throws {
        try await test.run(on: try ModelConformanceBench(.stage1()))
    }

    @Test("on the model with QEMU's identification registers", arguments: ConformanceCase.all)
    func qemuIdentification(_ test: ConformanceCase) async throws {
        try await test.run(on: try ModelConformanceBench(.qemu(hasStage2: false)))
    }

    @Test("on a model with everything", arguments: ConformanceCase.all)
    func full(_ test: ConformanceCase) async throws {
        try await test.run(on: try ModelConformanceBench(.full(streamIDBits: 16)))
    }

    @Test("each capability that a case is about is there in one of these, and missing in another")
    func capabilities() throws {
        for capability in Capability.allCases {
            #expect(try capability.isThere(on: try ModelConformanceBench(.full(streamIDBits: 16))))
            #expect(try !capability.isThere(on: try ModelConformanceBench(.qemu(hasStage2: false))))
        }
    }

    @Test("no two cases have one name")
    func names() {
        #expect(Set(ConformanceCase.all.map(\.name)).count == ConformanceCase.all.count)
    }
}
