#define _GNU_SOURCE
#include "CLinux.h"

#include <linux/membarrier.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

bool smmud_membarrier_register(void) {
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

// Before there is a second thread, registering costs nothing; later the kernel waits for all processors, which takes
// milliseconds, and a daemon's start would wait with it.
__attribute__((constructor)) static void register_early(void) { smmud_membarrier_register(); }

void smmud_membarrier(void) {
    // Cannot fail once registered.
    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}

void smmud_wait_a_little(int attempt) {
    if (attempt >= 0 && attempt < 64) {
        smmud_cpu_pause();
    } else if (attempt >= 0 && attempt < 1024) {
        sched_yield();
    } else {
        struct timespec pause = {.tv_sec = 0, .tv_nsec = 50 * 1000};
        nanosleep(&pause, NULL);
    }
}

void smmud_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

#define TRANSACTION_LEVELS 16
static _Thread_local const void *transaction_owners[TRANSACTION_LEVELS];
static _Thread_local unsigned transaction_depth;

void smmud_push_transaction(const void *owner) {
    if (transaction_depth < TRANSACTION_LEVELS) transaction_owners[transaction_depth] = owner;
    transaction_depth++;
}

void smmud_pop_transaction(void) { transaction_depth--; }

bool smmud_is_in_transaction(const void *owner) {
    if (transaction_depth > TRANSACTION_LEVELS) return true;
    for (unsigned level = 0; level < transaction_depth; level++) {
        if (transaction_owners[level] == owner) return true;
    }
    return false;
}
