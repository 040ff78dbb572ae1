// Claims, meetings and sleep. Compiled once, for the baseline.
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "team.h"

namespace cnet {

namespace {

constexpr int spins = 1500;  // some 15 to 50 microseconds, the length of a small phase

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

void sleep_while(std::atomic<uint32_t> &word, uint32_t value) {
    syscall(SYS_futex, (uint32_t *)(void *)&word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t> &word) {
    syscall(SYS_futex, (uint32_t *)(void *)&word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Spin, then sleep, until `done(word)`. Whoever changes the word reads `sleepers` afterwards, both in one total order: either it sees this
// sleeper, or this sleeper sees the change.
template <class Done>
uint32_t wait_until(std::atomic<uint32_t> &word, std::atomic<uint32_t> &sleepers, Done done) {
    uint32_t value = word.load(std::memory_order_acquire);
    for (int i = 0; i < spins && !done(value); i++) {
        pause();
        value = word.load(std::memory_order_acquire);
    }
    if (done(value)) return value;
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    for (value = word.load(std::memory_order_seq_cst); !done(value); value = word.load(std::memory_order_seq_cst)) sleep_while(word, value);
    sleepers.fetch_sub(1, std::memory_order_relaxed);
    return value;
}

bool reached(uint32_t phase, uint32_t wanted) { return (int32_t)(phase - wanted) >= 0; }

}  // namespace

int shares_of(const Team &team) { return team.size; }

int claim(const Member &m) {
    Team &t = *m.team;
    const uint32_t all = t.size == 32 ? ~0u : (1u << t.size) - 1;
    uint64_t word = t.claimed.load(std::memory_order_acquire);
    for (;;) {
        const uint32_t phase = (uint32_t)(word >> 32);
        const uint32_t begun = phase == m.phase ? (uint32_t)word : 0;
        if (!reached(m.phase, phase) || begun == all) return -1;
        // Its own share, else the first that is free.
        const int share = begun >> m.thread & 1 ? __builtin_ctz(~begun) : m.thread;
        const uint64_t wanted = (uint64_t)m.phase << 32 | begun | 1u << share;
        if (t.claimed.compare_exchange_weak(word, wanted, std::memory_order_acq_rel, std::memory_order_acquire)) return share;
    }
}

void finish(const Member &m) {
    Team &t = *m.team;
    uint64_t word = t.finished.load(std::memory_order_relaxed), next;
    do {
        const uint32_t count = (uint32_t)(word >> 32) == m.phase ? (uint32_t)word : 0;
        next = (uint64_t)m.phase << 32 | (count + 1);
    } while (!t.finished.compare_exchange_weak(word, next, std::memory_order_acq_rel, std::memory_order_relaxed));
    if ((uint32_t)next != (uint32_t)t.size) return;
    t.over.store(m.phase, std::memory_order_seq_cst);
    if (t.waiting.load(std::memory_order_seq_cst)) wake_all(t.over);
}

void meet(Member &m) {
    const uint32_t phase = m.phase;
    wait_until(m.team->over, m.team->waiting, [phase](uint32_t over) { return reached(over, phase); });
    m.phase++;
}

void begin(Team &t, uint32_t first, const float *image, float *logits, size_t images) {
    // A thread that comes late to an older inference may read these: it will find no share to do.
    t.image.store(image, std::memory_order_relaxed);
    t.logits.store(logits, std::memory_order_relaxed);
    t.images.store(images, std::memory_order_relaxed);
    t.taken.store(0, std::memory_order_relaxed);
    t.start.store(first, std::memory_order_seq_cst);
    if (t.idle.load(std::memory_order_seq_cst)) wake_all(t.start);
}

uint32_t wait_for_start(Team &t, uint32_t seen) {
    return wait_until(t.start, t.idle, [seen](uint32_t start) { return start != seen; });
}

void dismiss(Team &t) {
    t.stop.store(true, std::memory_order_release);
    t.start.fetch_add(1, std::memory_order_seq_cst);
    wake_all(t.start);
}

}  // namespace cnet
