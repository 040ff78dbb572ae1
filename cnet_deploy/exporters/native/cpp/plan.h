// The plan: what is computed, in which order and where it lies, all of it decided at export. The generated plan.cpp fills these
// structures by the names of their fields; the kernels only read them. Tiles and the room after a map are in constants.h.
//
// Every table and weight lies in one array of 32-bit words, `data`; a field of type Words is the place in it where something begins.
// Planes are given as offsets in floats from the first plane of their map, so that a gather is a table and a concatenation costs nothing.
#pragma once

#include <stdint.h>

// Most networks read images of three channels and average the whole last map. Where one is otherwise, the plan and all sources are compiled
// with one of these defined; so the kernels of most networks know nothing of it.
#ifndef CNET_CHANNELS
#define CNET_CHANNELS 3  // of the image: 1, 3 or 4
#endif
#ifndef CNET_INT8
#define CNET_INT8 0  // 1: the network is in integers, and the kernels are those of int8/
#endif
#ifndef CNET_WINDOWED
#define CNET_WINDOWED 0  // 1: the plan has a window of the last map
#endif
#ifndef CNET_V2
#define CNET_V2 0  // 1: a CondenseNet V2, whose layers update the planes before them
#endif

#if CNET_INT8
#include "int8/plan.h"
#else

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
    Words scale;      // [groups][inputs]: of the batch norm (narrow; in wide layers it is in the weights)
    Words shift;      // [groups][inputs]: added before the ReLU
    Words weight;     // [groups][tiles][inputs][tile]: wide_tiles, wide_tiles_paired or narrow_tiles
    Words bias;       // [groups][outputs]
    Words target;     // [groups][outputs]: where a row goes (wide; in bf16 one entry a pair)
#if CNET_V2
    int32_t swish;    // 1: hard swish, not ReLU, before and after it; then wide layers have a scale too, and no counts
#endif
};

// A grouped 3x3 convolution, padding 1, no bias.
struct Conv3x3 {
    int32_t groups;
    int32_t inputs;   // of a group: planes, or pairs of them in bf16
    int32_t outputs;  // of a group
    int32_t stored;   // outputs with padding (narrow)
    Words sources;    // [groups][inputs]: where an input's first value lies in the transposed buffer (narrow)
    Words weight;     // wide_tiles [groups][tiles][inputs][3][3][tile]; row_tiles [groups][tiles][3][inputs][3][tile]
};

#if CNET_V2
// Excitation without biases: planes times sigmoid(expand relu(squeeze mean)).
struct Excite {
    int32_t channels, hidden;  // 0, 0: the layer has none
    Words squeeze;             // linear_tiles [tiles][channels][tile]
    Words expand;              // linear_tiles [tiles][hidden][tile]
};

// What a layer adds to the planes before it: sums of its own, with batch norm and activation applied.
struct Update {
    int32_t inputs;   // the layer's planes
    int32_t groups;   // that it is computed by; 0: plane by plane
    int32_t targets;  // planes that change; by groups, the sum over them
    int32_t swish;    // 1: hard swish, 0: ReLU
    Words channel;    // [inputs]: the input's place among the layer's planes
    Words scale;      // [inputs]
    Words shift;      // [inputs]
    Words target;     // [targets]: the plane that changes; by groups, with as many more as a tile has
    Words first;      // [targets + 1]: where its terms begin (plane by plane)
    Words source;     // [terms]: an input (plane by plane)
    Words weight;     // [terms]: what it is multiplied by; by groups, wide_tiles [groups][tiles][inputs][tile]
};

// Excitation of the pooled features, a layer with hard swish, both before the classifier.
struct Hidden {
    int32_t features;  // pooled
    int32_t excited;   // outputs of squeeze
    int32_t outputs;
    Words squeeze;     // linear_tiles [tiles][features][tile]
    Words expand;      // linear_tiles [tiles][excited][tile]
    Words weight;      // linear_tiles [tiles][features][tile]
    Words bias;        // [outputs], padded to a tile
};
#endif

struct Layer {
    Pointwise first;
    Conv3x3 second;
    int32_t channels;  // planes before it, after which it puts its own
#if CNET_V2
    Excite excite;
    Update update;
#endif
};

// A dense block: one map to which every layer appends its planes.
struct Block {
    int32_t height, width;
    int32_t pitch;     // floats from row to row: width + 1 in the wide layout, where a zero column parts the rows
    int32_t channels;  // when all its layers are done
    int64_t plane;     // floats from plane to plane: an odd number of cache lines, else planes would compete for places in the caches
    int64_t map;       // where the map lies among the activations, in floats
    Layout layout;
    int64_t whole;     // floats of a plane in `between`, where several threads do a wide layer in two phases; 0 where they never do
    int32_t first_layer, last_layer;  // [first, last)
    int32_t middle_channels;          // of the 1x1 in the transition after it; 0 if there is none
    int64_t middle;                   // where the transition's 1x1 leaves its planes
    Pointwise transition;
};

struct Stem {
    int32_t channels, stride;
    Words weight;  // [tiles][CNET_CHANNELS, 3, 3][tile]: wide_tiles
};

struct Head {
    int32_t features;  // kept by the classifier
    int32_t classes;
    Words planes, scale, shift;  // [features]; in V2 [features of the hidden layer]
    Words weight;                // [ceil(classes / classes_together)][features][classes_together]
    Words bias;                  // [ceil(classes / classes_together)][classes_together]
};

// What is done to pixels before the stem (prepare.cpp).
struct Preparation {
    int32_t shorter_side;  // pixels, after resizing
    int32_t bicubic;       // 1: bicubic; 0: bilinear
    float mean[CNET_CHANNELS], deviation[CNET_CHANNELS];  // of pixels from 0 to 1
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
    Preparation preparation;
    const char *const *class_name;  // [classes]; null: no names are known
#if CNET_WINDOWED
    int32_t window;  // rows and columns of the last map that are averaged, from its top left; 0: all
#endif
#if CNET_V2
    Hidden hidden;
    int64_t fresh;  // where the planes of an excited layer lie among the activations until they are excited, in floats
#endif
};

extern __attribute__((visibility("hidden"))) const Plan plan;

}  // namespace cnet

#endif
