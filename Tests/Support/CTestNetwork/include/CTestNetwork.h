// Calls that set up a network of the kernel's for one test, and that Swift cannot make. Errors are negative errno values.

#ifndef CTESTNETWORK_H
#define CTESTNETWORK_H

#include <stdint.h>

/// Moves the calling thread alone into a network of its own (CLONE_NEWNET), in which interfaces send nothing by
/// themselves. What it opens there stays there, and the network goes with the last such descriptor.
int smmud_test_enter_new_network(void);

/// A packet socket (AF_PACKET) for frames of one type that come out of an interface of the thread's network; a receive
/// waits 20 s at most.
int smmud_test_packet_socket(const char *interface, uint16_t ether_type);

/// Brings an interface up or down, in the network of any socket of it.
int smmud_test_set_interface(int socket, const char *interface, int is_up);

#endif
