// Unix sockets, descriptors over them, and eventfds.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

int smmud_eventfd(void) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int smmud_accept(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

// Room for the descriptors of one message, aligned as the kernel's headers in it want.
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(SMMUD_MAX_FDS * sizeof(int))];
};

ssize_t smmud_send_fds(int socket, const struct iovec *iov, size_t iov_count, const int *fds, size_t fd_count,
                       int flags) {
    if (fd_count > SMMUD_MAX_FDS) return -EINVAL;
    size_t byte_count = 0;
    for (size_t index = 0; index < iov_count && byte_count == 0; index++) byte_count = iov[index].iov_len;
    // The kernel drops descriptors that no byte of a stream carries, without a word.
    if (fd_count > 0 && byte_count == 0) return -EINVAL;

    union control control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = iov_count};
    if (fd_count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
    }
    for (;;) {
        ssize_t sent = sendmsg(socket, &message, flags | MSG_NOSIGNAL);
        if (sent >= 0) return sent;
        if (errno != EINTR) return -errno;
    }
}

// Moves the descriptors of one message into fds. Those beyond its capacity are closed.
static bool take_fds(struct msghdr *message, int *fds, size_t fd_capacity, size_t *fd_count) {
    bool is_complete = (message->msg_flags & MSG_CTRUNC) == 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t index = 0; index < count; index++) {
            int fd;
            memcpy(&fd, CMSG_DATA(header) + index * sizeof fd, sizeof fd);
            if (*fd_count < fd_capacity) {
                fds[(*fd_count)++] = fd;
            } else {
                close(fd);
                is_complete = false;
            }
        }
    }
    return is_complete;
}

ssize_t smmud_recv_fds(int socket, const struct iovec *iov, size_t iov_count, int *fds, size_t fd_capacity,
                       size_t *fd_count, bool *is_truncated, int flags) {
    *fd_count = 0;
    *is_truncated = false;
    union control control;
    struct msghdr message;
    ssize_t received;
    do {
        message = (struct msghdr){
            .msg_iov = (struct iovec *)iov,
            .msg_iovlen = iov_count,
            .msg_control = &control,
            .msg_controllen = sizeof control,
        };
        received = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
    } while (received < 0 && errno == EINTR);
    if (received < 0) return -errno;
    if (!take_fds(&message, fds, fd_capacity, fd_count)) {
        while (*fd_count > 0) close(fds[--*fd_count]);
        *is_truncated = true;
    }
    return received;
}
