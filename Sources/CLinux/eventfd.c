// Eventfds that others share, waiting for many of them, and waiting with an end.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

bool smmud_is_eventfd(int fd) {
    char path[32], target[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target);
    static const char name[] = "anon_inode:[eventfd]";
    return length == sizeof name - 1 && memcmp(target, name, sizeof name - 1) == 0;
}

void smmud_signal_eventfd(int fd) {
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
