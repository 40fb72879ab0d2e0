/*
 * A driver in user space for an NVMe controller that is bound to vfio-pci: nvme-vfio FUNCTION GROUP [--nested].
 * Maps memory for it with VFIO, asks for its identity, and then lets it write where nothing is mapped any more.
 *
 * With --nested the container is of type VFIO_TYPE1_NESTING_IOMMU, for which arm-smmu-v3 uses a stage-2 domain. Linux
 * 6.12 refuses that, as its domains are settled when they are made; 6.1 does not.
 *
 * Prints a line for each step, and exits with 1 at the first that went wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define QUEUE_ENTRIES 16
/* Apart from the MSI region that arm-smmu-v3 reserves at 0x8000000. */
#define QUEUES_IOVA 0x40000000ULL
#define DATA_IOVA 0x7654321000ULL
#define PAGE 4096UL

/* Register offsets of an NVMe controller (NVM Express base specification, 3.1). */
enum { CAP = 0x0, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };

static int container, device;
static volatile uint8_t *registers;
static volatile uint8_t *queues;
static volatile uint8_t *data;
static unsigned tail, head, phase = 1;

static void fail(const char *what) {
    printf("%s: %s\n", what, errno ? strerror(errno) : "wrong");
    exit(1);
}

static uint32_t read32(unsigned offset) { return *(volatile uint32_t *)(registers + offset); }
static void write32(unsigned offset, uint32_t value) { *(volatile uint32_t *)(registers + offset) = value; }
static void write64(unsigned offset, uint64_t value) {
    write32(offset, (uint32_t)value);
    write32(offset + 4, (uint32_t)(value >> 32));
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void open_group(const char *group, const char *function, int nested) {
    struct vfio_group_status status = {.argsz = sizeof status};
    char path[64];
    snprintf(path, sizeof path, "/dev/vfio/%s", group);
    container = open("/dev/vfio/vfio", O_RDWR);
    int group_file = open(path, O_RDWR);
    if (container < 0 || group_file < 0) fail("open");
    if (ioctl(group_file, VFIO_GROUP_GET_STATUS, &status)) fail("group status");
    errno = 0;
    if (!(status.flags & VFIO_GROUP_FLAGS_VIABLE)) fail("group viable");
    if (ioctl(group_file, VFIO_GROUP_SET_CONTAINER, &container)) fail("set container");
    if (ioctl(container, VFIO_SET_IOMMU, nested ? VFIO_TYPE1_NESTING_IOMMU : VFIO_TYPE1v2_IOMMU)) fail("set iommu");
    device = ioctl(group_file, VFIO_GROUP_GET_DEVICE_FD, function);
    if (device < 0) fail("device");
}

static void map_registers(void) {
    struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
    struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
    uint16_t command;
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) || ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
        fail("region info");
    registers = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
    if (registers == MAP_FAILED) fail("map BAR 0");
    if (pread(device, &command, 2, (off_t)config.offset + 4) != 2) fail("read command");
    command |= 0x6; /* memory space, bus master */
    if (pwrite(device, &command, 2, (off_t)config.offset + 4) != 2) fail("write command");
}

static volatile uint8_t *map_memory(uint64_t iova, uint64_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct vfio_iommu_type1_dma_map map = {
        .argsz = sizeof map, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)memory, .iova = iova, .size = size,
    };
    if (memory == MAP_FAILED) fail("memory");
    memset(memory, 0, size);
    if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map)) fail("map dma");
    return memory;
}

static void unmap_memory(uint64_t iova, uint64_t size) {
    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = iova, .size = size};
    if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap)) fail("unmap dma");
}

static void wait_ready(uint32_t wanted) {
    double end = now() + 10;
    while ((read32(CSTS) & 1) != wanted) {
        errno = 0;
        if (now() > end) fail("CSTS.RDY");
    }
}

static void start_controller(void) {
    write32(CC, 0);
    wait_ready(0);
    write32(AQA, (QUEUE_ENTRIES - 1) << 16 | (QUEUE_ENTRIES - 1));
    write64(ASQ, QUEUES_IOVA);
    write64(ACQ, QUEUES_IOVA + PAGE);
    write32(CC, 4 << 20 | 6 << 16 | 1); /* completion entries of 16 bytes, submission entries of 64, enable */
    wait_ready(1);
}

/* Identify Controller with its data at `iova`: the status field of its completion. */
static unsigned identify(uint64_t iova) {
    volatile uint32_t *command = (volatile uint32_t *)(queues + 64 * tail);
    volatile uint32_t *completion = (volatile uint32_t *)(queues + PAGE + 16 * head);
    double end = now() + 10;
    for (int word = 0; word < 16; word++) command[word] = 0;
    command[0] = 0x06 | (tail + 1) << 16; /* Identify, and a command identifier */
    command[6] = (uint32_t)iova;
    command[7] = (uint32_t)(iova >> 32);
    command[10] = 1; /* CNS: controller */
    __sync_synchronize();
    tail = (tail + 1) % QUEUE_ENTRIES;
    write32(DOORBELLS, tail);
    while ((completion[3] >> 16 & 1) != phase) {
        errno = 0;
        if (now() > end) fail("no completion");
    }
    __sync_synchronize();
    unsigned status = completion[3] >> 17 & 0x7ff;
    head = (head + 1) % QUEUE_ENTRIES;
    if (head == 0) phase ^= 1;
    write32(DOORBELLS + 4, head);
    return status;
}

int main(int count, char **arguments) {
    int nested = count > 3 && strcmp(arguments[3], "--nested") == 0;
    if (count < 3) {
        fprintf(stderr, "nvme-vfio FUNCTION GROUP [--nested]\n");
        return 2;
    }
    open_group(arguments[2], arguments[1], nested);
    map_registers();
    queues = map_memory(QUEUES_IOVA, 2 * PAGE);
    data = map_memory(DATA_IOVA, PAGE);
    start_controller();

    unsigned status = identify(DATA_IOVA);
    errno = 0;
    if (status) fail("identify");
    printf("identify: %.40s\n", (const char *)data + 24);

    /* Unmapped, the page stays ours: what the controller writes there now would be seen. */
    memset((void *)data, 0xa5, PAGE);
    unmap_memory(DATA_IOVA, PAGE);
    status = identify(DATA_IOVA);
    printf("identify into an unmapped page: status %#x\n", status);
    if (!status) fail("status of a command whose data cannot be written");
    for (unsigned at = 0; at < PAGE; at++)
        if (data[at] != 0xa5) fail("an unmapped page was written");

    /* The controller still works. */
    data = map_memory(DATA_IOVA, PAGE);
    if (identify(DATA_IOVA)) fail("identify again");
    printf("identify again: %.40s\n", (const char *)data + 24);
    write32(CC, 0);
    wait_ready(0);
    return 0;
}
