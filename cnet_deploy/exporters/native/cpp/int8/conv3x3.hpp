// 3x3 convolution of a run of pixels: words of four channels of a pixel (or two), nine constant offsets, no edges.
#pragma once

#include "bytes.hpp"
#include "constants.h"
#include "plan.h"
#include "pointwise.hpp"

namespace cnet {
namespace CNET_ISA {

// Zip the rows of a 1x1 into the words that the 3x3 reads: `rows` [row][run], `words` [word][pixels][4 bytes] at the run.
template <bool WIDE>
CNET_INLINE void zip_rows(const int32_t *sources, int64_t count, const uint8_t *rows, uint8_t *words, int64_t plane) {
    for (int64_t w = 0; w < count; w++, words += plane, sources += Word<WIDE>::values) {
        if constexpr (WIDE) {
            const uint8_t *a = rows + (int64_t)sources[0] * row_bytes<true>, *b = rows + (int64_t)sources[1] * row_bytes<true>;
            CNET_UNROLL for (int i = 0; i < 2; i++) {
                const reg x = load(a + i * reg_bytes), y = load(b + i * reg_bytes);
                store(words + 2 * i * reg_bytes, low_shorts(x, y));
                store(words + (2 * i + 1) * reg_bytes, high_shorts(x, y));
            }
        } else {
            reg x[4];
            CNET_UNROLL for (int i = 0; i < 4; i++) x[i] = load(rows + (int64_t)sources[i] * row_bytes<false>);
            const reg low_a = low_bytes(x[0], x[1]), high_a = high_bytes(x[0], x[1]);
            const reg low_b = low_bytes(x[2], x[3]), high_b = high_bytes(x[2], x[3]);
            store(words, low_shorts(low_a, low_b));
            store(words + reg_bytes, high_shorts(low_a, low_b));
            store(words + 2 * reg_bytes, low_shorts(high_a, high_b));
            store(words + 3 * reg_bytes, high_shorts(high_a, high_b));
        }
    }
}

struct ConvTile {
    const uint8_t *in;      // the run in the group's first plane of words, one row above and one pixel to the left
    int64_t in_plane;
    int words;
    int64_t row;            // bytes from row to row
    const int32_t *weight;  // [words][3][3][TILE]
    const int32_t *offset, *scale;
    uint8_t *out;           // the run in the plane of the first output
    int64_t out_plane;
};

template <bool WIDE, bool SHIFTS, int TILE, int OUT>
__attribute__((noinline)) void conv_tile(const ConvTile &t) {
    using word = Word<WIDE>;
    reg sum[OUT][4];
    CNET_UNROLL for (int o = 0; o < OUT; o++) {
        const reg start = fill(signed_alone && !WIDE ? t.offset[o] : 0);
        CNET_UNROLL for (int v = 0; v < 4; v++) sum[o][v] = start;
    }
    const int32_t *weight = t.weight;
    for (int w = 0; w < t.words; w++) {
        const uint8_t *row = t.in + w * t.in_plane;
        for (int ky = 0; ky < 3; ky++, row += t.row) {
            CNET_UNROLL for (int kx = 0; kx < 3; kx++, weight += TILE) {
                typename word::type factor[OUT];
                CNET_UNROLL for (int o = 0; o < OUT; o++) {
                    factor[o] = word::weights(weight[o]);
                    pin(factor[o]);
                }
                CNET_UNROLL for (int v = 0; v < 4; v++) {
                    const typename word::type x = word::of(load_anywhere(row + 4 * kx + v * reg_bytes));
                    CNET_UNROLL for (int o = 0; o < OUT; o++) sum[o][v] = word::add(sum[o][v], x, factor[o]);
                }
            }
        }
    }
    CNET_UNROLL for (int o = 0; o < OUT; o++) store(t.out + o * t.out_plane, requantized<SHIFTS>(sum[o], t.scale + 3 * o));
}

constexpr int widest_tile = 4;

// Outputs [begin, end) of a group for one run; begin is a multiple of the widest tile. `in` is the group's first plane of words at the run.
template <bool WIDE>
CNET_INLINE void conv_group(const float *data, const Conv3x3 &c, int g, int begin, int end, const uint8_t *in, int64_t in_plane, int pitch,
                            uint8_t *out, int64_t out_plane) {
    ConvTile t;
    t.in_plane = in_plane;
    t.words = c.words;
    t.row = 4 * (int64_t)pitch;
    t.in = in - t.row - 4;
    t.out_plane = out_plane;
    int64_t output = (int64_t)g * c.outputs + begin;
    const int64_t last = (int64_t)g * c.outputs + end;
    auto take = [&](auto outputs) {
        constexpr int tile = decltype(outputs)::value, together = tile < rows_at_once ? tile : rows_at_once;
        for (; last - output >= tile; output += tile)
            for (int o = 0; o < tile; o += together) {
                t.weight = table(data, c.weight) + output * c.words * 9 + o;
                t.offset = table(data, c.offset) + output + o;
                t.scale = table(data, c.requantization.rows) + (output + o) * 3;
                t.out = out + (output + o) * out_plane;
                if (c.requantization.shifts) conv_tile<WIDE, true, tile, together>(t);
                else conv_tile<WIDE, false, tile, together>(t);
            }
    };
    each(conv_tiles, take);
}

}  // namespace CNET_ISA
}  // namespace cnet
