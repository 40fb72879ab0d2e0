// Cases that are commands, some of them illegal.

import SMMUv3Spec

extension CaseGenerator {
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
        var bad: [UInt8] = [0x00, 0x08, 0x0F, 0x14, 0x19, 0x24, 0x2B, 0x31, 0x42, 0x47, 0x59, 0x61, 0x7F, 0x90, 0xFF]
        bad += [0x50, 0x51, 0x52, 0x53, 0x58, 0x5A, 0x60]
        if !hasStage1 { bad += [0x05, 0x06, 0x10, 0x11, 0x12, 0x13] }
        if !hasStage2 { bad += [0x28, 0x2A] }
        var last = command(builder.random.pick(bad))
        if builder.random.chance(30) {
            last = command(builder.random.pick([0x03, 0x04]))
            last.ssec = true
        }
        builder.issue(last, .sync())
        return true
    }
}
