// Sealed memfds, and what Swift cannot ask of a file by itself.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

static int create_memfd(const char *name, uint64_t byte_count, int seals) {
    if (byte_count > INT64_MAX) return -EFBIG;
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    // Kernels before 6.3 do not know MFD_NOEXEC_SEAL.
    if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -errno;
    if (ftruncate(fd, (off_t)byte_count) != 0 || (seals != 0 && fcntl(fd, F_ADD_SEALS, seals) != 0)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int smmud_memfd_create_sealed(const char *name, uint64_t byte_count) {
    // F_SEAL_SEAL: a peer must not be able to seal writing away from the others.
    return create_memfd(name, byte_count, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

int smmud_memfd_create_unsealed(const char *name, uint64_t byte_count) { return create_memfd(name, byte_count, 0); }

size_t smmud_mapping_page_size(int fd) {
    struct statfs info;
    if (fstatfs(fd, &info) != 0) return 0;
    if (info.f_type == HUGETLBFS_MAGIC) return (size_t)info.f_bsize;
    return (size_t)sysconf(_SC_PAGESIZE);
}

bool smmud_is_fuse(int fd) {
    struct statfs info;
    return fstatfs(fd, &info) == 0 && info.f_type == FUSE_SUPER_MAGIC;
}

int smmud_duplicate(int fd) {
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return copy < 0 ? -errno : copy;
}
