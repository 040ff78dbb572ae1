// The inside of a team: see threads.h for what it does.
#pragma once

#include <pthread.h>
#include <stddef.h>

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
    std::atomic<size_t> images{0};             // of an inference that shares them: how many
    alignas(64) std::atomic<size_t> taken{0};  // and how many of them threads have begun
    int size = 1;
};

// An inference shares the layers of one image, each a phase or two, or it shares images and is one phase, in which each thread takes whole
// images. The parity of its first phase says which: a thread that comes late to it can't take it for a newer one of the other kind.
inline bool of_images(uint32_t first) { return first & 1; }
// The first phase of an inference that follows when `next` is the number after the last.
inline uint32_t first_phase(uint32_t next, bool images) { return next + (of_images(next) != images); }

// Announce an inference that begins with phase `first`, and wake the threads that sleep. `images`: of how many, 0 where layers are shared.
void begin(Team &team, uint32_t first, const float *image, float *logits, size_t images);
// Returns when `start` is no longer `seen`: the new value.
uint32_t wait_for_start(Team &team, uint32_t seen);
// Make all workers leave; `start` changes.
void dismiss(Team &team);

}  // namespace cnet
