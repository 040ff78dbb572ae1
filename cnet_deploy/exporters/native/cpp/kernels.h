// What one instruction set offers the engine. `kernels.cpp` is compiled once for each, with its own namespace and flags.
#pragma once

#include "plan.h"
#include "threads.h"

namespace cnet {

// What an image is computed in: a handle's, or that of one of its threads.
struct Memory {
    float *activations;  // the maps of all blocks
    float *between;      // what all threads share between the two convolutions of a layer
    float *features;     // before the classifier
    float *scratch;      // a piece for each thread
    int64_t scratch_floats;
};

struct Kernels {
    const char *name;
    int64_t (*scratch_floats)(const Plan &plan);  // that one thread needs
    // One thread's part of one image; all members of a team call it. Returns when the last phase is over.
    void (*run)(const Plan &plan, const Memory &memory, Member &member, const float *image, float *logits);
};

}  // namespace cnet
