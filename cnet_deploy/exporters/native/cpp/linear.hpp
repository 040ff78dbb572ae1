// A small matrix times a vector, for excitation and the layer before the classifier: outputs are the vectors.
//
// Each weight is read once and used once, in one stream. Outputs stand in tiles of linear_tiles, the last of them padded with zeros.
#pragma once

#include "constants.h"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

CNET_INLINE int64_t linear_room(int64_t outputs) { return round_up(outputs, line); }  // floats of a vector that linear() writes

constexpr int linear_ahead = 1024;  // floats: weights come from far, and the processor's own prefetching ends with each page

template <int TILE, class Take>
CNET_INLINE void linear_tile(const float *weight, const float *x, int inputs, const Take &take) {
    constexpr int vectors = TILE / lanes;
    vec sum[vectors];
    CNET_UNROLL for (int v = 0; v < vectors; v++) sum[v] = vec{};
    for (int i = 0; i < inputs; i++, weight += TILE) {
        CNET_UNROLL for (int at = 0; at < TILE; at += line) __builtin_prefetch(weight + linear_ahead + at);
        const vec b = broadcast(x[i]);
        CNET_UNROLL for (int v = 0; v < vectors; v++) sum[v] = sum[v] + b * load(weight + v * lanes);
    }
    CNET_UNROLL for (int v = 0; v < vectors; v++) take(v * lanes, sum[v]);
}

constexpr int linear_most = 64, linear_least = line;
static_assert(linear_tiles == Tiles<linear_most, linear_least>{}, "linear() takes tiles of these two sizes");

// One share of the outputs: take(first, vector) for each vector of them.
template <class Take>
CNET_INLINE void linear(const float *weight, const float *x, int inputs, int outputs, int share, int shares, const Take &take) {
    const int64_t large = round_up(outputs, linear_least) / linear_most;
    const int64_t small = (round_up(outputs, linear_least) - large * linear_most) / linear_least;
    const Range tiles = share_of(large + small, share, shares);
    for (int64_t t = tiles.begin; t < tiles.end; t++) {
        const int64_t first = t < large ? t * linear_most : large * linear_most + (t - large) * linear_least;
        auto store = [&](int at, vec sum) { take(first + at, sum); };
        if (t < large) linear_tile<linear_most>(weight + first * inputs, x, inputs, store);
        else linear_tile<linear_least>(weight + first * inputs, x, inputs, store);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
