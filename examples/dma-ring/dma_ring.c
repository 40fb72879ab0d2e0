// DMA by a ring in shared memory: a client of smmud in C, with the C library alone. docs/dma-ring.md has the layout.
//
//   cc -O2 -o dma_ring examples/dma-ring/dma_ring.c
//   dma_ring SOCKET DEVICE IOVA [--count N] [--batch N] [--bytes N] [--poll]
//
// Writes a pattern at IOVA for DEVICE and reads it back, N requests of so many bytes with up to `batch` outstanding, and
// says how long one took. With --poll neither side sleeps.
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HELLO = 1, OPEN = 3, READ = 5, WRITE = 6, ATTACH_BUFFER = 7, RING_OPEN = 11, RING_CLOSE = 12 };
enum { NEXT = 1, WRITABLE = 2, NO_INTERRUPT = 1, NO_NOTIFY = 1, BROKEN = 1 << 15 };

struct request {
    uint32_t length;
    uint16_t opcode, flags;
    uint64_t id;
    uint32_t endpoint, stream, substream, buffer;
    uint64_t iova, count, offset, reserved;
};

struct answer {
    uint32_t length;
    uint16_t opcode, status;
    uint64_t id, transferred, address;
    uint32_t event, handle;
    uint64_t value[3];
};

struct descriptor {
    uint64_t offset;
    uint32_t length;
    uint16_t flags, next;
};

// A slot is two descriptors: the request with what it writes, and the answer with what it reads.
struct ring {
    uint16_t size;
    struct descriptor *table;
    uint16_t *available;  // flags, index, entries
    uint16_t *used;       // flags, index, then entries of 8 bytes
    char *memory;
    size_t first_slot, slot_bytes;
    uint16_t next_available, next_used;
    uint16_t outstanding;
    char *last_answer;  // Of the request that was submitted last.
    int kick, call;
    bool polls;
};

static void fail(const char *what) {
    fprintf(stderr, "dma_ring: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    exit(1);
}

static void send_all(int socket, const void *bytes, size_t count, const int *fds, size_t fd_count) {
    char control[CMSG_SPACE(sizeof(int) * 2)];
    struct iovec vector = {(void *)bytes, count};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (fd_count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * fd_count);
    }
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != (ssize_t)count) fail("cannot send");
}

// Sends a request over the socket and waits for its answer.
static struct answer call(int socket, struct request request, const int *fds, size_t fd_count) {
    struct answer answer;
    char text[1024] = "";
    request.length = sizeof request;
    send_all(socket, &request, sizeof request, fds, fd_count);
    if (recv(socket, &answer, sizeof answer, MSG_WAITALL) != sizeof answer) fail("the daemon closed the socket");
    size_t rest = answer.length - sizeof answer;
    if (rest >= sizeof text) fail("an answer that is too long");
    if (rest > 0 && recv(socket, text, rest, MSG_WAITALL) != (ssize_t)rest) fail("the daemon closed the socket");
    errno = 0;
    if (answer.status != 0) fail(text);
    return answer;
}

static struct ring open_ring(int socket, uint16_t slots, size_t data_bytes, bool polls) {
    struct ring ring = {.size = 2 * slots, .polls = polls};
    size_t ring_bytes = (size_t)ring.size * 32 + 4096;
    ring.slot_bytes = 128 + ((data_bytes + 255) & ~(size_t)63);
    ring.first_slot = (ring_bytes + 63) & ~(size_t)63;
    size_t byte_count = ring.first_slot + slots * ring.slot_bytes;
    int memory = memfd_create("dma-ring", MFD_CLOEXEC);
    if (memory < 0 || ftruncate(memory, (off_t)byte_count) != 0) fail("cannot make shared memory");
    ring.memory = mmap(NULL, byte_count, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    ring.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ring.call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ring.memory == MAP_FAILED || ring.kick < 0 || ring.call < 0) fail("cannot map shared memory");
    struct answer buffer = call(socket, (struct request){.opcode = ATTACH_BUFFER}, &memory, 1);
    struct request open = {
        .opcode = RING_OPEN,
        .buffer = buffer.handle,
        .count = ring.size,
        .iova = polls ? UINT64_MAX : 0,  // How long the daemon looks before it sleeps.
    };
    struct answer opened = call(socket, open, (int[]){ring.kick, ring.call}, 2);
    close(memory);
    ring.table = (struct descriptor *)ring.memory;
    ring.available = (uint16_t *)(ring.memory + opened.value[0]);
    ring.used = (uint16_t *)(ring.memory + opened.value[1]);
    return ring;
}

// Writes a descriptor where it changes: one that stays the same stays in both processors' caches.
static void describe(struct ring *ring, uint16_t index, struct descriptor new) {
    if (memcmp(&ring->table[index], &new, sizeof new) != 0) ring->table[index] = new;
}

static char *slot(struct ring *ring, uint16_t index) { return ring->memory + ring->first_slot + index * ring->slot_bytes; }

// Puts a request into a free slot; the daemon sees it with show().
static void submit(struct ring *ring, uint16_t index, struct request request, const void *payload) {
    char *start = slot(ring, index);
    size_t written = request.opcode == READ ? 0 : request.length - sizeof request;
    memcpy(start, &request, sizeof request);
    if (written > 0) memcpy(start + sizeof request, payload, written);
    size_t answer = sizeof request + ((written + 63) & ~(size_t)63);
    uint16_t head = 2 * index;
    describe(ring, head, (struct descriptor){
        (uint64_t)(start - ring->memory), (uint32_t)(sizeof request + written), NEXT, head + 1});
    describe(ring, head + 1, (struct descriptor){
        (uint64_t)(start - ring->memory) + answer, (uint32_t)(ring->slot_bytes - answer), WRITABLE, 0});
    ring->last_answer = start + answer;
    ring->outstanding++;
    ring->available[2 + (ring->next_available++ & (ring->size - 1))] = head;
}

static void show(struct ring *ring) {
    __atomic_store_n(&ring->available[1], ring->next_available, __ATOMIC_RELEASE);
    // The index before the flag is looked at: the daemon clears it, and then looks at the index.
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(&ring->used[0], __ATOMIC_ACQUIRE) & NO_NOTIFY) return;
    uint64_t one = 1;
    if (write(ring->kick, &one, sizeof one) < 0 && errno != EAGAIN) fail("cannot signal the daemon");
}

// Waits until there is an answer, and takes it.
static struct answer *take(struct ring *ring, uint16_t *index) {
    while (__atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE) == ring->next_used) {
        errno = 0;
        if (__atomic_load_n(&ring->used[0], __ATOMIC_ACQUIRE) & BROKEN) fail("the daemon finds the ring broken");
        if (ring->polls) {
            // The lines of the one answer come along with the index, and not after it.
            if (ring->outstanding == 1) {
                __builtin_prefetch(ring->last_answer);
                __builtin_prefetch(ring->last_answer + 64);
                __builtin_prefetch(ring->used + 2 + 4 * (ring->next_used & (ring->size - 1)));
            }
            continue;
        }
        __atomic_store_n(&ring->available[0], 0, __ATOMIC_RELEASE);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (__atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE) != ring->next_used) break;
        struct pollfd entry = {.fd = ring->call, .events = POLLIN};
        if (poll(&entry, 1, 10000) == 0) fail("no answer in 10 s");
        uint64_t count;
        if (read(ring->call, &count, sizeof count) < 0 && errno != EAGAIN) fail("cannot read the eventfd");
    }
    uint32_t head = *(uint32_t *)(ring->used + 2 + 4 * (ring->next_used++ & (ring->size - 1)));
    ring->outstanding--;
    *index = (uint16_t)(head / 2);
    return (struct answer *)(ring->memory + ring->table[head + 1].offset);
}

static void check(const struct answer *answer, uint64_t bytes) {
    errno = 0;
    if (answer->status == 1) {
        fprintf(stderr, "dma_ring: the SMMU terminated it at 0x%" PRIx64 ", event 0x%x\n", answer->address, answer->event);
        exit(2);
    }
    if (answer->status >= 16) {
        fprintf(stderr, "dma_ring: %.*s\n", (int)(answer->length - sizeof *answer), (const char *)(answer + 1));
        exit(1);
    }
    if (answer->status != 0 || answer->transferred != bytes) fail("the DMA was aborted");
}

static double nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

// Keeps up to `batch` READs outstanding until `count` are done.
static double read_many(struct ring *ring, uint32_t endpoint, uint64_t iova, uint32_t bytes, uint64_t count,
                        uint16_t batch, const char *expected) {
    struct request request = {
        .length = sizeof request, .opcode = READ, .endpoint = endpoint, .iova = iova, .count = bytes};
    double start = nanoseconds();
    uint64_t submitted = 0, done = 0;
    for (; submitted < batch && submitted < count; submitted++) submit(ring, (uint16_t)submitted, request, NULL);
    show(ring);
    while (done < count) {
        uint16_t index;
        do {
            struct answer *answer = take(ring, &index);
            check(answer, bytes);
            if (memcmp(answer + 1, expected, bytes) != 0) fail("what was read is not what was written");
            done++;
            if (submitted < count) {
                submit(ring, index, request, NULL);
                submitted++;
            }
        } while (done < count && __atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE) != ring->next_used);
        show(ring);
    }
    return (nanoseconds() - start) / (double)count;
}

int main(int argc, char **argv) {
    uint64_t count = 100000, bytes = 64, batch = 64;
    bool polls = false;
    if (argc < 4) {
        fputs("usage: dma_ring SOCKET DEVICE IOVA [--count N] [--batch N] [--bytes N] [--poll]\n", stderr);
        return 64;
    }
    for (int index = 4; index < argc; index++) {
        uint64_t *value = strcmp(argv[index], "--count") == 0   ? &count
                          : strcmp(argv[index], "--batch") == 0 ? &batch
                          : strcmp(argv[index], "--bytes") == 0 ? &bytes
                                                                : NULL;
        if (value != NULL && index + 1 < argc) *value = strtoull(argv[++index], NULL, 0);
        else if (strcmp(argv[index], "--poll") == 0) polls = true;
        else fail("an option that there is none of");
    }
    if (batch == 0 || batch > 1024 || (batch & (batch - 1)) != 0) fail("--batch: a power of two up to 1024");
    if (bytes == 0 || bytes > 1 << 20 || count == 0) fail("--bytes: 1 to 1 MiB; --count: 1 or more");

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(argv[1]) >= sizeof address.sun_path) fail("the socket's path is too long");
    strcpy(address.sun_path, argv[1]);
    int socket_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(socket_fd, (struct sockaddr *)&address, sizeof address) != 0) fail(argv[1]);
    uint64_t magic, iova = strtoull(argv[3], NULL, 0);
    memcpy(&magic, "SMMUDDMA", sizeof magic);
    call(socket_fd, (struct request){.opcode = HELLO, .iova = magic, .count = 1}, NULL, 0);
    struct ring ring = open_ring(socket_fd, (uint16_t)batch, bytes, polls);
    if (polls) ring.available[0] = NO_INTERRUPT;

    // A ring has handles of its own: the device is opened over it.
    uint16_t index;
    size_t name_bytes = strlen(argv[2]);
    errno = 0;
    if (name_bytes > bytes + 128) fail("the device's name is too long for a slot");
    submit(&ring, 0, (struct request){.length = (uint32_t)(sizeof(struct request) + name_bytes), .opcode = OPEN}, argv[2]);
    show(&ring);
    struct answer *opened = take(&ring, &index);
    check(opened, 0);
    uint32_t endpoint = opened->handle;

    char *pattern = malloc(bytes);
    for (uint64_t byte = 0; byte < bytes; byte++) pattern[byte] = (char)(byte * 7 + 1);
    struct request write = {.length = (uint32_t)(sizeof write + bytes), .opcode = WRITE, .endpoint = endpoint,
                            .iova = iova, .count = bytes};
    submit(&ring, 0, write, pattern);
    show(&ring);
    check(take(&ring, &index), bytes);

    double each = read_many(&ring, endpoint, iova, (uint32_t)bytes, count, (uint16_t)batch, pattern);
    printf("%" PRIu64 " reads of %" PRIu64 " bytes, %" PRIu64 " outstanding: %.0f ns each, %.2f million a second\n",
           count, bytes, batch, each, 1e3 / each);
    call(socket_fd, (struct request){.opcode = RING_CLOSE, .endpoint = 1}, NULL, 0);
    return 0;
}
