// How many processors this process may use: by its affinity, and by the quota of the container that it runs in.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

// A number at the beginning of a text, 0 if there is none; `text` is moved behind it.
inline uint64_t number_at(const char *&text) {
    uint64_t number = 0;
    while (*text == ' ' || *text == '\n') text++;
    for (; *text >= '0' && *text <= '9'; text++)
        if (number < (uint64_t{1} << 40)) number = number * 10 + static_cast<uint64_t>(*text - '0');
    return number;
}

// Processors for a quota of processor time in a period, rounded up; 0 for no quota, which is "max" or -1.
inline uint64_t processors_of(const char *quota, const char *period) {
    const uint64_t time = number_at(quota), of = number_at(period);
    return time && of ? (time + of - 1) / of : 0;
}

// A small file's text with a zero after it; empty if it can't be read.
inline void read_line(const char *path, char *text, size_t room) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t size = file < 0 ? 0 : read(file, text, room - 1);
    text[size > 0 ? size : 0] = 0;
    if (file >= 0) close(file);
}

// A container's quota, of control groups in version 2 or 1; 0 if it has none.
inline uint64_t processors_of_container() {
    char quota[64], period[64];
    read_line("/sys/fs/cgroup/cpu.max", quota, sizeof quota);
    if (*quota) {
        const char *rest = strchr(quota, ' ');
        return rest ? processors_of(quota, rest) : 0;
    }
    read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota, sizeof quota);
    read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period, sizeof period);
    return processors_of(quota, period);
}

inline uint64_t usable_processors() {
    cpu_set_t set;
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t count = online > 0 ? static_cast<uint64_t>(online) : 1;
    if (!sched_getaffinity(0, sizeof set, &set)) count = static_cast<uint64_t>(CPU_COUNT(&set));
    const uint64_t quota = processors_of_container();
    return quota && quota < count ? quota : count;
}
