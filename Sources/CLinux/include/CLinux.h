// The parts of Linux that Swift cannot reach by itself: macros, variadic calls, and atomic accesses to memory
// that is shared with other processes.
#ifndef SMMUD_CLINUX_H
#define SMMUD_CLINUX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

// MARK: Single-copy atomic accesses. Every pointer is naturally aligned for its access.

static inline uint8_t smmud_load_u8(const void *p) { return __atomic_load_n((const uint8_t *)p, __ATOMIC_ACQUIRE); }
static inline uint16_t smmud_load_u16(const void *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }
static inline uint32_t smmud_load_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
static inline uint64_t smmud_load_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
static inline void smmud_store_u8(void *p, uint8_t v) { __atomic_store_n((uint8_t *)p, v, __ATOMIC_RELEASE); }
static inline void smmud_store_u16(void *p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE); }
static inline void smmud_store_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
static inline void smmud_store_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }

// Returns what *p held before; the exchange took place where that equals `expected`.
static inline uint64_t smmud_compare_exchange_u64(void *p, uint64_t expected, uint64_t desired) {
    __atomic_compare_exchange_n((uint64_t *)p, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

// Copies between shared memory and a buffer of our own. A naturally aligned piece of 1, 2, 4 or 8 bytes is one
// atomic access, as a device's write of an index or of an MSI must be; longer ones are in no order.
static inline void smmud_copy_little_to_shared(void *shared, const void *own, size_t count) {
    uint16_t halfword;
    uint32_t word;
    uint64_t doubleword;
    if (count <= 8 && (count & (count - 1)) == 0 && ((uintptr_t)shared & (count - 1)) == 0) {
        switch (count) {
        case 1: smmud_store_u8(shared, *(const uint8_t *)own); return;
        case 2: memcpy(&halfword, own, 2); smmud_store_u16(shared, halfword); return;
        case 4: memcpy(&word, own, 4); smmud_store_u32(shared, word); return;
        case 8: memcpy(&doubleword, own, 8); smmud_store_u64(shared, doubleword); return;
        default: return;  // 0 bytes.
        }
    }
    // The buffer may be shared memory too, and the same.
    memmove(shared, own, count);
}

static inline void smmud_copy_little_from_shared(void *own, const void *shared, size_t count) {
    uint16_t halfword;
    uint32_t word;
    uint64_t doubleword;
    if (count <= 8 && (count & (count - 1)) == 0 && ((uintptr_t)shared & (count - 1)) == 0) {
        switch (count) {
        case 1: *(uint8_t *)own = smmud_load_u8(shared); return;
        case 2: halfword = smmud_load_u16(shared); memcpy(own, &halfword, 2); return;
        case 4: word = smmud_load_u32(shared); memcpy(own, &word, 4); return;
        case 8: doubleword = smmud_load_u64(shared); memcpy(own, &doubleword, 8); return;
        default: return;  // 0 bytes.
        }
    }
    memmove(own, shared, count);
}

// The same, with the most frequent cases where the caller is.
__attribute__((always_inline)) static inline void smmud_copy_to_shared(void *shared, const void *own, size_t count) {
    if (count > 8) {
        memmove(shared, own, count);
    } else if (count == 8 && ((uintptr_t)shared & 7) == 0) {
        uint64_t doubleword;
        memcpy(&doubleword, own, 8);
        smmud_store_u64(shared, doubleword);
    } else {
        smmud_copy_little_to_shared(shared, own, count);
    }
}

__attribute__((always_inline)) static inline void smmud_copy_from_shared(void *own, const void *shared, size_t count) {
    if (count > 8) {
        memmove(own, shared, count);
    } else if (count == 8 && ((uintptr_t)shared & 7) == 0) {
        uint64_t doubleword = smmud_load_u64(shared);
        memcpy(own, &doubleword, 8);
    } else {
        smmud_copy_little_from_shared(own, shared, count);
    }
}

// Adds to a counter that others add to and nobody orders anything by.
static inline void smmud_add_u64(void *p, uint64_t v) { __atomic_fetch_add((uint64_t *)p, v, __ATOMIC_RELAXED); }

static inline void smmud_fence_seq_cst(void) {
#if defined(__x86_64__)
    // A full barrier for all but non-temporal accesses, and a quarter of what the mfence takes that compilers make.
    __asm__ volatile("lock; orl $0, (%%rsp)" ::: "memory", "cc");
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
static inline void smmud_compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void smmud_cpu_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Asks for a cache line before its turn, to be read or to be written. Faults at no address.
static inline void smmud_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }
static inline void smmud_prefetch_to_write(const void *p) {
#if defined(__x86_64__)
    // What the builtin becomes for the oldest processors is a prefetch to read.
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1, 3);
#endif
}

// Copies what another process may be writing, of which each byte is read once: the compiler looks at the copy afterwards.
static inline void smmud_copy_once(void *own, const void *shared, size_t count) {
    memcpy(own, shared, count);
    __asm__ volatile("" ::: "memory");
}

// One step of waiting for another thread: spins at first, then gives the processor away, then sleeps.
void smmud_wait_a_little(int attempt);

// Names the calling thread, for debuggers and top(1); at most 15 characters count.
void smmud_name_thread(const char *name);

// MARK: What the calling thread is inside of
//
// Transactions nest: a DMA reaches a register, whose device sends a DMA of its own. Each is pushed with a pointer that
// names whose it is. Beyond 16 levels every question is answered with yes.
void smmud_push_transaction(const void *owner);
void smmud_pop_transaction(void);
// Whether the calling thread is inside a transaction of this owner.
bool smmud_is_in_transaction(const void *owner);

// What is the calling thread's alone, and not 0: a thread that ends leaves it to another.
static inline uint64_t smmud_thread(void) {
#if defined(__x86_64__)
    uint64_t thread;
    // The thread control block's first word is its own address.
    __asm__("movq %%fs:0, %0" : "=r"(thread));
    return thread;
#else
    return (uint64_t)(uintptr_t)__builtin_thread_pointer();
#endif
}

// MARK: Waking a thread that polls

// A close-on-exec eventfd that never blocks, or a negated errno.
int smmud_eventfd(void);

// MARK: Where threads run

// The CPUs that the calling thread may run on, ascending. Returns how many were written to cpus.
size_t smmud_allowed_cpus(int *cpus, size_t capacity);
// Keeps the calling thread on these CPUs, and what it starts from now on. Returns 0 or a negated error.
int smmud_keep_on_cpus(const int *cpus, size_t count);

// MARK: Eventfds that a peer shares
//
// Their flags and their counters are the peer's to change at any time, between any two calls of ours.

// Whether this is an eventfd; not, where there is no /proc to ask.
bool smmud_is_eventfd(int fd);

// Adds 1 to an eventfd's counter, as far as it goes, and never blocks; does nothing to what is no eventfd.
void smmud_signal_eventfd(int fd);
// Takes what that needs of the system now, while there is some. Where it cannot be had, signalling could block if the
// eventfd's owner filled its counter at the wrong moment.
void smmud_prepare_eventfd_signals(void);

// MARK: Waiting for many descriptors
//
// By edges: each signal of an eventfd wakes once, and nobody needs to read it, which could block.

// A close-on-exec epoll instance, or a negated errno.
int smmud_epoll_create(void);
// Returns 0, or a negated errno.
int smmud_epoll_watch(int epoll, int fd, uint64_t token);
// To be called before the descriptor is closed: the kernel watches the file, which others may have open.
void smmud_epoll_forget(int epoll, int fd);
// Waits; returns how many tokens there are, 0 where a signal handler ran, or a negated errno.
int smmud_epoll_wait(int epoll, uint64_t *tokens, int capacity);

// MARK: Waiting with an end

// A counting semaphore, or NULL.
void *smmud_semaphore_create(unsigned value);
void smmud_semaphore_destroy(void *semaphore);
void smmud_semaphore_signal(void *semaphore);
// Waits until then on the monotonic clock; negative is for ever. False where it ended without a signal.
bool smmud_semaphore_wait(void *semaphore, int64_t deadline_nanoseconds);
int64_t smmud_monotonic_nanoseconds(void);

// MARK: membarrier(2)

// Asks the kernel for MEMBARRIER_CMD_PRIVATE_EXPEDITED. True where it can be had: then
// smmud_membarrier() is a full barrier on every thread of this process.
bool smmud_membarrier_register(void);
void smmud_membarrier(void);

// MARK: Memory that is shared by file descriptor

// Gives back the pages of code and constants that only the start needed, and free heap: what is used again comes back
// from the page cache, a fault each.
void smmud_forget_startup_pages(void);

// A new memfd of byte_count bytes, all of them holes: close-on-exec, not executable, and sealed so that nobody can
// make it shorter, longer, or add seals. Returns the descriptor, or a negated errno.
int smmud_memfd_create_sealed(const char *name, uint64_t byte_count);

// The same without the seals: whoever holds it can change its size, as with a file that a peer shares. For tests.
int smmud_memfd_create_unsealed(const char *name, uint64_t byte_count);

// The size of the pages that a mapping of this file is made of: larger than the system's on hugetlbfs. 0 where the
// descriptor is not open.
size_t smmud_mapping_page_size(int fd);

// Whether the file is on a FUSE file system: page faults on it wait for whoever serves that.
bool smmud_is_fuse(int fd);

// A close-on-exec duplicate, or a negated errno.
int smmud_duplicate(int fd);

// MARK: Truncated files under a mapping (SIGBUS)
//
// Whoever shares a file with us can truncate it, and then an access to our mapping of it raises SIGBUS. A
// registered mapping survives that: from the page that faulted to its end it becomes private zeroes, its flag is
// set, and the access goes on as if it had been to them. A SIGBUS anywhere else goes to whoever handled it
// before us, which usually ends the process.

// How many mappings can be registered at once.
#define SMMUD_GUARD_CAPACITY 4096

// Registers a mapping: base and length are multiples of page_size. Installs the signal handler the first time.
// Returns where the mapping's flag is (0: whole; 1: lost), or NULL with errno ENOSPC where the table is full.
const uint32_t *smmud_guard_register(void *base, size_t length, size_t page_size, bool is_writable);

// Gives a registration back, before its munmap and after the last access to it.
void smmud_guard_unregister(const uint32_t *flag);

// MARK: Files

// fallocate(2). Returns 0, or a negated errno.
int smmud_fallocate(int fd, int mode, uint64_t offset, uint64_t length);

// MARK: TAP interfaces and pseudoterminals

// Opens a TAP interface of this name (1 to 15 bytes), without packet information, close-on-exec and non-blocking; it
// is made if there is none and the user may. Returns the descriptor, or a negated errno.
int smmud_open_tap(const char *name);

// Makes a pseudoterminal in raw mode, close-on-exec. Returns the master, or a negated errno; *terminal is the other
// side, and path what that is called.
int smmud_open_pseudoterminal(char *path, size_t path_capacity, int *terminal);

// MARK: Unix sockets

// Takes the next client of a listening socket, close-on-exec. Returns the descriptor, or a negated errno.
int smmud_accept(int listener);

// MARK: Descriptors over Unix sockets (SCM_RIGHTS)

// How many descriptors one message carries at most.
#define SMMUD_MAX_FDS 16

// Sends bytes with fd_count descriptors (none is fine) attached to the first of them. `flags` as of sendmsg(2);
// MSG_NOSIGNAL is added. Returns how many bytes went, or a negated errno; EINVAL where there are more than
// SMMUD_MAX_FDS descriptors, or descriptors and no byte to carry them.
ssize_t smmud_send_fds(int socket, const struct iovec *iov, size_t iov_count, const int *fds, size_t fd_count,
                       int flags);

// Receives bytes, and up to fd_capacity descriptors, close-on-exec, which are then the caller's to close. `flags`
// as of recvmsg(2). Returns how many bytes came, 0 at the end of the stream, or a negated errno.
//
// Where more descriptors came than fit, *is_truncated is true, *fd_count is 0 and every one of them is closed:
// the bytes are good, but nobody can tell which descriptors are missing.
ssize_t smmud_recv_fds(int socket, const struct iovec *iov, size_t iov_count, int *fds, size_t fd_capacity,
                       size_t *fd_count, bool *is_truncated, int flags);

#endif
