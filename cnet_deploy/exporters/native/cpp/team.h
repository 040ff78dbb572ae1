// The inside of a team: see threads.h for what it does.
#pragma once

#include <pthread.h>

#include <atomic>

#include "cnet.h"
#include "threads.h"

namespace cnet {

constexpr int most_threads = CNET_MAX_THREADS;
static_assert(most_threads <= 32, "each share of a phase is one bit of a 32-bit word");

// Each word that threads fight for has a cache line of its own.
struct Team {
    alignas(64) std::atomic<uint64_t> claimed{0};   // phase << 32 | shares begun, a bit each
    alignas(64) std::atomic<uint64_t> finished{0};  // phase << 32 | how many shares are done
    alignas(64) std::atomic<uint32_t> over{1};      // the last phase whose shares are all done; waited for
    std::atomic<uint32_t> waiting{0};               // threads asleep on `over`
    alignas(64) std::atomic<uint32_t> start{1};     // the first phase of the newest inference; idle threads wait for it to change
    std::atomic<uint32_t> idle{0};                  // threads asleep on `start`
    std::atomic<bool> stop{false};
    std::atomic<const float *> image{nullptr};
    std::atomic<float *> logits{nullptr};
    int size = 1;
};

// Announce an inference that begins with phase `first`, and wake the threads that sleep.
void begin(Team &team, uint32_t first, const float *image, float *logits);
// Returns when `start` is no longer `seen`: the new value.
uint32_t wait_for_start(Team &team, uint32_t seen);
// Make all workers leave; `start` changes.
void dismiss(Team &team);

}  // namespace cnet
