// swift-tools-version: 6.2
import PackageDescription

// Imports go down the layers only, never sideways; ARCHITECTURE.md has the picture. The compiler holds
// us to it: CI builds with --explicit-target-dependency-import-check error.

/// What scripts/test sets: warnings are errors in our own targets, not in those of the packages we use, and not
/// for somebody whose newer compiler warns of more.
let isStrict = Context.environment["SMMUD_STRICT"] == "1"

/// What every Swift target is compiled with.
let settings: [SwiftSetting] =
    [
        .swiftLanguageMode(.v6),
        .enableUpcomingFeature("ExistentialAny"),  // SE-0335
        .enableUpcomingFeature("InternalImportsByDefault"),  // SE-0409
        .enableUpcomingFeature("MemberImportVisibility"),  // SE-0444
    ] + (isStrict ? [.treatAllWarnings(as: .error)] : [])

/// The same for the targets that hold no pointer of their own: there every unsafe expression is a warning.
let safeSettings: [SwiftSetting] = settings + [.strictMemorySafety()]

let argumentParser: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let systemPackage: Target.Dependency = .product(name: "SystemPackage", package: "swift-system")
let serviceLifecycle: Target.Dependency = .product(
    name: "ServiceLifecycle",
    package: "swift-service-lifecycle"
)
let unixSignals: Target.Dependency = .product(name: "UnixSignals", package: "swift-service-lifecycle")

let package = Package(
    name: "smmud",
    products: [
        .executable(name: "smmud", targets: ["smmud"]),
        .executable(name: "smmuctl", targets: ["smmuctl"]),
        .library(name: "VFIOUserClient", targets: ["VFIOUserClient"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
    ],
    targets: [
        // Layer 0: C.
        .target(name: "CLinux"),
        .systemLibrary(name: "CLibFDT", providers: [.apt(["libfdt-dev"])]),

        // Layer 1: words and addresses.
        .target(name: "BitFields", swiftSettings: safeSettings),
        .target(name: "AddressSpace", swiftSettings: safeSettings),

        // Layer 2: what things are, and what of the host they use.
        .target(name: "DeviceModel", dependencies: ["AddressSpace", "CLinux"], swiftSettings: settings),
        .target(name: "HostIO", dependencies: ["CLinux", logging, systemPackage], swiftSettings: settings),
        .target(name: "BlockStorage", dependencies: ["CLinux", systemPackage], swiftSettings: settings),
        .target(
            name: "GuestMemory",
            dependencies: ["AddressSpace", "CLinux", systemPackage],
            swiftSettings: settings
        ),
        .target(
            name: "SMMUv3Spec",
            dependencies: ["BitFields", "AddressSpace"],
            swiftSettings: safeSettings
        ),
        .target(name: "ACPITables", swiftSettings: safeSettings),
        .target(name: "ControlProtocol", dependencies: ["BitFields"], swiftSettings: settings),
        .target(name: "VFIOUserProtocol", swiftSettings: settings),

        // Layer 3: the physical address map, PCIe functions, and the driver's page tables.
        .target(
            name: "SystemBus",
            dependencies: ["AddressSpace", "CLinux", "DeviceModel", "GuestMemory"],
            swiftSettings: settings
        ),
        .target(
            name: "PCIFunction",
            dependencies: ["AddressSpace", "BitFields", "DeviceModel"],
            swiftSettings: settings
        ),
        .target(
            name: "IOPageTable",
            dependencies: ["AddressSpace", "BitFields", "DeviceModel"],
            swiftSettings: safeSettings
        ),

        // Layer 4: the parts of a machine.
        .target(
            name: "SMMUv3",
            dependencies: [
                "AddressSpace", "BitFields", "CLinux", "DeviceModel", "GuestMemory", "SMMUv3Spec",
                "SystemBus",
            ],
            swiftSettings: settings
        ),
        .target(
            name: "PMCG",
            dependencies: ["AddressSpace", "BitFields", "DeviceModel", "SMMUv3Spec"],
            swiftSettings: settings
        ),
        .target(
            name: "DeviceTree",
            dependencies: ["ACPITables", "AddressSpace", "CLibFDT", "DeviceModel"],
            swiftSettings: settings
        ),
        .target(
            name: "IOMMU",
            dependencies: ["AddressSpace", "BitFields", "DeviceModel", "IOPageTable", "SMMUv3Spec"],
            swiftSettings: safeSettings
        ),

        .target(
            name: "PCIHost",
            dependencies: [
                "AddressSpace", "DeviceModel", "HostIO", "PCIFunction", "SystemBus", systemPackage,
            ],
            swiftSettings: settings
        ),
        .target(
            name: "Virtio",
            dependencies: [
                "AddressSpace", "BlockStorage", "CLinux", "DeviceModel", "HostIO", "PCIFunction",
                systemPackage,
            ],
            swiftSettings: settings
        ),
        .target(
            name: "NVMe",
            dependencies: [
                "AddressSpace", "BitFields", "BlockStorage", "DeviceModel", "HostIO", "PCIFunction",
                systemPackage,
            ],
            swiftSettings: settings
        ),
        .target(
            name: "PlatformDevices",
            dependencies: ["AddressSpace", "BitFields", "DeviceModel", "HostIO", "PCIFunction"],
            swiftSettings: settings
        ),
        .target(
            name: "VFIOUserServer",
            dependencies: [
                "AddressSpace", "CLinux", "DeviceModel", "GuestMemory", "HostIO", "PCIFunction",
                "VFIOUserProtocol", logging, systemPackage,
            ],
            swiftSettings: settings
        ),
        .target(
            name: "VFIOUserClient",
            dependencies: [
                "AddressSpace", "CLinux", "DeviceModel", "GuestMemory", "HostIO", "PCIFunction",
                "VFIOUserProtocol", systemPackage,
            ],
            swiftSettings: settings
        ),

        // Layer 5: the machine, and the client of the daemon's sockets.
        .target(
            name: "Machine",
            dependencies: [
                "AddressSpace", "BlockStorage", "CLinux", "ControlProtocol", "DeviceModel", "DeviceTree",
                "GuestMemory", "HostIO", "IOMMU", "IOPageTable", "NVMe", "PCIFunction", "PCIHost", "PMCG",
                "PlatformDevices", "VFIOUserClient", "VFIOUserProtocol", "VFIOUserServer", "Virtio",
                "SMMUv3", "SMMUv3Spec", "SystemBus", logging, systemPackage,
            ],
            swiftSettings: settings
        ),
        .target(
            name: "SMMUClient",
            dependencies: ["CLinux", "ControlProtocol", "SMMUv3Spec", systemPackage],
            swiftSettings: settings
        ),

        // Layer 6: programs.
        .executableTarget(
            name: "smmud",
            dependencies: [
                "ACPITables", "AddressSpace", "CLinux", "ControlProtocol", "DeviceModel", "DeviceTree",
                "GuestMemory", "HostIO", "Machine",
                "SMMUClient", "SMMUv3", "VFIOUserServer", argumentParser, logging, serviceLifecycle,
                systemPackage,
                unixSignals,
            ],
            swiftSettings: settings
        ),
        .executableTarget(
            name: "smmuctl",
            dependencies: ["ControlProtocol", "SMMUClient", argumentParser],
            swiftSettings: settings
        ),

        // Tests, one target for each of the above that has behaviour.
        .testTarget(name: "BitFieldsTests", dependencies: ["BitFields"], swiftSettings: settings),
        .testTarget(name: "AddressSpaceTests", dependencies: ["AddressSpace"], swiftSettings: settings),
        .testTarget(
            name: "DeviceModelTests",
            dependencies: ["AddressSpace", "DeviceModel"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "GuestMemoryTests",
            dependencies: ["AddressSpace", "CLinux", "GuestMemory", "OSThread", systemPackage],
            swiftSettings: settings
        ),
        .testTarget(
            name: "SMMUv3SpecTests",
            dependencies: ["AddressSpace", "SMMUv3Spec", "SeededRandomness"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "ACPITablesTests",
            dependencies: ["ACPITables", "IORTFixtures"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "VFIOUserProtocolTests",
            dependencies: ["SeededRandomness", "VFIOUserProtocol"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "ControlProtocolTests",
            dependencies: ["ControlProtocol", "SeededRandomness"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "SystemBusTests",
            dependencies: [
                "AddressSpace", "DeviceModel", "GuestMemory", "OSThread", "SeededRandomness", "SystemBus",
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "BlockStorageTests",
            dependencies: ["BlockStorage", systemPackage],
            swiftSettings: settings
        ),
        .testTarget(
            name: "PCIFunctionTests",
            dependencies: ["AddressSpace", "DeviceModel", "PCIFunction", "SeededRandomness"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "IOPageTableTests",
            dependencies: ["AddressSpace", "DeviceModel", "IOPageTable", "SeededRandomness"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "SMMUv3Tests",
            dependencies: [
                "AddressSpace", "CLinux", "DeviceModel", "GuestMemory", "PCIFunction", "SMMUv3", "SMMUv3Spec",
                "SeededRandomness", "SystemBus",
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "PMCGTests",
            dependencies: ["AddressSpace", "DeviceModel", "PMCG", "SeededRandomness"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "DeviceTreeTests",
            dependencies: ["AddressSpace", "DeviceModel", "DeviceTree", "IORTFixtures", "SeededRandomness"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "IOMMUTests",
            dependencies: [
                "AddressSpace", "DeviceModel", "GuestMemory", "IOMMU", "IOPageTable", "OSThread", "SMMUv3",
                "SMMUv3Spec", "SeededRandomness", "SystemBus",
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "PCIHostTests",
            dependencies: [
                "AddressSpace", "DeviceModel", "GuestMemory", "OSThread", "PCIFunction", "PCIHost",
                "SeededRandomness", "SystemBus",
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "VirtioTests",
            dependencies: [
                "AddressSpace", "BlockStorage", "CLinux", "CTestNetwork", "DeviceModel", "GuestMemory",
                "HostIO", "PCIFunction", "SeededRandomness", "SystemBus", "Virtio", systemPackage,
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "NVMeTests",
            dependencies: [
                "AddressSpace", "BlockStorage", "DeviceModel", "GuestMemory", "NVMe", "PCIFunction",
                "SeededRandomness", "SystemBus", systemPackage,
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "PlatformDevicesTests",
            dependencies: [
                "AddressSpace", "DeviceModel", "GuestMemory", "PCIFunction", "PlatformDevices", "SystemBus",
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "VFIOUserServerTests",
            dependencies: [
                "AddressSpace", "CLinux", "DeviceModel", "GuestMemory", "HostIO", "PCIFunction",
                "VFIOUserProtocol", "VFIOUserServer", logging, systemPackage,
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "VFIOUserClientTests",
            dependencies: [
                "AddressSpace", "BlockStorage", "CLinux", "DeviceModel", "GuestMemory", "HostIO", "NVMe",
                "PCIFunction", "Virtio", "VFIOUserClient", "VFIOUserDrivers", "VFIOUserProtocol",
                "VFIOUserServer", logging, systemPackage,
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "MachineTests",
            dependencies: [
                "AddressSpace", "CLinux", "ControlProtocol", "DeviceModel", "DeviceTree", "GuestMemory",
                "HostIO", "IOMMU", "IORTFixtures", "Machine", "PCIFunction", "SMMUv3", "SMMUv3Spec",
                "SeededRandomness", "SystemBus", "VFIOUserProtocol", "VFIOUserServer", logging, systemPackage,
            ],
            swiftSettings: settings
        ),
        .testTarget(
            name: "SMMUClientTests",
            dependencies: ["CLinux", "ControlProtocol", "SMMUClient"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "EndToEndTests",
            dependencies: [
                "CLinux", "ControlProtocol", "DiskJournal", "IORTFixtures", "SMMUClient", "SeededRandomness",
                systemPackage,
            ],
            swiftSettings: settings
        ),
        // What tests start and kill, and what both know of the disk's content. Networks for tests alone.
        .target(name: "DiskJournal", path: "Tests/Support/DiskJournal", swiftSettings: settings),
        .target(name: "IORTFixtures", path: "Tests/Support/IORTFixtures", swiftSettings: settings),
        .target(name: "CTestNetwork", path: "Tests/Support/CTestNetwork"),
        .executableTarget(
            name: "smmud-disk-writer",
            dependencies: ["CLinux", "DiskJournal", "VFIOUserClient", "VFIOUserDrivers"],
            path: "Tests/Support/smmud-disk-writer",
            swiftSettings: settings
        ),
        // Numbers that look random, and follow from a seed.
        .target(
            name: "SeededRandomness",
            path: "Tests/Support/SeededRandomness",
            swiftSettings: settings
        ),
        // Threads of the system's for tests whose bodies spin.
        .target(name: "OSThread", path: "Tests/Support/OSThread", swiftSettings: settings),
        // Random configurations in QEMU's SMMUv3 and in the model: scripts/differential.
        .target(
            name: "Differential",
            dependencies: [
                "AddressSpace", "DeviceModel", "GuestMemory", "SMMUv3", "SMMUv3Spec", "SeededRandomness",
                "SystemBus", systemPackage,
            ],
            path: "Tests/Support/Differential",
            swiftSettings: settings
        ),
        .executableTarget(
            name: "smmud-differential",
            dependencies: ["Differential"],
            path: "Tests/Support/smmud-differential",
            swiftSettings: settings
        ),
        .testTarget(
            name: "DifferentialTests",
            dependencies: ["AddressSpace", "Differential", "SMMUv3", "SMMUv3Spec"],
            swiftSettings: settings
        ),
        // The driver's list of cases on QEMU's SMMUv3 and on the model: scripts/driver-conformance.
        .target(
            name: "DriverConformance",
            dependencies: [
                "AddressSpace", "DeviceModel", "Differential", "GuestMemory", "IOMMU", "IOPageTable",
                "SMMUv3",
                "SMMUv3Spec", "SystemBus",
            ],
            path: "Tests/Support/DriverConformance",
            swiftSettings: settings
        ),
        .executableTarget(
            name: "smmud-driver-conformance",
            dependencies: ["Differential", "DriverConformance", "SMMUv3"],
            path: "Tests/Support/smmud-driver-conformance",
            swiftSettings: settings
        ),
        .testTarget(
            name: "DriverConformanceTests",
            dependencies: ["DriverConformance", "SMMUv3"],
            swiftSettings: settings
        ),
        .testTarget(
            name: "FuzzTargetsTests",
            dependencies: ["FuzzTargets", "SeededRandomness"],
            swiftSettings: settings
        ),

        // Examples, which use what is public only.
        .target(
            name: "VFIOUserDrivers",
            dependencies: ["VFIOUserClient"],
            path: "examples/VFIOUserDrivers",
            swiftSettings: settings
        ),
        .executableTarget(
            name: "smmud-vfio-example",
            dependencies: ["VFIOUserClient", "VFIOUserDrivers"],
            path: "examples/vfio-user-client",
            swiftSettings: settings
        ),

        // The C library alone.
        .executableTarget(
            name: "smmud-dma-ring-example",
            path: "examples/dma-ring"
        ),

        // Tools that measure and that fuzz. They are in this package because they use its package-level API.
        .target(
            name: "BareMachine",
            dependencies: [
                "AddressSpace", "CLinux", "DeviceModel", "GuestMemory", "SMMUv3", "SMMUv3Spec", "SystemBus",
            ],
            path: "Benchmarks/BareMachine",
            swiftSettings: settings
        ),
        .executableTarget(
            name: "smmud-bench",
            dependencies: [
                "AddressSpace", "BareMachine", "CLinux", "ControlProtocol", "DeviceModel", "DeviceTree",
                "GuestMemory", "HostIO", "IOMMU", "IOPageTable", "Machine", "PCIFunction", "SMMUv3",
                "SMMUv3Spec", "SMMUClient", "SystemBus", "VFIOUserProtocol", "VFIOUserServer",
                argumentParser, logging,
            ],
            path: "Benchmarks/smmud-bench",
            swiftSettings: settings
        ),
        .target(
            name: "FuzzTargets",
            dependencies: [
                "ACPITables", "AddressSpace", "BareMachine", "BlockStorage", "CLinux", "ControlProtocol",
                "DeviceModel", "DeviceTree", "GuestMemory", "HostIO", "NVMe", "PCIFunction", "PCIHost",
                "PMCG",
                "PlatformDevices", "SMMUv3", "SMMUv3Spec", "SystemBus", "VFIOUserProtocol", "VFIOUserServer",
                "Virtio",
            ],
            path: "Fuzz/Targets",
            swiftSettings: settings
        ),
    ]
)

// The fuzzer has libFuzzer's main function, so it is built by itself: scripts/fuzz does.
if Context.environment["SMMUD_FUZZ"] == "1" {
    package.targets.append(
        .executableTarget(
            name: "smmud-fuzz",
            dependencies: ["FuzzTargets"],
            path: "Fuzz/smmud-fuzz",
            swiftSettings: settings + [.unsafeFlags(["-parse-as-library"])]
        )
    )
}
