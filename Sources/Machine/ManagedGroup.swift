// A group of devices under the machine's own driver: the domain that they are in together, and its type.

import ControlProtocol
import IOMMU
import Synchronization

/// An IOMMU group with the book of its default domain.
///
/// Lock order: `state`, then a domain's book.
final class ManagedGroup: Sendable {
    /// The control socket, as the owner of a group.
    private static let owner = "the control socket"

    private struct State {
        /// The DMA API's.
        var initial: ManagedDomain
        /// What the members are in now.
        var current: ManagedDomain
        var followers: [ManagedDomain.Follower] = []
    }

    let group: IOMMUGroup
    private let frames: PhysicalFrameAllocator
    private let state: Mutex<State>

    init(_ group: IOMMUGroup, _ frames: PhysicalFrameAllocator) {
        self.group = group
        self.frames = frames
        let initial = ManagedDomain(group.defaultDomain, of: group.driver, .group(group.id), frames)
        state = Mutex(State(initial: initial, current: initial))
    }

    /// The domain of the DMA API.
    var defaultDomain: ManagedDomain { state.withLock { $0.initial } }
    /// What the members are in now.
    var current: ManagedDomain { state.withLock { $0.current } }
    /// The endpoints' names.
    var memberNames: [String] { group.members.map(\.name) }

    // MARK: Devices of other programs

    func add(_ follower: ManagedDomain.Follower) {
        state.withLock { state in
            state.followers.append(follower)
            state.current.add(follower)
        }
    }

    func removeFollower(of device: String) {
        state.withLock { state in
            for follower in state.followers where follower.device == device { state.current.remove(follower) }
            state.followers.removeAll { $0.device == device }
        }
    }

    // MARK: Attaching

    /// Puts the group into another domain than its default one.
    func attach(to domain: ManagedDomain) throws(ControlError) {
        try state.withLock { (state) throws(ControlError) in
            do throws(IOMMUGroupError) {
                try group.replaceDomain(with: domain.domain, by: Self.owner)
            } catch {
                try fail(error, state)
            }
            change(to: domain, &state)
        }
    }

    /// Puts the group into its default domain again.
    func returnToDefault() throws(ControlError) {
        try state.withLock { (state) throws(ControlError) in try giveBack(&state) }
    }

    private func giveBack(_ state: inout State) throws(ControlError) {
        guard group.owner != nil else { return }
        do throws(IOMMUGroupError) { try group.release(by: Self.owner) } catch { try fail(error, state) }
        change(to: state.initial, &state)
    }

    private func fail(_ error: IOMMUGroupError, _ state: State) throws(ControlError) -> Never {
        // What is still reached after a change that failed half way nobody knows.
        if case .driver = error { for follower in state.followers { follower.memory.unmappedAll() } }
        throw ControlError(error)
    }

    private func change(to domain: ManagedDomain, _ state: inout State) {
        guard domain !== state.current else { return }
        for follower in state.followers { state.current.remove(follower) }
        state.current = domain
        for follower in state.followers { domain.add(follower) }
    }

    // MARK: Type

    /// Changes the type, as a write to the group's `type` in sysfs does.
    ///
    /// - Parameter takesBack: Whether a domain that the control socket put it into is left for it.
    func setType(_ request: IOMMUGroupTypeRequest, takesBack: Bool = false) throws(ControlError) {
        try state.withLock { (state) throws(ControlError) in
            if takesBack { try giveBack(&state) }
            let isLive = request == .dmaFQ && group.defaultDomain.kind == .dma
            // To the kernel who has mappings is a driver that is bound.
            guard isLive || state.initial.mappings.isEmpty else {
                throw ControlError(.busy("memory is mapped in the default domain of group \(group.id)"))
            }
            do throws(IOMMUGroupError) { try group.setType(request) } catch { throw ControlError(error) }
            let domain = group.defaultDomain
            guard domain !== state.initial.domain else { return }
            let initial = ManagedDomain(domain, of: group.driver, .group(group.id), frames)
            let isCurrent = state.current === state.initial
            state.initial = initial
            if isCurrent { change(to: initial, &state) }
        }
    }
}
