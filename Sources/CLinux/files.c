// Files: what glibc hides from Swift.

#define _GNU_SOURCE

#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>

int smmud_fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
    return fallocate(fd, mode, (off_t)offset, (off_t)length) == 0 ? 0 : -errno;
}
