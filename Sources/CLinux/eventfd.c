// Eventfds that others share, waiting for many of them, and waiting with an end.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

bool smmud_is_eventfd(int fd) {
    char path[32], target[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target);
    static const char name[] = "anon_inode:[eventfd]";
    return length == sizeof name - 1 && memcmp(target, name, sizeof name - 1) == 0;
}

// Asynchronous I/O that has nothing to do, and whose completion is an eventfd's signal: the one way to add to an
// eventfd that cannot block, whatever its owner does to its flags and its counter meanwhile.
static struct {
    aio_context_t context;
    int nothing;
    bool is_usable;
} notifier = {.nothing = -1};
static pthread_once_t notifier_once = PTHREAD_ONCE_INIT;
#define NOTIFIER_CAPACITY 128

static void make_notifier(void) {
    if (syscall(SYS_io_setup, NOTIFIER_CAPACITY, &notifier.context) != 0) return;
    notifier.nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    notifier.is_usable = notifier.nothing >= 0;
}

void smmud_prepare_eventfd_signals(void) { pthread_once(&notifier_once, make_notifier); }

// True where the signal was given, or the descriptor is no eventfd; false where this way cannot be gone.
static bool complete_into(int fd) {
    static char no_bytes;
    struct iocb block = {
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = (uint32_t)notifier.nothing,
        .aio_buf = (uintptr_t)&no_bytes,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)fd,
    };
    struct iocb *blocks = &block;
    for (int attempt = 0; attempt < 4; attempt++) {
        if (syscall(SYS_io_submit, notifier.context, 1L, &blocks) == 1) return true;
        if (errno == EINVAL || errno == EBADF) return true;
        if (errno != EAGAIN) return false;
        // The ring of completions is full: nobody wants them.
        struct io_event events[32];
        struct timespec at_once = {0};
        syscall(SYS_io_getevents, notifier.context, 0L, 32L, events, &at_once);
    }
    return false;
}

void smmud_signal_eventfd(int fd) {
    smmud_prepare_eventfd_signals();
    if (notifier.is_usable && complete_into(fd)) return;
    // Not quite as good: its owner could fill it between the two calls.
    struct pollfd entry = {.fd = fd, .events = POLLOUT};
    if (poll(&entry, 1, 0) != 1 || !(entry.revents & POLLOUT)) return;
    uint64_t one = 1;
    ssize_t written = write(fd, &one, sizeof one);
    (void)written;
}

int smmud_epoll_create(void) {
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    return epoll < 0 ? -errno : epoll;
}

int smmud_epoll_watch(int epoll, int fd, uint64_t token) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = token};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

void smmud_epoll_forget(int epoll, int fd) {
    struct epoll_event event = {0};
    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &event);
}

int smmud_epoll_wait(int epoll, uint64_t *tokens, int capacity) {
    struct epoll_event events[16];
    if (capacity > 16) capacity = 16;
    int count = epoll_wait(epoll, events, capacity, -1);
    if (count < 0) return errno == EINTR ? 0 : -errno;
    for (int index = 0; index < count; index++) tokens[index] = events[index].data.u64;
    return count;
}

void *smmud_semaphore_create(unsigned value) {
    sem_t *semaphore = malloc(sizeof *semaphore);
    if (semaphore) sem_init(semaphore, 0, value);
    return semaphore;
}

void smmud_semaphore_destroy(void *semaphore) {
    if (!semaphore) return;
    sem_destroy(semaphore);
    free(semaphore);
}

void smmud_semaphore_signal(void *semaphore) { sem_post(semaphore); }

bool smmud_semaphore_wait(void *semaphore, int64_t deadline_nanoseconds) {
    // Most often nobody else has it.
    if (sem_trywait(semaphore) == 0) return true;
    struct timespec deadline = {
        .tv_sec = (time_t)(deadline_nanoseconds / 1000000000),
        .tv_nsec = (long)(deadline_nanoseconds % 1000000000),
    };
    for (;;) {
        int error = deadline_nanoseconds < 0 ? sem_wait(semaphore)
                                             : sem_clockwait(semaphore, CLOCK_MONOTONIC, &deadline);
        if (error == 0) return true;
        if (errno != EINTR) return false;
    }
}

int64_t smmud_monotonic_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
