// 1x1 convolution of a wide map with hard swish before and after it (CondenseNet V2).
//
// Hard swish takes five instructions a vector where the ReLU of pointwise_wide.hpp takes two, and its gain can't go into the weights. So a
// group's inputs are activated once, for as many pixels as stay in the nearest cache, and all tiles of its outputs read them from there.
#pragma once

#include "activation.hpp"
#include "constants.h"
#include "plan.h"
#include "pointwise_wide.hpp"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

constexpr int swish_column = wide_vectors(4) * lanes;  // words of an input's activated pixels: most that are done at a time

CNET_INLINE int64_t swish_floats(const Pointwise &p) { return (int64_t)(p.inputs / per_word) * swish_column; }

struct SwishTile {
    const float *columns;  // [inputs][swish_column], from the tile's first pixel
    int inputs;            // in words
    const float *weight;   // [inputs][TILE]
    const float *bias;
    float *out;
    const int32_t *target;
    int64_t plane;
};

template <int TILE, int OUT, int V, bool PAIRS>
__attribute__((noinline)) void swish_tile(const SwishTile &t) {
    vec sum[V][OUT];
    CNET_UNROLL for (int o = 0; o < OUT; o++) {
        vec b = broadcast(t.bias[o]);
        CNET_UNROLL for (int v = 0; v < V; v++) sum[v][o] = b;
    }
    const float *x = t.columns, *w = t.weight;
    for (int i = 0; i < t.inputs; i++) {
        vec in[V];
        CNET_UNROLL for (int v = 0; v < V; v++) {
            in[v] = load(x + lanes * v);
            hold(in[v]);
        }
        CNET_UNROLL for (int o = 0; o < OUT; o++) {
            vec b = broadcast(w[o]);
            CNET_UNROLL for (int v = 0; v < V; v++) sum[v][o] = multiply_add(sum[v][o], in[v], b);
        }
        x += swish_column;
        w += TILE;
    }
    constexpr int step = PAIRS ? 2 : 1;
    CNET_UNROLL for (int o = 0; o < OUT; o += step) {
        float *to = t.out + t.target[o / step] * t.plane;
        CNET_UNROLL for (int v = 0; v < V; v++) {
            vec r = hard_swish(sum[v][o]);
            if (PAIRS) r = pair(r, hard_swish(sum[v][o + step - 1]));
            store(to + lanes * v, r);
        }
    }
}

template <int TILE, int OUT, int V, bool PAIRS>
void swish_run(SwishTile t, int64_t vectors) {
    for (; vectors >= V; vectors -= V) {
        swish_tile<TILE, OUT, V, PAIRS>(t);
        t.columns += V * lanes;
        t.out += V * lanes;
    }
    if constexpr (V > 1) {
        if (vectors) swish_run<TILE, OUT, V / 2, PAIRS>(t, vectors);
    }
}

// As pointwise_wide; `columns` is room for swish_floats.
template <bool PAIRS>
void pointwise_swish(const float *data, const Pointwise &p, const float *map, int64_t from, int64_t vectors, float *out, int64_t plane,
                     float *columns) {
    const int32_t *planes = integers(data, p.planes), *target = integers(data, p.target);
    const float *scale = data + p.scale, *shift = data + p.shift;
    const int words = p.inputs / per_word;
    constexpr int pair_of = PAIRS ? 2 : 1;
    auto active = [&](int64_t i, int64_t pixel) {
        return hard_swish(load(map + planes[i] + pixel) * broadcast(scale[i]) + broadcast(shift[i]));
    };
    const int64_t step = p.outputs >= 8 ? wide_vectors(8) : wide_vectors(4);
    for (int64_t v = 0; v < vectors; v += step) {
        const int64_t pixel = v * lanes, count = lesser(step, vectors - v);
        for (int g = 0; g < p.groups; g++) {
            for (int64_t i = 0; i < words; i++) {
                const int64_t input = (int64_t)g * p.inputs + i * per_word;
                for (int n = 0; n < per_word; n++)  // the next pixels, while these are computed
                    for (int64_t x = 0; x < count * lanes; x += line)
                        __builtin_prefetch(map + planes[input + n] + from + pixel + count * lanes + x, 0, 2);
                for (int64_t x = 0; x < count * lanes; x += lanes) {
                    vec r = active(input, from + pixel + x);
                    if (paired) r = pair(r, active(input + per_word - 1, from + pixel + x));
                    store(columns + i * swish_column + x, r);
                }
            }
            SwishTile t;
            t.columns = columns;
            t.inputs = words;
            t.out = out + pixel;
            t.plane = plane;
            const float *weight = data + p.weight + (int64_t)g * p.outputs * words;
            int done = 0;
            auto take = [&](auto outputs) {
                constexpr int tile = decltype(outputs)::value, out_at_once = tile < wide_outputs ? tile : wide_outputs;
                for (; p.outputs - done >= tile; done += tile) {
                    for (int o = 0; o < tile; o += out_at_once) {
                        const int64_t row = (int64_t)g * p.outputs + done + o;
                        t.weight = weight + (int64_t)done * words + o;
                        t.bias = data + p.bias + row;
                        t.target = target + row / pair_of;
                        swish_run<tile, out_at_once, wide_vectors(tile), PAIRS>(t, count);
                    }
                }
            };
            if constexpr (PAIRS) each(wide_tiles_paired, take);
            else each(wide_tiles, take);
        }
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
