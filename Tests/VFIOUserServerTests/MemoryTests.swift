// DMA_MAP and DMA_UNMAP over a socket.

import Glibc
import Testing
import VFIOUserProtocol
import VFIOUserServer

@Suite("DMA_MAP and DMA_UNMAP over a socket")
struct MappingTests {
    let server: TestServer
    let client: TestClient

    init() throws {
        server = try TestServer()
        client = try server.greeted()
    }

    @Test("With a descriptor, without, read-only, tiny, at an odd offset, and up to the last byte of 64 bits")
    func maps() throws {
        let file = try memoryFile()
        defer { close(file) }
        #expect(
            try client.ask(command(2, map(0x4000_0000, 0x1000, offset: 0x123)), descriptors: [file])
                == success(2)
        )
        #expect(try client.ask(command(2, map(0, 0x1000, flags: 1))) == success(2))
        #expect(try client.ask(command(2, map(0x5000, 1, flags: 2))) == success(2))
        #expect(try client.ask(command(2, map(0xffff_ffff_ffff_f000, 0x1000))) == success(2))
        // SPDK's client sends more than the struct, and the specification's mode of access comes with a descriptor.
        let long = map(0x6000, 0x1000, flags: 7, argsz: 48) + [UInt8](repeating: 1, count: 16)
        #expect(try client.ask(command(2, long), descriptors: [file]) == success(2))
        let mappings = server.mappings
        #expect(mappings.map(\.range.address) == [0x4000_0000, 0, 0x5000, 0xffff_ffff_ffff_f000, 0x6000])
        #expect(mappings.map(\.range.byteCount) == [0x1000, 0x1000, 1, 0x1000, 0x1000])
        #expect(mappings.map(\.offset) == [0x123, nil, nil, nil, 0])
        #expect(mappings.map(\.range.isWritable) == [true, false, true, true, true])
        #expect(mappings.map(\.range.isReadable) == [true, true, false, true, true])
        #expect(copies(of: file) == 3)
    }

    @Test("test_dma_map: too large is ENOSPC; too many is an error; nonsense is EINVAL")
    func badMaps() throws {
        #expect(try client.ask(command(2, map(0, (8 << 40) + 1))) == refusal(2, Errors.noSpace))
        for bad in [
            Array(map(0, 0x1000).dropLast()), [], map(0, 0x1000, argsz: 31), map(0, 0),
            map(0xffff_ffff_ffff_f000, 0x1001), map(UInt64.max, 2), map(0, 0x1000, offset: UInt64.max - 1),
            map(0, 0x1000, flags: 0x13), map(0, 0x1000, flags: 7), map(0, 0x1000, flags: 11),
        ] {
            #expect(try client.ask(command(2, bad)) == refusal(2, 22))
        }
        for index in UInt64(0)..<8 {
            #expect(try client.ask(command(2, map(index << 12, 0x1000))) == success(2))
        }
        #expect(try client.ask(command(2, map(0x10_0000, 0x1000))) == refusal(2, Errors.noSpace))
    }

    @Test("No more maps stand than the client was told, whatever the memory would take")
    func count() throws {
        let server = try TestServer { $0.limits.mappingCountMax = 3 }
        let client = try server.greeted()
        let ask = { (index: UInt64) in try client.ask(command(2, map(index << 12, 0x1000))) }
        for index in UInt64(0)..<3 { #expect(try ask(index) == success(2)) }
        #expect(try ask(3) == refusal(2, Errors.noSpace))
        #expect(try ask(0) == success(2))
        #expect(try client.ask(command(3, unmap(0, 0x2000))) == success(3, unmap(0, 0x2000)))
        #expect(try ask(3) == success(2))
        #expect(try ask(4) == success(2))
        #expect(try ask(5) == refusal(2, Errors.noSpace))
        #expect(try client.ask(command(3, unmap(0, 0, flags: 2))) == success(3, unmap(0, 0, flags: 2)))
        #expect(try ask(5) == success(2))
    }

    // The reference library says EINVAL of an overlap; the specification has EEXIST.
    @Test("An overlap is EEXIST; the very same map again succeeds")
    func overlaps() throws {
        let file = try memoryFile()
        defer { close(file) }
        let same = command(2, map(0x2000, 0x2000))
        #expect(try client.ask(same, descriptors: [file]) == success(2))
        #expect(try client.ask(same, descriptors: [file]) == success(2))
        for (address, size) in [
            (UInt64(0x3000), UInt64(0x1000)), (0x1000, 0x1001), (0x3fff, 1), (0, 0x10000),
        ] {
            #expect(try client.ask(command(2, map(address, size))) == refusal(2, Errors.exists))
            #expect(
                try client.ask(command(2, map(address, size)), descriptors: [file])
                    == refusal(2, Errors.exists)
            )
        }
        #expect(server.mappings.count == 1)
        #expect(copies(of: file) == 2)
    }

    @Test("test_dma_unmap: what was mapped is given back, with the request as the reply")
    func unmaps() throws {
        let file = try memoryFile()
        defer { close(file) }
        #expect(try client.ask(command(2, map(0x1000, 0x1000)), descriptors: [file]) == success(2))
        #expect(copies(of: file) == 2)
        // SPDK's client sends the descriptor once more.
        let answer = try client.ask(command(3, unmap(0x1000, 0x1000)), descriptors: [file])
        #expect(answer == success(3, words(24, 0) + longs(0x1000, 0x1000)))
        #expect(copies(of: file) == 1)
        #expect(server.mappings.isEmpty)
    }

    @Test(
        "test_dma_unmap_bad_*: short, argsz too small and too large, unknown flags, dirty bitmaps, ALL with a range"
    )
    func badUnmaps() throws {
        #expect(try client.ask(command(2, map(0x1000, 0x1000))) == success(2))
        for bad in [
            Array(unmap(0x1000, 0x1000).dropLast()), unmap(0x1000, 0x1000, argsz: 8),
            unmap(0x1000, 0x1000, argsz: (1 << 20) + 1), unmap(0x1000, 0x1000, flags: 1),
            unmap(0x1000, 0x1000, flags: 1) + longs(4096, 8) + longs(0), unmap(0x1000, 0x1000, flags: 4),
            unmap(0x1000, 0, flags: 2), unmap(0, 0x1000, flags: 2), unmap(0, 0, flags: 3), unmap(0x1000, 0),
            unmap(UInt64.max, 2), unmap(0x1000, 0x800),
        ] {
            #expect(try client.ask(command(3, bad)) == refusal(3, 22))
        }
        #expect(server.mappings.count == 1)
    }

    @Test("test_dma_unmap_invalid_addr: what is not mapped is ENOENT")
    func unknown() throws {
        #expect(try client.ask(command(3, unmap(0x1000, 0x1000))) == refusal(3, Errors.noEntry))
    }

    // The reference library wants one mapping; QEMU with a virtual IOMMU sends ranges over several.
    @Test("A range over several mappings gives all of them back")
    func several() throws {
        for index in UInt64(1)..<4 {
            #expect(try client.ask(command(2, map(index << 12, 0x1000))) == success(2))
        }
        #expect(try client.ask(command(3, unmap(0, 0x3000))) == success(3, unmap(0, 0x3000)))
        #expect(server.mappings.map(\.range.address) == [0x3000])
    }

    @Test("test_dma_unmap_all: ALL gives everything back, also where there is nothing")
    func all() throws {
        let file = try memoryFile()
        defer { close(file) }
        #expect(try client.ask(command(2, map(0, 0x1000)), descriptors: [file]) == success(2))
        #expect(try client.ask(command(2, map(0x1000, 0x1000))) == success(2))
        for _ in 0..<2 {
            #expect(try client.ask(command(3, unmap(0, 0, flags: 2))) == success(3, unmap(0, 0, flags: 2)))
            #expect(server.mappings.isEmpty)
        }
        #expect(copies(of: file) == 1)
    }
}
