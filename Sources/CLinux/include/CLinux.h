// The parts of Linux that Swift cannot reach by itself: macros, variadic calls, and atomic accesses to memory
// that is shared with other processes.
#ifndef SMMUD_CLINUX_H
#define SMMUD_CLINUX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

static inline void smmud_fence_seq_cst(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void smmud_compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void smmud_cpu_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// One step of waiting for another thread: spins at first, then gives the processor away, then sleeps.
void smmud_wait_a_little(int attempt);

// MARK: membarrier(2)

// Asks the kernel for MEMBARRIER_CMD_PRIVATE_EXPEDITED. True where it can be had: then
// smmud_membarrier() is a full barrier on every thread of this process.
bool smmud_membarrier_register(void);
void smmud_membarrier(void);

#endif
