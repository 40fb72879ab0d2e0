// Lets the process survive a peer that truncates the file under one of our mappings.
//
// The handler runs on whichever thread touched the memory, at any instruction. So it takes no lock, allocates
// nothing, and reads the table of mappings without waiting for those who change it: each slot is a sequence lock,
// and a slot that changes while it is read is not the one that the handler looks for, because the mapping that
// faulted stays registered during every access to it.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

struct slot {
    uint32_t is_taken;  // Claimed with a compare-and-exchange by whoever registers.
    uint32_t sequence;  // Odd while the fields below change.
    uintptr_t base;
    size_t length;  // 0: nothing is registered here.
    size_t page_size;
    int protection;
    uint32_t is_lost;
};

static struct slot table[SMMUD_GUARD_CAPACITY];
// No slot at or above this was ever taken.
static uint32_t high_water;
static struct sigaction previous_action;
static pthread_once_t once = PTHREAD_ONCE_INIT;

// Puts private zeroes over the mapping from the page that faulted to the end: what a truncation took away. All of
// it at once, because a mapping for each page would run into the kernel's limit on their number.
static bool replace_tail(const struct slot *copy, uintptr_t address) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    uintptr_t page = address & ~((uintptr_t)copy->page_size - 1);
    size_t tail = copy->length - (page - copy->base);
    if (mmap((void *)page, tail, copy->protection, flags, -1, 0) != MAP_FAILED) return true;
    // A system that commits strictly may refuse the whole; the one page is enough to go on.
    return mmap((void *)page, copy->page_size, copy->protection, flags, -1, 0) != MAP_FAILED;
}

static bool survive(uintptr_t address) {
    uint32_t count = __atomic_load_n(&high_water, __ATOMIC_ACQUIRE);
    for (uint32_t index = 0; index < count; index++) {
        struct slot *slot = &table[index];
        struct slot copy;
        uint32_t before = __atomic_load_n(&slot->sequence, __ATOMIC_ACQUIRE);
        copy.base = __atomic_load_n(&slot->base, __ATOMIC_RELAXED);
        copy.length = __atomic_load_n(&slot->length, __ATOMIC_RELAXED);
        copy.page_size = __atomic_load_n(&slot->page_size, __ATOMIC_RELAXED);
        copy.protection = __atomic_load_n(&slot->protection, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if ((before & 1) != 0 || __atomic_load_n(&slot->sequence, __ATOMIC_RELAXED) != before) continue;
        if (address < copy.base || address - copy.base >= copy.length) continue;
        // First the flag: a thread that reads the zeroes must not find the flag still clear.
        __atomic_store_n(&slot->is_lost, 1, __ATOMIC_SEQ_CST);
        return replace_tail(&copy, address);
    }
    return false;
}

static void handle_bus_error(int signal, siginfo_t *info, void *context) {
    (void)context;
    int saved_errno = errno;
    // si_code > 0: the kernel raised it for an access, and si_addr is that access's address.
    bool is_fault = info->si_code > 0;
    if (!is_fault || !survive((uintptr_t)info->si_addr)) {
        // Not ours. With the previous action back in place the access faults again when we return, and a signal
        // that somebody sent is sent again.
        sigaction(signal, &previous_action, NULL);
        if (!is_fault) raise(signal);
    }
    errno = saved_errno;
}

static void install(void) {
    struct sigaction action = {.sa_sigaction = handle_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigemptyset(&action.sa_mask);
    // Before the handler can run, so that it never restores an empty action.
    sigaction(SIGBUS, NULL, &previous_action);
    sigaction(SIGBUS, &action, NULL);
}

static void raise_high_water(uint32_t count) {
    uint32_t seen = __atomic_load_n(&high_water, __ATOMIC_RELAXED);
    while (seen < count &&
           !__atomic_compare_exchange_n(&high_water, &seen, count, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    }
}

// Only the slot's owner calls this.
static void set_slot(struct slot *slot, uintptr_t base, size_t length, size_t page_size, int protection) {
    uint32_t sequence = __atomic_load_n(&slot->sequence, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->sequence, sequence + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    __atomic_store_n(&slot->base, base, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->length, length, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->page_size, page_size, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->protection, protection, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->is_lost, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->sequence, sequence + 2, __ATOMIC_RELEASE);
}

const uint32_t *smmud_guard_register(void *base, size_t length, size_t page_size, bool is_writable) {
    pthread_once(&once, install);
    int protection = is_writable ? PROT_READ | PROT_WRITE : PROT_READ;
    for (uint32_t index = 0; index < SMMUD_GUARD_CAPACITY; index++) {
        struct slot *slot = &table[index];
        uint32_t expected = 0;
        if (__atomic_load_n(&slot->is_taken, __ATOMIC_RELAXED) != 0) continue;
        if (!__atomic_compare_exchange_n(&slot->is_taken, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        set_slot(slot, (uintptr_t)base, length, page_size, protection);
        raise_high_water(index + 1);
        return &slot->is_lost;
    }
    errno = ENOSPC;
    return NULL;
}

void smmud_guard_unregister(const uint32_t *flag) {
    struct slot *slot = (struct slot *)((uintptr_t)flag - offsetof(struct slot, is_lost));
    set_slot(slot, 0, 0, 0, 0);
    __atomic_store_n(&slot->is_taken, 0, __ATOMIC_RELEASE);
}
