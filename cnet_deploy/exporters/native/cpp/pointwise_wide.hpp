// 1x1 convolution of a wide map: a vector is pixels, of which every plane has many and in a row.
//
// A tile is OUT outputs by V vectors of pixels, all of whose sums stay in registers while the group's inputs stream by. The gather
// is a table of plane offsets and the shuffle is where a row is stored, so neither moves data. The batch norm before the ReLU has its
// gain in the weights, which leaves one addition; a negative gain turns the maximum with zero into a minimum, so inputs come sorted by
// sign and the loop has two halves.
#pragma once

#include "constants.h"
#include "plan.h"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

constexpr int wide_outputs = registers == 32 ? 8 : 4;             // that a tile has at most
constexpr int wide_sums = registers == 32 ? 24 : (lanes > 4 ? 12 : 8);  // registers for sums; SSE needs some for products

constexpr int wide_vectors(int outputs) {
    int most = wide_sums / (outputs < wide_outputs ? outputs : wide_outputs);
    return most < 8 ? most : 8;
}

struct PointwiseTile {
    const float *map;          // the tile's first pixel in plane 0
    const int32_t *planes;     // of the inputs
    int maxima, inputs;        // inputs with a maximum, inputs in all
    const float *shift;        // of the inputs
    const float *weight;       // [inputs][TILE]
    const float *bias;         // of the outputs
    float floor;               // 0 for a ReLU after it, minus infinity for none
    float *out;                // the tile's first pixel in the target's plane 0
    const int32_t *target;     // plane of each output, or pair of outputs
    int64_t plane;             // floats from plane to plane of the target
};

template <bool MAXIMUM, int TILE, int OUT, int V, bool PREFETCH>
CNET_INLINE void take_input(const PointwiseTile &t, int i, vec (&sum)[V][OUT]) {
    vec x[V];
    const float *p = t.map + t.planes[i];
    vec shift = broadcast(t.shift[i]);
    CNET_UNROLL for (int v = 0; v < V; v++) {
        if (PREFETCH) __builtin_prefetch(p + lanes * (V + v));
        vec moved = load(p + lanes * v) + shift;
        x[v] = MAXIMUM ? maximum(vec{}, moved) : minimum(vec{}, moved);
    }
    if (paired) {
        const float *p2 = t.map + t.planes[i + 1];
        vec shift2 = broadcast(t.shift[i + 1]);
        CNET_UNROLL for (int v = 0; v < V; v++) {
            if (PREFETCH) __builtin_prefetch(p2 + lanes * (V + v));
            vec moved = load(p2 + lanes * v) + shift2;
            x[v] = pair(x[v], MAXIMUM ? maximum(vec{}, moved) : minimum(vec{}, moved));
        }
    }
    CNET_UNROLL for (int v = 0; v < V; v++) hold(x[v]);
    const float *w = t.weight + (int64_t)(i / per_word) * TILE;
    CNET_UNROLL for (int o = 0; o < OUT; o++) {
        vec b = broadcast(w[o]);
        CNET_UNROLL for (int v = 0; v < V; v++) sum[v][o] = multiply_add(sum[v][o], x[v], b);
    }
}

// OUT outputs of the TILE that stand together in the weights: all of them, where registers allow.
// PAIRS: the target holds pairs of outputs in a word (what a 3x3 in bf16 reads), not planes of floats.
template <int TILE, int OUT, int V, bool PREFETCH, bool PAIRS>
__attribute__((noinline)) void pointwise_tile(const PointwiseTile &t) {
    vec sum[V][OUT];
    CNET_UNROLL for (int o = 0; o < OUT; o++) {
        vec b = broadcast(t.bias[o]);
        CNET_UNROLL for (int v = 0; v < V; v++) sum[v][o] = b;
    }
    int i = 0;
    for (; i < t.maxima; i += per_word) take_input<true, TILE, OUT, V, PREFETCH>(t, i, sum);
    for (; i < t.inputs; i += per_word) take_input<false, TILE, OUT, V, PREFETCH>(t, i, sum);
    vec floor = broadcast(t.floor);
    constexpr int step = PAIRS ? 2 : 1;
    CNET_UNROLL for (int o = 0; o < OUT; o += step) {
        float *to = t.out + t.target[o / step] * t.plane;
        CNET_UNROLL for (int v = 0; v < V; v++) {
            vec r = maximum(floor, sum[v][o]);
            if (PAIRS) r = pair(r, maximum(floor, sum[v][o + step - 1]));
            store(to + lanes * v, r);
        }
    }
}

// `vectors` vectors of pixels, in tiles that become smaller towards the end.
template <int TILE, int OUT, int V, bool PREFETCH, bool PAIRS>
void pointwise_run(PointwiseTile t, int64_t vectors) {
    for (; vectors >= V; vectors -= V) {
        pointwise_tile<TILE, OUT, V, PREFETCH, PAIRS>(t);
        t.map += V * lanes;
        t.out += V * lanes;
    }
    if constexpr (V > 1) {
        if (vectors) pointwise_run<TILE, OUT, V / 2, PREFETCH, PAIRS>(t, vectors);
    }
}

// All groups and outputs for pixels [from, from + vectors * lanes) of the map. `out` is the target's plane 0 at pixel `from`.
template <bool PAIRS>
void pointwise_wide(const float *data, const Pointwise &p, const float *map, int64_t from, int64_t vectors, float floor, float *out,
                    int64_t plane) {
    const int32_t *counts = integers(data, p.counts), *planes = integers(data, p.planes), *target = integers(data, p.target);
    constexpr int pair_of = PAIRS ? 2 : 1;
    constexpr int most = wide_vectors(8);
    // Tile by tile over the pixels, so that the group's inputs are in the nearest cache for all of its outputs.
    auto tiles = [&](int64_t pixel, int64_t count) {
        for (int g = 0; g < p.groups; g++) {
            PointwiseTile t;
            t.planes = planes + (int64_t)g * p.inputs;
            t.maxima = counts[2 * g];
            t.inputs = counts[2 * g + 1];
            t.shift = data + p.shift + (int64_t)g * p.inputs;
            t.floor = floor;
            t.plane = plane;
            t.map = map + from + pixel;
            t.out = out + pixel;
            const float *weight = data + p.weight + (int64_t)g * p.outputs * (p.inputs / per_word);
            int done = 0;
            auto take = [&](auto outputs) {
                constexpr int tile = decltype(outputs)::value, out_at_once = tile < wide_outputs ? tile : wide_outputs;
                constexpr int vectors_at_once = wide_vectors(tile);
                for (; p.outputs - done >= tile; done += tile) {
                    for (int o = 0; o < tile; o += out_at_once) {
                        int64_t row = (int64_t)g * p.outputs + done + o;
                        t.weight = weight + (int64_t)done * (p.inputs / per_word) + o;
                        t.bias = data + p.bias + row;
                        t.target = target + row / pair_of;
                        // The first outputs prefetch the next pixels while they compute.
                        if (done + o == 0) pointwise_run<tile, out_at_once, vectors_at_once, true, PAIRS>(t, count);
                        else pointwise_run<tile, out_at_once, vectors_at_once, false, PAIRS>(t, count);
                    }
                }
            };
            if constexpr (PAIRS) each(wide_tiles_paired, take);
            else each(wide_tiles, take);
        }
    };
    const int64_t step = p.outputs >= 8 ? most : wide_vectors(4);
    for (int64_t v = 0; v < vectors; v += step) tiles(v * lanes, lesser(step, vectors - v));
}

}  // namespace CNET_ISA
}  // namespace cnet
