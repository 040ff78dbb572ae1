// The plan of a network in integers: what plan.h is for one in floats. program/quantized.py defines what each part computes.
//
// A map is planes of bytes, one after the other; a table holds the place of a plane in bytes from the map's first. Rows have a pixel
// between them, so that a 3x3 reads nine constant offsets of a flat map. Kernels go through a map in runs (see bytes.hpp), and within a run
// of a plane the pixels stand in the order that suits their vectors; nobody else sees them.
#pragma once

#include <stdint.h>

namespace cnet {

using Words = int64_t;

// Sums -> bytes (or 12 bits in a layer in int16): quantized.py, Requantization.
struct Requantization {
    Words rows;      // [rows][shift, multiplier, zero]: multiplier and zero twice, in both halves of their word
    int32_t shifts;  // whether any shift is not 0
};

// A grouped 1x1 convolution with the thresholds before it.
struct Pointwise {
    int32_t groups;
    int32_t words;     // of a group's inputs: four bytes each, or two 16-bit values
    int32_t outputs;   // of a group, a multiple of row_tile
    int32_t flips;     // whether any input is subtracted from its threshold
    Words planes;      // [groups][inputs]: the input's plane
    Words thresholds;  // [groups][inputs][flip, threshold]: each repeated to fill its word
    Words weight;      // [groups][outputs / row_tile][words][row_tile]
    Words bias;        // [groups][outputs]
    Words offset;      // [groups][outputs]: 128 times the sum of a row's weights, for instructions that multiply signed bytes alone
    Words target;      // [groups][outputs]: the plane of a row, where rows go to a map; 0: in their own order
    Requantization requantization;
};

// A grouped 3x3 convolution, padding 1.
struct Conv3x3 {
    int32_t groups;
    int32_t words;    // of a group's inputs
    int32_t outputs;  // of a group
    Words sources;    // [groups][words][4 or 2]: the row of the 1x1 that an input is; the one after the last row is zeros
    Words weight;     // [groups][tiles][words][3][3][tile]: tiles of conv_tiles
    Words offset;     // [groups][outputs], as in Pointwise
    Requantization requantization;
};

struct Layer {
    Pointwise first;
    Conv3x3 second;
    int32_t channels;  // planes before it, after which it puts its own
    int32_t wide;      // 1: in int16
};

struct Block {
    int32_t height, width;
    int32_t channels;  // when all its layers are done
    int64_t plane;     // bytes from plane to plane
    int64_t map;       // where the map lies among the activations, in bytes
    int32_t whole;     // 1: several threads share groups, not strips, and rows of the 1x1 lie in `between`
    int32_t first_layer, last_layer;
    int32_t middle_channels;  // of the 1x1 in the transition after it; 0 if there is none
    int64_t middle;           // where the transition's 1x1 leaves its planes, in bytes
    Pointwise transition;
};

struct Stem {
    int32_t channels;  // a multiple of row_tile, in the tables
    int32_t stride;
    float scale[CNET_CHANNELS], offset[CNET_CHANNELS];
    int32_t pad[CNET_CHANNELS];
    Words weight;  // [channels / row_tile][stem_words][row_tile]: pairs of 16-bit weights
    Words bias;
    Requantization requantization;
};

struct Head {
    int32_t features;  // 32-bit words that the features take, with the flags after them; engine.cpp reserves them
    int32_t classes;
    int32_t kept;      // features that the classifier reads
    int32_t bits;      // of a feature's fraction
    Words planes;      // [kept]
    Words thresholds;  // [kept][flip, threshold], as in Pointwise with 16-bit values
    Words weight;      // [classes / classes_at_once][kept / 4][classes_at_once]: four bytes a word
    Words scale, bias; // [classes]
};

// What is done to pixels before the stem (prepare.cpp).
struct Preparation {
    int32_t shorter_side;
    int32_t bicubic;
    float mean[CNET_CHANNELS], deviation[CNET_CHANNELS];
};

struct Plan {
    int32_t height, width;  // of the image
    Stem stem;
    Head head;
    int32_t blocks;
    const Block *block;
    const Layer *layer;
    int64_t activations;  // words of all maps
    int64_t between;      // words of the buffer that all threads share between the convolutions of a layer
    const float *data;    // words
    const char *description;
    Preparation preparation;
    const char *const *class_name;
    int32_t window;  // rows and columns of the last map that are averaged, from its top left; 0: all
};

extern __attribute__((visibility("hidden"))) const Plan plan;

}  // namespace cnet
