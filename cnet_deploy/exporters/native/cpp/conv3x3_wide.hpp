// 3x3 convolution of a wide map: a vector is pixels.
//
// Planes lie flat, with one zero column between rows and zero rows around, so that the nine taps are nine constant offsets and no edge
// is special. A tile is ROWS rows by OUT outputs by V vectors. Where a group has only one or two outputs there is little to do with a
// vector once it is loaded: then three rows share their loads (ROWS > 1), and a value serves up to three taps more.
#pragma once

#include "constants.h"
#include "plan.h"
#include "pointwise_wide.hpp"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

struct Conv3x3Tile {
    const float *in;     // the tile's first pixel, in the group's first input plane
    int64_t in_plane;    // floats from input plane to input plane
    int inputs;
    int pitch;           // floats from row to row
    const float *weight; // [inputs][3][3][TILE]
    float *out;          // the tile's first pixel, in the plane of its first output
    int64_t out_plane;
};

// OUT outputs of the TILE that stand together in the weights. Stores `last` floats of the last vector, all of the others.
template <int TILE, int OUT, int V, int ROWS>
__attribute__((noinline)) void conv3x3_tile(const Conv3x3Tile &t, int last) {
    vec sum[ROWS][OUT][V];
    CNET_UNROLL for (int r = 0; r < ROWS; r++)
        CNET_UNROLL for (int o = 0; o < OUT; o++)
            CNET_UNROLL for (int v = 0; v < V; v++) sum[r][o][v] = vec{};
    const float *plane = t.in - t.pitch - 1, *w = t.weight;
    const int64_t pitch = t.pitch;
    for (int i = 0; i < t.inputs; i++) {
        const float *p = plane;
        CNET_UNROLL for (int y = 0; y < ROWS + 2; y++) {
            CNET_UNROLL for (int kx = 0; kx < 3; kx++) {
                if (ROWS > 1) forget(w);
                vec x[V];
                CNET_UNROLL for (int v = 0; v < V; v++) {
                    x[v] = load_unaligned(p + kx + lanes * v);
                    hold(x[v]);
                }
                CNET_UNROLL for (int r = 0; r < ROWS; r++) {
                    const int ky = y - r;
                    if (ky >= 0 && ky < 3) {
                        CNET_UNROLL for (int o = 0; o < OUT; o++) {
                            vec b = broadcast(w[(ky * 3 + kx) * TILE + o]);
                            if (V > 1) hold(b);
                            CNET_UNROLL for (int v = 0; v < V; v++) sum[r][o][v] = multiply_add(sum[r][o][v], x[v], b);
                        }
                    }
                }
            }
            p += pitch;
        }
        plane += t.in_plane;
        w += 9 * TILE;
    }
    CNET_UNROLL for (int r = 0; r < ROWS; r++)
        CNET_UNROLL for (int o = 0; o < OUT; o++) {
            float *to = t.out + o * t.out_plane + r * pitch;
            CNET_UNROLL for (int v = 0; v < V - 1; v++) store_unaligned(to + lanes * v, sum[r][o][v]);
            store_first(to + lanes * (V - 1), sum[r][o][V - 1], last);
        }
}

template <int TILE, int OUT, int V>
void conv3x3_flat(Conv3x3Tile t, int64_t vectors) {
    for (; vectors >= V; vectors -= V) {
        conv3x3_tile<TILE, OUT, V, 1>(t, lanes);
        t.in += V * lanes;
        t.out += V * lanes;
    }
    if constexpr (V > 1) {
        if (vectors) conv3x3_flat<TILE, OUT, V / 2>(t, vectors);
    }
}

// ROWS rows of `width` pixels: in as few tiles as possible, as even as possible, the last of which stops at the end of the row.
template <int OUT, int V, int ROWS>
void conv3x3_rows(Conv3x3Tile t, int width) {
    const int vectors = (width + lanes - 1) / lanes, tiles = (vectors + V - 1) / V;
    for (int i = 0; i < tiles; i++) {
        const int from = vectors * i / tiles, to = vectors * (i + 1) / tiles;
        const int last = i + 1 < tiles ? lanes : width - (vectors - 1) * lanes;
        Conv3x3Tile part = t;
        part.in += from * lanes;
        part.out += from * lanes;
        auto run = [&](auto n) {
            if (to - from == decltype(n)::value) conv3x3_tile<OUT, OUT, decltype(n)::value, ROWS>(part, last);
        };
        run(Constant<V>{});
        if constexpr (V > 1) run(Constant<V - 1>{});
        if constexpr (V > 2) run(Constant<V - 2>{});
        if constexpr (V > 3) run(Constant<V - 3>{});
    }
}

// Rows that share their loads, and vectors beside each other, for groups of OUT outputs (1 or 2).
constexpr int shared_rows(int outputs) { return outputs == 2 ? 3 : 4; }
constexpr int shared_rows_step = 12;  // a multiple of both
constexpr int row_vectors(int outputs) {
    int most = wide_sums / (shared_rows(outputs) * outputs);
    return most < 1 ? 1 : most < 4 ? most : 4;
}

// Whether sharing rows pays: for tiles of at most two outputs, where little of a row's last vector is idle and rows are many.
CNET_INLINE bool rows_pay(int outputs, int height, int width) {
    return outputs <= 3 && width * 20 >= round_up(width, lanes) * 17 && height >= 2 * shared_rows_step;
}

// All groups for the pixels [from, to) of the flat map; by rows, these are whole rows. `in` is the first input plane at pixel 0.
CNET_INLINE void conv3x3_wide(const float *data, const Conv3x3 &c, const float *in, int64_t in_plane, int pitch, int64_t from, int64_t to,
                              bool by_rows, float *out, int64_t out_plane) {
    for (int g = 0; g < c.groups; g++) {
        Conv3x3Tile t;
        t.in_plane = in_plane;
        t.inputs = c.inputs;
        t.pitch = pitch;
        t.out_plane = out_plane;
        const float *weight = data + c.weight + (int64_t)g * c.outputs * c.inputs * 9;
        int done = 0;
        auto take = [&](auto outputs) {
            constexpr int tile = decltype(outputs)::value, at_once = tile < wide_outputs ? tile : wide_outputs;
            for (; c.outputs - done >= tile; done += tile) {
                for (int o = 0; o < tile; o += at_once) {
                    t.in = in + (int64_t)g * c.inputs * in_plane + from;
                    t.weight = weight + (int64_t)done * c.inputs * 9 + o;
                    t.out = out + (int64_t)(g * c.outputs + done + o) * out_plane + from;
                    if constexpr (tile <= 2) {
                        if (by_rows) {
                            constexpr int together = shared_rows(tile);
                            const int64_t rows = (to - from) / pitch;
                            // The last rows are done once more rather than in smaller tiles.
                            for (int64_t r = 0; r < rows; r += together) {
                                Conv3x3Tile part = t;
                                const int64_t row = lesser(r, rows - together);
                                part.in += row * pitch;
                                part.out += row * pitch;
                                conv3x3_rows<tile, row_vectors(tile), together>(part, pitch - 1);
                            }
                            continue;
                        }
                    }
                    conv3x3_flat<tile, at_once, wide_vectors(at_once)>(t, (to - from + lanes - 1) / lanes);
                }
            }
        };
        each(wide_tiles, take);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
