// Which of several equal places a thread uses, where the kernel has one for each CPU.

import Glibc

/// The calling thread's place among a few: the same one each time, so that threads seldom meet in one.
enum ThreadSlot {
    /// How many places there are.
    static let count = 16

    /// The calling thread's.
    ///
    /// Threads' stacks are whole pages apart, and so are the descriptors that lie at their ends.
    static var own: Int { Int(truncatingIfNeeded: (UInt64(pthread_self()) &>> 12) % UInt64(count)) }
}
