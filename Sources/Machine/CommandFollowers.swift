// Who hears of each command that a driver sends.

import IOMMU
import Synchronization

/// Hears of commands.
///
/// A leaf: it is called with a command queue's lock held, notes the command and returns.
protocol CommandFollower: AnyObject, Sendable {
    /// Which SMMU's; all where nil.
    var smmuIndex: Int? { get }
    func commandWasSent(_ command: SentCommand, toSMMU smmuIndex: Int)
}

/// Passes commands on while somebody listens; the drivers are told of nobody otherwise.
///
/// Lock order: `changes`, then a command queue's, then `followers`.
final class CommandFollowers: Sendable {
    private let drivers: [(index: Int, driver: SMMUv3Driver)]
    private let followers = Mutex<[any CommandFollower]>([])
    private let changes = Mutex(())

    init(_ drivers: [(index: Int, driver: SMMUv3Driver)]) { self.drivers = drivers }

    func add(_ follower: any CommandFollower) { change { $0.append(follower) } }

    /// When this returns it hears no more.
    func remove(_ follower: any CommandFollower) { change { $0.removeAll { $0 === follower } } }

    private func change(_ body: (inout [any CommandFollower]) -> Void) {
        changes.withLock { _ in
            let isAnyone = followers.withLock { followers in
                body(&followers)
                return !followers.isEmpty
            }
            for (index, driver) in drivers {
                guard isAnyone else {
                    driver.setCommandListener(nil)
                    continue
                }
                driver.setCommandListener { [weak self] command in self?.tell(command, index) }
            }
        }
    }

    private func tell(_ command: SentCommand, _ index: Int) {
        followers.withLock { followers in
            for follower in followers where follower.smmuIndex == nil || follower.smmuIndex == index {
                follower.commandWasSent(command, toSMMU: index)
            }
        }
    }
}
