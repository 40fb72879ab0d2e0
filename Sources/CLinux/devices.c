// TAP interfaces and pseudoterminals: what glibc hides from Swift, and ioctl(2), which is variadic.
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

// Closes a descriptor on the way out with an error.
static int give_up(int fd, int error) {
    close(fd);
    return -error;
}

int smmud_open_tap(const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    size_t length = strlen(name);
    if (length == 0 || length >= sizeof request.ifr_name) return -EINVAL;
    memcpy(request.ifr_name, name, length);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return -errno;
    return ioctl(fd, TUNSETIFF, &request) == 0 ? fd : give_up(fd, errno);
}

int smmud_open_pseudoterminal(char *path, size_t path_capacity, int *terminal) {
    int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return -errno;
    if (grantpt(fd) != 0 || unlockpt(fd) != 0) return give_up(fd, errno);
    int error = ptsname_r(fd, path, path_capacity);
    if (error != 0) return give_up(fd, error);
    *terminal = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (*terminal < 0) return give_up(fd, errno);
    struct termios settings;
    if (tcgetattr(*terminal, &settings) == 0) {
        cfmakeraw(&settings);
        tcsetattr(*terminal, TCSANOW, &settings);
    }
    return fd;
}
