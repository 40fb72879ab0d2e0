// Sealed memfds, and what Swift cannot ask of a file by itself.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <linux/magic.h>
#include <malloc.h>
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

static int forget_pages(struct dl_phdr_info *object, size_t size, void *context) {
    (void)size;
    (void)context;
    uintptr_t mask = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
    for (int index = 0; index < object->dlpi_phnum; index++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[index];
        // What can be written has content of its own; so has RELRO, which is in such segments.
        if (segment->p_type != PT_LOAD || (segment->p_flags & PF_W) != 0) continue;
        uintptr_t start = (object->dlpi_addr + segment->p_vaddr) & ~mask;
        uintptr_t end = (object->dlpi_addr + segment->p_vaddr + segment->p_memsz + mask) & ~mask;
        madvise((void *)start, end - start, MADV_DONTNEED);
    }
    return 0;
}

void smmud_forget_startup_pages(void) {
    dl_iterate_phdr(forget_pages, NULL);
    malloc_trim(0);
}
