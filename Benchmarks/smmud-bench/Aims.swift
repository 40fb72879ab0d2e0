// What each row is to reach, by its name.

/// What a row is to reach.
enum Aim {
    /// The figure is at most this, in the row's unit.
    case figure(Double)
    /// The ratio to the floor is at most this.
    case ratio(Double)
    /// The subject is at least so many times as fast as its floor: 0.8 is 80 % of its speed.
    case speed(Double)

    func isReached(by measurement: Measurement) -> Bool {
        switch self {
        case .figure(let most): measurement.subjectFigure.median <= most
        case .ratio(let most): measurement.ratio.median <= most
        case .speed(let least): 1 / measurement.ratio.median >= least
        }
    }

    func text(_ unit: Unit) -> String {
        switch self {
        case .figure(let most): "<= \(unit.text(most))"
        case .ratio(let most): "<= \(threeDigits(most)) x"
        case .speed(let least):
            least < 1 ? ">= \(threeDigits(least * 100)) %" : ">= \(threeDigits(least)) x speed"
        }
    }
}

/// The aims, by the rows' names; a row without one is there to be watched, or to be compared with.
let aims: [String: Aim] = [
    // Translation.
    "hit-port": .figure(10),
    "random-256": .figure(50),
    "random-257": .figure(50),
    "random-2048": .figure(50),
    "random-65536": .figure(50),
    "random-full": .figure(50),
    "miss": .figure(100),
    "miss-walk-cache": .figure(45),
    "miss-nested-all": .figure(250),
    "dma-read-64B": .figure(22),
    "dma-64MiB-by-4KiB": .speed(0.8),
    "dma-64MiB-by-1MiB": .speed(0.95),
    // Several threads, and invalidation.
    "two-threads": .speed(1.9),
    "tlbi-sync-16": .figure(150),
    "tlbi-sync-65536": .figure(150),
    "sync-busy-1MiB": .ratio(1.5),
    "hits-beside-tlbi": .speed(0.8),
    "map-unmap-lazy": .speed(3),
    // Sockets and rings.
    "vfio-user-read": .ratio(1.05),
    "vfio-user-write": .ratio(1.05),
    "dma-socket": .ratio(1.1),
    "dma-socket-64": .figure(400),
    "dma-ring": .ratio(2),
    "dma-ring-64": .figure(200),
    // The daemon, and large boards.
    "start-hip07": .figure(30e6),
    "memory-hip07": .figure(20e6),
    "large-hit": .ratio(1.5),
    "large-tlb": .ratio(1.5),
    "large-miss": .ratio(1.5),
    "large-miss-walk-cache": .ratio(1.5),
    "large-miss-all": .ratio(1.5),
    "large-nested": .ratio(1.5),
    "large-nested-all": .ratio(1.5),
    "large-dma-64B": .ratio(1.5),
    "large-dma-4KiB": .ratio(1.5),
    "large-64MiB-by-4KiB": .ratio(1.5),
    "large-64MiB-by-1MiB": .ratio(1.5),
    "large-two-threads": .ratio(1.5),
    "large-hits-beside": .ratio(1.5),
    "large-sync-busy": .ratio(1.5),
    "large-tlbi-sync": .ratio(1.5),
    "large-map-strict": .ratio(1.5),
    "large-map-lazy": .ratio(1.5),
    "large-socket": .ratio(1.5),
    "large-socket-64": .ratio(1.5),
    "large-ring": .ratio(1.5),
    "large-ring-64": .ratio(1.5),
    "large-vfio-user": .ratio(1.5),
]
