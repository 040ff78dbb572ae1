// 1x1 convolution of a narrow map: a vector is output channels.
//
// Maps of 14 and 7 pixels a row leave much of a vector of pixels idle, but their groups have 16 outputs and more. So the weights are
// the vectors, and pixels are broadcast. The group's inputs are gathered once, with batch norm and ReLU applied, into columns of as
// many pixels as a tile has, and all of the group's outputs read them from there. The result stands pixel by pixel, channels together
// (16 to a chunk): the order in which the narrow 3x3 broadcasts it.
#pragma once

#include "constants.h"
#include "plan.h"
#include "vectors.hpp"
#if CNET_V2
#include "activation.hpp"
#endif

namespace cnet {
namespace CNET_ISA {

// A tile's pixels: as many as sums can be kept for. The number that wastes least of the map is taken.
constexpr int narrow_vectors = lanes == 16 || lanes == 8 ? 2 : registers == 32 ? 4 : 2;
constexpr int narrow_most = lanes == 16 ? 14 : registers == 32 ? 6 : lanes == 8 ? 6 : 5;
constexpr int narrow_least = lanes == 16 ? 8 : 4;
constexpr int column = (narrow_most + lanes - 1) / lanes * lanes;  // floats that a tile's pixels of one input take
constexpr int chunk_words = chunk / per_word;
constexpr int narrow_unit = 2 * chunk;  // outputs that a share takes at once: a whole tile, or what is left of a group
static_assert(narrow_tiles == Tiles<narrow_unit, chunk>{}, "what is left of a group after whole tiles is one chunk");
static_assert(column <= map_slack && narrow_most <= chunk_slack, "the last tile of a map is read and written within its room");

CNET_INLINE int narrow_pixels(int64_t pixels) {
    int best = narrow_most;
    for (int n = narrow_most; n >= narrow_least; n--)
        if (round_up(pixels, n) < round_up(pixels, best)) best = n;
    return best;
}

struct ColumnTile {
    const float *columns;  // [inputs][column]
    const float *weight;   // [inputs][TILE]
    int inputs;            // in words
    const float *bias;
    float *out;            // the tile's first pixel, in the chunk of the first output
    int64_t out_chunk;     // words from chunk to chunk
    int offset;            // of the first output in its chunk
#if CNET_V2
    bool swish;            // hard swish after it, not ReLU
#endif
};

template <int TILE, int PIXELS, int V>
__attribute__((noinline)) void column_tile(const ColumnTile &t) {
    vec sum[V][PIXELS];
    CNET_UNROLL for (int v = 0; v < V; v++) {
        vec b = load_unaligned(t.bias + lanes * v);
        CNET_UNROLL for (int p = 0; p < PIXELS; p++) sum[v][p] = b;
    }
    const float *x = t.columns, *w = t.weight;
    for (int i = 0; i < t.inputs; i++) {
        vec weight[V];
        CNET_UNROLL for (int v = 0; v < V; v++) {
            weight[v] = load(w + lanes * v);
            hold(weight[v]);
        }
        CNET_UNROLL for (int p = 0; p < PIXELS; p++) {
            vec b = broadcast(x[p]);
            CNET_UNROLL for (int v = 0; v < V; v++) sum[v][p] = multiply_add(sum[v][p], b, weight[v]);
        }
        x += column;
        w += TILE;
    }
    CNET_UNROLL for (int v = 0; v < V; v++) {
        const int first = t.offset + lanes * v;
        float *out = t.out + first / chunk * t.out_chunk + first % chunk / per_word;
#if CNET_V2
        if (t.swish) {
            CNET_UNROLL for (int p = 0; p < PIXELS; p++) store_pairs(out + p * chunk_words, hard_swish(sum[v][p]));
            continue;
        }
#endif
        CNET_UNROLL for (int p = 0; p < PIXELS; p++) store_pairs(out + p * chunk_words, relu(sum[v][p]));
    }
}

template <int TILE, int V, int PIXELS = narrow_most>
void column_tile_of(int pixels, const ColumnTile &t) {
    if (pixels == PIXELS) column_tile<TILE, PIXELS, V>(t);
    else if constexpr (PIXELS > narrow_least) column_tile_of<TILE, V, PIXELS - 1>(pixels, t);
}

// Gather the inputs of group g into columns: [tiles][inputs][column]. `active` is the activation.
template <class Active>
CNET_INLINE void gather_active(const float *data, const Pointwise &p, int g, const float *map, int64_t tiles, int pixels, float *columns,
                               const Active &active) {
    const int32_t *planes = integers(data, p.planes) + (int64_t)g * p.inputs;
    const float *scale = data + p.scale + (int64_t)g * p.inputs, *shift = data + p.shift + (int64_t)g * p.inputs;
    const int words = p.inputs / per_word;
    for (int i = 0; i < words; i++) {
        const float *a = map + planes[i * per_word], *b = map + planes[i * per_word + per_word - 1];
        const vec scale_a = broadcast(scale[i * per_word]), shift_a = broadcast(shift[i * per_word]);
        const vec scale_b = broadcast(scale[i * per_word + per_word - 1]), shift_b = broadcast(shift[i * per_word + per_word - 1]);
        float *to = columns + (int64_t)i * column;
        for (int64_t j = 0; j < tiles; j++) {
            CNET_UNROLL for (int v = 0; v < column; v += lanes) {
                vec r = active(load_unaligned(a + j * pixels + v) * scale_a + shift_a);
                if (paired) r = pair(r, active(load_unaligned(b + j * pixels + v) * scale_b + shift_b));
                store(to + j * words * column + v, r);
            }
        }
    }
}

static void gather_columns(const float *data, const Pointwise &p, int g, const float *map, int64_t tiles, int pixels, float *columns) {
#if CNET_V2
    if (p.swish) return gather_active(data, p, g, map, tiles, pixels, columns, [](vec x) { return hard_swish(x); });
#endif
    gather_active(data, p, g, map, tiles, pixels, columns, [](vec x) { return relu(x); });
}

CNET_INLINE int64_t narrow_scratch(const Block &b, const Pointwise &p) {
    const int64_t area = (int64_t)b.height * b.width, pixels = narrow_pixels(area);
    return (area + pixels - 1) / pixels * (p.inputs / per_word) * column;
}

// One share of the 1x1: units are tiles of pixels within narrow_unit outputs (or a chunk) within groups, in that order.
static void pointwise_narrow(const float *data, const Block &b, const Pointwise &p, const float *map, float *columns, float *transposed,
                             int share, int shares) {
    const int64_t area = (int64_t)b.height * b.width;
    const int pixels = narrow_pixels(area), words = p.inputs / per_word;
    const int64_t tiles = (area + pixels - 1) / pixels, chunks = (p.outputs + narrow_unit - 1) / narrow_unit;
    const int64_t out_chunk = (area + chunk_slack) * chunk_words;
    const Range units = share_of(p.groups * chunks * tiles, share, shares);
    int gathered = -1;
    for (int64_t u = units.begin; u < units.end; u++) {
        const int g = (int)(u / (chunks * tiles)), first = (int)(u / tiles % chunks) * narrow_unit;
        const int64_t j = u % tiles;
        if (g != gathered) gather_columns(data, p, gathered = g, map, tiles, pixels, columns);
        const int stored = (int)lesser(narrow_unit, p.outputs - first), row = g * p.outputs + first;
        ColumnTile t;
        t.columns = columns + j * words * column;
        t.inputs = words;
#if CNET_V2
        t.swish = p.swish;
#endif
        t.out = transposed + row / chunk * out_chunk + j * pixels * chunk_words;
        t.out_chunk = out_chunk;
        for (int o = 0; o < stored; o += lanes * narrow_vectors) {
            t.weight = data + p.weight + (int64_t)g * p.outputs * words + (int64_t)first * words + o;
            t.bias = data + p.bias + row + o;
            t.offset = o;
            // Where a chunk is one vector, it is taken as one; elsewhere both tiles are whole multiples.
            if (stored == narrow_unit) column_tile_of<narrow_unit, narrow_vectors>(pixels, t);
            else column_tile_of<chunk, narrow_vectors * lanes <= chunk ? narrow_vectors : 1>(pixels, t);
        }
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
