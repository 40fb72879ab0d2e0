#define _GNU_SOURCE
#include "CLinux.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

bool smmud_membarrier_register(void) {
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

void smmud_membarrier(void) {
    // Cannot fail once registered.
    syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
}
