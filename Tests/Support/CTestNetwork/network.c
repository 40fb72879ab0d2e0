#define _GNU_SOURCE
#include "CTestNetwork.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

int smmud_test_enter_new_network(void) {
    if (unshare(CLONE_NEWNET) != 0) return -errno;
    // Without IPv6 in the kernel there is no such file, and nothing to switch off.
    int setting = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);
    if (setting < 0) return errno == ENOENT ? 0 : -errno;
    int result = write(setting, "1", 1) == 1 ? 0 : -errno;
    close(setting);
    return result;
}

static int copy_name(struct ifreq *request, const char *interface) {
    size_t length = strlen(interface);
    if (length == 0 || length >= sizeof request->ifr_name) return -EINVAL;
    memcpy(request->ifr_name, interface, length);
    return 0;
}

int smmud_test_packet_socket(const char *interface, uint16_t ether_type) {
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ether_type));
    if (fd < 0) return -errno;
    struct timeval patience = {.tv_sec = 20};
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ether_type),
        .sll_ifindex = (int)if_nametoindex(interface),
    };
    if (address.sll_ifindex > 0
        && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0
        && bind(fd, (struct sockaddr *)&address, sizeof address) == 0) {
        // An interface that is down leaves ENETDOWN for the next call; taken up it is bound all the same.
        int pending = 0;
        socklen_t size = sizeof pending;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &pending, &size) == 0) return fd;
    }
    int error = errno;
    close(fd);
    return -error;
}

int smmud_test_set_interface(int socket, const char *interface, int is_up) {
    struct ifreq request = {0};
    int error = copy_name(&request, interface);
    if (error != 0) return error;
    if (ioctl(socket, SIOCGIFFLAGS, &request) != 0) return -errno;
    if (is_up)
        request.ifr_flags |= IFF_UP;
    else
        request.ifr_flags &= ~IFF_UP;
    return ioctl(socket, SIOCSIFFLAGS, &request) == 0 ? 0 : -errno;
}
