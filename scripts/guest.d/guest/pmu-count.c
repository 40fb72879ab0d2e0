/*
 * Counts events of an uncore PMU while a command runs, as `perf stat -e PMU/EVENT/` does:
 *
 *     pmu-count PMU EVENT[=CONFIG1],... COMMAND...
 *
 * CONFIG1 is the number of the PMU's filters (for an SMMU's: StreamID | span << 32 | enable << 33). Prints a line for
 * each event: its name and its count.
 */
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* The first number in a file of the PMU's in sysfs, after `prefix`. */
static unsigned long number_in(const char *pmu, const char *name, const char *prefix) {
    char path[256], text[64] = "";
    unsigned long value;
    snprintf(path, sizeof path, "/sys/bus/event_source/devices/%s/%s", pmu, name);
    FILE *file = fopen(path, "r");
    if (!file || !fgets(text, sizeof text, file) || strncmp(text, prefix, strlen(prefix)) != 0) fail(path);
    fclose(file);
    value = strtoul(text + strlen(prefix), NULL, 0);
    return value;
}

int main(int count, char **arguments) {
    enum { MOST = 8 };
    char *names[MOST];
    int files[MOST], events = 0, status;
    if (count < 4) {
        fprintf(stderr, "pmu-count PMU EVENT[=CONFIG1],... COMMAND...\n");
        return 2;
    }
    const char *pmu = arguments[1];
    for (char *name = strtok(arguments[2], ","); name && events < MOST; name = strtok(NULL, ",")) {
        struct perf_event_attr attributes = {.size = sizeof attributes, .disabled = 1};
        char file[64], *filter = strchr(name, '=');
        if (filter) {
            *filter++ = 0;
            attributes.config1 = strtoull(filter, NULL, 0);
        }
        snprintf(file, sizeof file, "events/%s", name);
        attributes.type = (uint32_t)number_in(pmu, "type", "");
        attributes.config = number_in(pmu, file, "event=");
        names[events] = name;
        files[events] = (int)syscall(
            SYS_perf_event_open, &attributes, -1, (int)number_in(pmu, "cpumask", ""), -1, 0);
        if (files[events] < 0) fail(name);
        events++;
    }
    for (int event = 0; event < events; event++)
        if (ioctl(files[event], PERF_EVENT_IOC_ENABLE, 0)) fail("enable");
    pid_t child = fork();
    if (child == 0) {
        execvp(arguments[3], arguments + 3);
        fail(arguments[3]);
    }
    waitpid(child, &status, 0);
    for (int event = 0; event < events; event++)
        if (ioctl(files[event], PERF_EVENT_IOC_DISABLE, 0)) fail("disable");
    for (int event = 0; event < events; event++) {
        uint64_t value;
        if (read(files[event], &value, sizeof value) != sizeof value) fail("read");
        printf("%s %llu\n", names[event], (unsigned long long)value);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
