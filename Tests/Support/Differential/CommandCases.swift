// Cases that are commands, some of them illegal.

import AddressSpace
import SMMUv3Spec

extension CaseGenerator {
    /// Commands that are illegal for this SMMU, and that QEMU executes all the same.
    static let accepted: [Command] = {
        var prefetch = Command.prefetchConfig(StreamID(8))
        prefetch.ssec = true
        var address = Command.prefetchAddr(StreamID(8), address: 0x1000)
        address.ssec = true
        let el3 = [Opcode(rawValue: 0x18), Opcode(rawValue: 0x1A)].map { Command(opcode: $0) }
        let range = TLBIRange(num: 0, scale: 0, ttl: 0, tg: 1)
        return el3 + [
            .sync(cs: 3), prefetch, address, .tlbiEL2All(), .tlbiEL2ASID(asid: 1),
            .tlbiEL2VA(asid: 1, address: 0x1000, leaf: true), .tlbiEL2VAA(address: 0x1000, leaf: true),
            .resume(StreamID(8), stag: 0, ac: true, ab: false), .stallTerm(StreamID(8)),
            Command(opcode: Opcode(rawValue: 0x40)), Command(opcode: Opcode(rawValue: 0x41)),
            .tlbiNHVA(vmid: 0, asid: 0, address: 0x1000, leaf: true, range: range),
        ]
    }()

    /// Commands that are executed, and after them perhaps one that is not.
    static func commands(_ result: inout Case, _ builder: CaseBuilder) -> Bool {
        result.kind = "commands"
        let table = StreamTable(builder, isTwoLevel: result.shape.isTwoLevel)
        table.boot(builder)
        let hasStage1 = result.shape.stages != .stage2
        let hasStage2 = result.shape.stages != .stage1
        func command(_ opcode: UInt8) -> Command {
            var command = Command(opcode: Opcode(rawValue: opcode))
            command.words[0] |= builder.random.next() & 0xFFFF_FFFF_0000_0000
            command.words[1] = builder.random.next() & 0xFFFF_FFFF_F000
            return command
        }
        var good: [UInt8] = [0x01, 0x02, 0x03, 0x04, 0x30, 0x46]
        if hasStage1 { good += [0x05, 0x06, 0x10, 0x11, 0x12, 0x13] }
        if hasStage2 { good += [0x28, 0x2A] }
        for _ in 0..<builder.random.below(6) {
            builder.issue((0...builder.random.below(5)).map { _ in command(builder.random.pick(good)) })
        }
        // Opcodes that nobody has, those of the other state, and those of a stage that is not there.
        var bad: [UInt8] = [
            0x00, 0x08, 0x0F, 0x14, 0x19, 0x24, 0x2B, 0x31, 0x42, 0x47, 0x59, 0x61, 0x7F, 0x90, 0xFF,
        ]
        bad += [0x50, 0x51, 0x52, 0x53, 0x58, 0x5A, 0x60]
        if !hasStage1 { bad += [0x05, 0x06, 0x10, 0x11, 0x12, 0x13] }
        if !hasStage2 { bad += [0x28, 0x2A] }
        var last = command(builder.random.pick(bad))
        if builder.random.chance(30) {
            last = command(builder.random.pick([0x03, 0x04]))
            last.ssec = true
        }
        if builder.random.chance(20) { last = builder.random.pick(accepted) }
        builder.issue(last, .sync())
        return true
    }
}
