// 3x3 convolution of a narrow map: a vector is output channels.
//
// A tile is a piece of one row: its sums stay in registers, every pixel is broadcast once and serves the three taps of its row. Taps
// beside the map are not computed at all, which on a row of 7 saves a seventh of the work and over the whole map 18 %.
#pragma once

#include "constants.h"
#include "plan.h"
#include "pointwise_narrow.hpp"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

// Pixels of a row that a tile takes at most, by the vectors of outputs beside them.
constexpr int row_most(int vectors) { return registers == 32 ? (lanes == 16 ? (vectors == 1 ? 14 : 8) : 8) : 8; }
static_assert(row_most(1) / 2 + 1 >= row_least && row_most(2) / 2 + 1 >= row_least, "each piece of a row that is cut up has a tile");
constexpr int row_unit = 32;  // outputs that a share takes at once
static_assert(row_tiles == Tiles<row_unit, row_unit / 2, row_unit / 4>{}, "a unit holds one tile of a size at most");

struct RowTile {
    const float *in;         // transposed buffer at the tile's first pixel, one row above
    int64_t in_row;          // words from row to row
    const int32_t *sources;  // [inputs]
    int inputs;
    const float *weight;     // [3][inputs][3][TILE]
    int first, last;         // rows of taps that lie on the map: [first, last)
    bool left, right;        // whether the map goes on there
    float *out;              // the tile's first pixel, in the plane of its first output
    int64_t out_plane;
    int outputs;             // that are stored
};

template <class V, int TILE, int VECTORS, int PIXELS>
__attribute__((noinline)) void row_tile(const RowTile &t) {
    using kind = kind_of<V>;
    constexpr int size = kind::size;
    V sum[VECTORS][PIXELS];
    CNET_UNROLL for (int v = 0; v < VECTORS; v++)
        CNET_UNROLL for (int p = 0; p < PIXELS; p++) sum[v][p] = V{};
    for (int ky = t.first; ky < t.last; ky++) {
        const float *row = t.in + ky * t.in_row, *w = t.weight + (int64_t)ky * t.inputs * 3 * TILE;
        for (int i = 0; i < t.inputs; i++) {
            const float *x = row + t.sources[i];
            V weight[3][VECTORS];
            CNET_UNROLL for (int k = 0; k < 3; k++)
                CNET_UNROLL for (int v = 0; v < VECTORS; v++) {
                    weight[k][v] = kind::get(w + k * TILE + size * v);
                    hold(weight[k][v]);
                }
            if (t.left) {
                V b = kind::fill(x[-chunk_words]);
                CNET_UNROLL for (int v = 0; v < VECTORS; v++) sum[v][0] = multiply_add(sum[v][0], b, weight[0][v]);
            }
            CNET_UNROLL for (int p = 0; p < PIXELS; p++) {
                V b = kind::fill(x[p * chunk_words]);
                CNET_UNROLL for (int v = 0; v < VECTORS; v++) {
                    if (p + 1 < PIXELS) sum[v][p + 1 < PIXELS ? p + 1 : 0] = multiply_add(sum[v][p + 1 < PIXELS ? p + 1 : 0], b, weight[0][v]);
                    sum[v][p] = multiply_add(sum[v][p], b, weight[1][v]);
                    if (p > 0) sum[v][p > 0 ? p - 1 : 0] = multiply_add(sum[v][p > 0 ? p - 1 : 0], b, weight[2][v]);
                }
            }
            if (t.right) {
                V b = kind::fill(x[PIXELS * chunk_words]);
                CNET_UNROLL for (int v = 0; v < VECTORS; v++) sum[v][PIXELS - 1] = multiply_add(sum[v][PIXELS - 1], b, weight[2][v]);
            }
            w += 3 * TILE;
        }
    }
    alignas(64) float turned[PIXELS][VECTORS * size];
    CNET_UNROLL for (int p = 0; p < PIXELS; p++)
        CNET_UNROLL for (int v = 0; v < VECTORS; v++) memcpy(&turned[p][v * size], &sum[v][p], sizeof(V));
    for (int o = 0; o < t.outputs; o++) {
        float *to = t.out + o * t.out_plane;
        CNET_UNROLL for (int p = 0; p < PIXELS; p++) to[p] = turned[p][o];
    }
}

template <class V, int TILE, int VECTORS, int PIXELS = row_most(VECTORS)>
void row_tile_of(int pixels, const RowTile &t) {
    if (pixels == PIXELS) row_tile<V, TILE, VECTORS, PIXELS>(t);
    else if constexpr (PIXELS > row_least) row_tile_of<V, TILE, VECTORS, PIXELS - 1>(pixels, t);
}

// One row of outputs [o, o + VECTORS * size): in as few pieces as possible, the last shifted back so that all have one length.
template <class V, int TILE, int VECTORS>
void conv3x3_row(RowTile t, int width) {
    constexpr int most = row_most(VECTORS);
    const int pieces = (width + most - 1) / most, pixels = (width + pieces - 1) / pieces;
    const float *in = t.in;
    float *out = t.out;
    for (int i = 0; i < pieces; i++) {
        const int from = (int)lesser(i * pixels, width - pixels);
        t.in = in + from * chunk_words;
        t.out = out + from;
        t.left = from > 0;
        t.right = from + pixels < width;
        row_tile_of<V, TILE, VECTORS>(pixels, t);
    }
}

// One share of the 3x3: units are rows within row_unit outputs (or fewer) within groups, in that order.
static void conv3x3_narrow(const float *data, const Block &b, const Conv3x3 &c, const float *transposed, float *out, int share, int shares) {
    const int32_t *sources = integers(data, c.sources);
    const int64_t blocks = (c.stored + row_unit - 1) / row_unit;
    const Range units = share_of(c.groups * blocks * b.height, share, shares);
    for (int64_t u = units.begin; u < units.end; u++) {
        const int g = (int)(u / (blocks * b.height)), y = (int)(u % b.height);
        RowTile t;
        t.in = transposed + (int64_t)(y - 1) * b.width * chunk_words;
        t.in_row = (int64_t)b.width * chunk_words;
        t.sources = sources + (int64_t)g * c.inputs;
        t.inputs = c.inputs;
        t.first = y == 0;
        t.last = y + 1 == b.height ? 2 : 3;
        t.out_plane = b.plane;
        // A whole unit is one tile. The last unit of a group may be shorter, of both of the smaller tiles or one.
        int first = (int)(u / b.height % blocks) * row_unit;
        const int end = (int)lesser(first + row_unit, c.stored);
        constexpr int most = registers == 32 ? 2 : 1;  // vectors of outputs, where there are registers for their weights
        auto take = [&](auto tile_of) {
            constexpr int tile = decltype(tile_of)::value;
            using kind = kind_of<typename vector_for<tile>::type>;
            constexpr int n = tile / kind::size < most ? tile / kind::size : most, at_once = n * kind::size;
            if (end - first < tile) return;
            for (int o = 0; o < tile; o += at_once) {
                t.weight = data + c.weight + ((int64_t)g * c.stored + first) * c.inputs * 9 + o;
                t.out = out + (int64_t)(g * c.outputs + first + o) * b.plane + (int64_t)y * b.width;
                t.outputs = (int)lesser(at_once, c.outputs - first - o);
                if (t.outputs > 0) conv3x3_row<typename kind::type, tile, n>(t, b.width);
            }
            first += tile;
        };
        each(row_tiles, take);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
