/*
 * Reads or writes a disk for a time, past the page cache, and says how fast that was:
 *
 *     disk-bench DISK random|sequential read|write BLOCK-BYTES DEPTH MILLISECONDS
 *
 * DEPTH requests are outstanding all the time, by Linux's own asynchronous I/O. Prints one line: how many requests
 * were completed, and in how many nanoseconds. The random offsets are the same in every run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH_MAX = 256 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static struct {
    uint64_t block, block_count, next, random;
    int is_random;
} plan;

/* Where the next request goes. */
static uint64_t next_offset(void) {
    if (!plan.is_random) return plan.next++ % plan.block_count * plan.block;
    /* xorshift64 of Marsaglia's. */
    plan.random ^= plan.random << 13;
    plan.random ^= plan.random >> 7;
    plan.random ^= plan.random << 17;
    return plan.random % plan.block_count * plan.block;
}

int main(int count, char **arguments) {
    static struct iocb requests[DEPTH_MAX], *ready[DEPTH_MAX];
    static struct io_event events[DEPTH_MAX];
    aio_context_t context = 0;
    uint64_t size, done = 0, began, end;
    long outstanding = 0, ready_count;
    if (count != 7) {
        fprintf(stderr, "disk-bench DISK random|sequential read|write BLOCK-BYTES DEPTH MILLISECONDS\n");
        return 2;
    }
    int is_write = strcmp(arguments[3], "write") == 0, depth = atoi(arguments[5]);
    plan.is_random = strcmp(arguments[2], "random") == 0;
    plan.block = strtoull(arguments[4], NULL, 0);
    plan.random = 0x9E3779B97F4A7C15;
    int disk = open(arguments[1], (is_write ? O_RDWR : O_RDONLY) | O_DIRECT);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size)) fail(arguments[1]);
    if (plan.block == 0 || plan.block % 512 || size < plan.block || depth < 1 || depth > DEPTH_MAX) {
        fprintf(stderr, "disk-bench: no such block size or depth\n");
        return 2;
    }
    plan.block_count = size / plan.block;
    if (syscall(SYS_io_setup, depth, &context)) fail("io_setup");
    for (int index = 0; index < depth; index++) {
        void *buffer;
        if (posix_memalign(&buffer, 4096, plan.block)) fail("memory");
        memset(buffer, index + 1, plan.block);
        requests[index].aio_fildes = (uint32_t)disk;
        requests[index].aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
        requests[index].aio_buf = (uint64_t)(uintptr_t)buffer;
        requests[index].aio_nbytes = plan.block;
        requests[index].aio_data = (uint64_t)index;
        ready[index] = &requests[index];
    }
    ready_count = depth;
    began = nanoseconds();
    end = began + strtoull(arguments[6], NULL, 0) * 1000000;
    do {
        for (long index = 0; index < ready_count; index++) ready[index]->aio_offset = (int64_t)next_offset();
        for (long sent = 0; sent < ready_count;) {
            long now = syscall(SYS_io_submit, context, ready_count - sent, ready + sent);
            if (now < 0 && errno == EINTR) continue;
            if (now <= 0) fail("io_submit");
            sent += now;
        }
        outstanding += ready_count;
        ready_count = 0;
        long arrived = syscall(SYS_io_getevents, context, 1, outstanding, events, NULL);
        if (arrived < 0 && errno != EINTR) fail("io_getevents");
        for (long index = 0; index < arrived; index++) {
            if (events[index].res != (int64_t)plan.block) {
                fprintf(stderr, "disk-bench: a request gave %lld\n", (long long)events[index].res);
                return 1;
            }
            ready[ready_count++] = &requests[events[index].data];
        }
        if (arrived > 0) {
            done += (uint64_t)arrived;
            outstanding -= arrived;
        }
    } while (nanoseconds() < end);
    /* Only what was complete in that time counts; the rest is waited for so that the next run begins on a quiet disk. */
    uint64_t took = nanoseconds() - began;
    while (outstanding > 0) {
        long arrived = syscall(SYS_io_getevents, context, 1, outstanding, events, NULL);
        if (arrived < 0 && errno != EINTR) fail("io_getevents");
        if (arrived > 0) outstanding -= arrived;
    }
    printf("%llu %llu\n", (unsigned long long)done, (unsigned long long)took);
}
