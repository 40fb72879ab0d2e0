// What the driver did to the hardware, in order, for tests of the order and for people who look.

package import SMMUv3Spec
import Synchronization

/// One thing that the driver did.
package enum DriverAction: Equatable, Sendable {
    /// Read a register, by its offset in the window.
    case read(UInt64, UInt64)
    /// Wrote a 32-bit register.
    case write32(UInt64, UInt32)
    /// Wrote a 64-bit register.
    case write64(UInt64, UInt64)
    /// Put a command into the queue.
    case command(Command)
}

/// Records a driver's register accesses and commands.
package final class DriverTrace: Sendable {
    private let actions = Mutex<[DriverAction]>([])
    private let limit: Int

    /// An empty recording.
    ///
    /// - Parameter limit: After so many actions nothing more is recorded until ``take()``.
    package init(limit: Int = 1 << 16) { self.limit = limit }

    func note(_ action: DriverAction) {
        actions.withLock { actions in
            if actions.count < limit { actions.append(action) }
        }
    }

    /// What was recorded since the last call.
    package func take() -> [DriverAction] {
        actions.withLock { actions in
            defer { actions = [] }
            return actions
        }
    }
}
