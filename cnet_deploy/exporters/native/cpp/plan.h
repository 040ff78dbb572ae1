// The plan: what is computed, in which order and where it lies, all of it decided at export. `plan.cpp` is generated beside this file
// and fills these structures; the kernels only read them.
//
// Every table and weight lies in one array of 32-bit words, `data`; a field of type Words is where in it something begins. Planes are
// given as offsets in floats from the first plane of their map, so that a gather is a table and a concatenation is nothing at all.
#pragma once

#include <stdint.h>

namespace cnet {

using Words = int64_t;

// Pixels as vectors (maps that are wide), or output channels as vectors (maps that are narrow, groups that are deep).
enum class Layout : int32_t { wide, narrow };

// A grouped 1x1 convolution with the batch norm and ReLU before it.
struct Pointwise {
    int32_t groups;
    int32_t inputs;   // that a group stores; a group may use fewer
    int32_t outputs;  // of a group
    Words counts;     // [groups][2]: inputs whose ReLU is a maximum, inputs in all (wide)
    Words planes;     // [groups][inputs]: the input's plane
    Words scale;      // [groups][inputs]: of the batch norm (narrow: elsewhere it is in the weights)
    Words shift;      // [groups][inputs]: added before the ReLU
    Words weight;     // wide [groups][outputs / tile][inputs][tile], tiles of 8, 4, 2, 1; narrow the same with tiles of 32, 16
    Words bias;       // [groups][outputs]
    Words target;     // [groups][outputs]: where a row goes (wide; in bf16 one entry a pair)
};

// A grouped 3x3 convolution, padding 1, no bias.
struct Conv3x3 {
    int32_t groups;
    int32_t inputs;   // of a group: planes, or pairs of them in bf16
    int32_t outputs;  // of a group
    int32_t stored;   // outputs with padding (narrow)
    Words sources;    // [groups][inputs]: where an input's first value lies in the transposed buffer (narrow)
    Words weight;     // wide [groups][tiles][inputs][3][3][tile]; narrow [groups][tiles][3][inputs][3][tile], tiles of 32, 16, 8
};

struct Layer {
    Pointwise first;
    Conv3x3 second;
    int32_t channels;  // planes before it: where its own begin
};

// A dense block: one map to which every layer appends its planes.
struct Block {
    int32_t height, width;
    int32_t pitch;     // floats from row to row: width + 1 in the wide layout, where a zero column parts the rows
    int32_t channels;  // when all its layers are done
    int64_t plane;     // floats from plane to plane
    int64_t map;       // where the map lies among the activations, in floats
    Layout layout;
    int64_t whole;     // floats a plane in `between`, where several threads do a wide layer in two phases; 0 where they never do
    int32_t first_layer, last_layer;  // [first, last)
    int32_t middle_channels;          // of the 1x1 in the transition after it; 0 if there is none
    int64_t middle;                   // where the transition's 1x1 leaves its planes
    Pointwise transition;
};

struct Stem {
    int32_t channels, stride;
    Words weight;  // [channels / tile][27][tile], tiles of 8, 4, 2, 1
};

struct Head {
    int32_t features;  // kept by the classifier
    int32_t classes;
    Words planes, scale, shift;  // [features]
    Words weight;                // [ceil(classes / 64)][features][64]
    Words bias;                  // [ceil(classes / 64)][64]
};

struct Plan {
    int32_t height, width;  // of the image
    Stem stem;
    Head head;
    int32_t blocks;
    const Block *block;
    const Layer *layer;
    int64_t activations;  // floats of all maps
    int64_t between;      // floats of the buffer between the two convolutions of a layer that all threads share
    const float *data;
    const char *description;  // JSON
};

extern __attribute__((visibility("hidden"))) const Plan plan;

}  // namespace cnet
