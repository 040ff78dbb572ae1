// The first convolution: the image as bytes, then 3x3 over its channels in 16-bit weights.
//
// A word is a pair of taps. For each row of the result the pairs are laid side by side, so that the tile is that of a 1x1. Rows of the
// result are not whole runs: they are stored in order, and each plane is brought into the order of its runs afterwards.
#pragma once

#include "bytes.hpp"
#include "constants.h"
#include "layer.hpp"
#include "plan.h"

namespace cnet {
namespace CNET_ISA {

// Taps of a row of a channel: the left and the middle one are a pair; the right ones of all rows and channels are paired with each other.
constexpr int tap_rows = 3 * CNET_CHANNELS;
constexpr int stem_words = tap_rows + (tap_rows + 1) / 2;
constexpr int row_margin = 64;  // shorts before a row of pixels, and after it

CNET_INLINE int64_t pixel_row(const Plan &p) { return odd_lines(2 * ((int64_t)p.width + 2 * row_margin + 4 * p.stem.stride)); }
CNET_INLINE int64_t tap_row(const Plan &p) { return odd_lines(4 * (int64_t)(p.block[0].width + 4 * run)); }
CNET_INLINE int64_t stem_scratch(const Plan &p) { return tap_rows * pixel_row(p) + stem_words * tap_row(p); }

// A row of the image as bytes, in 16 bits each, rounded as QuantizedStem.to_pixels is. Returns whether all its values are finite.
static bool take_row(const float *row, int width, float scale, float offset, int16_t *to) {
    const double by = scale, plus = offset;
    uint32_t worst = 0;
    for (int x = 0; x < width; x++) {
        uint32_t bits;
        memcpy(&bits, row + x, 4);
        bits &= 0x7fffffff;
        worst = worst > bits ? worst : bits;
        // Adding 1.5 * 2^52 rounds to an integer as the processor does: to the nearest, halves to the even one.
        double value = (double)row[x] * by + plus;
        value = value < 0 ? 0 : value;
        value = value > 255 ? 255 : value;  // before the rounding, which keeps both ends; NaN stays and is reported
        const double shifted = value + 6755399441055744.0;
        int64_t whole;
        memcpy(&whole, &shifted, 8);
        to[x] = (int16_t)whole;
    }
    return worst < 0x7f800000;
}

template <int STRIDE>
CNET_INLINE void pair_taps(const int16_t *row, int width, int stride, int32_t *to) {
    const int64_t step = STRIDE ? STRIDE : stride;
    for (int x = 0; x < width; x++) to[x] = (int32_t)((uint16_t)row[x * step - 1] | (uint32_t)(uint16_t)row[x * step] << 16);
}

template <int STRIDE>
CNET_INLINE void pair_right_taps(const int16_t *a, const int16_t *b, int width, int stride, int32_t *to) {
    const int64_t step = STRIDE ? STRIDE : stride;
    for (int x = 0; x < width; x++) to[x] = (int32_t)((uint16_t)a[x * step + 1] | (b ? (uint32_t)(uint16_t)b[x * step + 1] << 16 : 0));
}

template <int STRIDE>
static void lay_taps(const int16_t *const *rows, int width, int stride, uint8_t *taps, int64_t tap) {
    for (int i = 0; i < tap_rows; i++) pair_taps<STRIDE>(rows[i], width, stride, (int32_t *)(void *)(taps + i * tap));
    for (int i = 0; i < tap_rows; i += 2)
        pair_right_taps<STRIDE>(rows[i], i + 1 < tap_rows ? rows[i + 1] : nullptr, width, stride,
                                (int32_t *)(void *)(taps + (tap_rows + i / 2) * tap));
}

// OUT outputs of a run of a row: their bytes in order.
template <int OUT>
__attribute__((noinline)) void stem_run(const uint8_t *taps, int64_t tap, const int32_t *weight, const int32_t *bias, const int32_t *scale,
                                        reg (&out)[OUT]) {
    reg sum[OUT][4];
    CNET_UNROLL for (int o = 0; o < OUT; o++)
        CNET_UNROLL for (int v = 0; v < 4; v++) sum[o][v] = fill(bias[o]);
    for (int w = 0; w < stem_words; w++, taps += tap, weight += row_tile) {
        reg factor[OUT];
        CNET_UNROLL for (int o = 0; o < OUT; o++) {
            factor[o] = fill(weight[o]);
            pin(factor[o]);
        }
        CNET_UNROLL for (int v = 0; v < 4; v++) {
            const reg x = load_anywhere(taps + v * reg_bytes);
            CNET_UNROLL for (int o = 0; o < OUT; o++) sum[o][v] = add_pairs(sum[o][v], x, factor[o]);
        }
    }
    CNET_UNROLL for (int o = 0; o < OUT; o++) out[o] = in_order(requantized<true>(sum[o], scale + 3 * o));
}

// One share of the rows of the result. Returns whether all values of its part of the image are finite, with those that no output reads.
static bool stem(const Plan &p, const Block &b, const float *image, uint8_t *map, uint8_t *scratch, int share, int shares) {
    const Stem &s = p.stem;
    const int64_t row_bytes = pixel_row(p), tap = tap_row(p);
    uint8_t *taps = scratch + tap_rows * row_bytes;
    // Three rows of each channel, each where its number says.
    auto place = [&](int c, int y) { return (int16_t *)(void *)(scratch + (c * 3 + (y + 3) % 3) * row_bytes) + row_margin; };
    bool finite = true;
    auto prepare = [&](int y) {
        for (int c = 0; c < CNET_CHANNELS; c++) {
            int16_t *to = place(c, y);
            const int16_t pad = (int16_t)s.pad[c];
            const bool inside = y >= 0 && y < p.height;
            if (inside) finite &= take_row(image + ((int64_t)c * p.height + y) * p.width, p.width, s.scale[c], s.offset[c], to);
            for (int x = -1; x < 0; x++) to[x] = pad;
            for (int x = inside ? p.width : 0; x < p.width + 2 * s.stride + 2; x++) to[x] = pad;
        }
    };
    const Range mine = share_of(b.height, share, shares);
    int ready = (int)mine.begin * s.stride - 1;  // rows before it are prepared, or another share's
    for (int64_t y = mine.begin; y < mine.end; y++) {
        const int top = (int)y * s.stride - 1;
        for (; ready < top + 3; ready++) prepare(ready);
        const int16_t *rows[tap_rows];
        for (int c = 0; c < CNET_CHANNELS; c++)
            for (int ky = 0; ky < 3; ky++) rows[c * 3 + ky] = place(c, top + ky);
        if (s.stride == 1) lay_taps<1>(rows, b.width, s.stride, taps, tap);
        else if (s.stride == 2) lay_taps<2>(rows, b.width, s.stride, taps, tap);
        else lay_taps<0>(rows, b.width, s.stride, taps, tap);
        for (int first = 0; first < s.channels; first += rows_at_once) {
            const int32_t *weight = table(p.data, s.weight) + (int64_t)(first / row_tile) * stem_words * row_tile + first % row_tile;
            const int32_t *bias = table(p.data, s.bias) + first, *scale = table(p.data, s.requantization.rows) + 3 * first;
            const int outputs = (int)lesser(rows_at_once, s.channels - first);
            for (int x = 0; x < b.width; x += run) {
                reg out[rows_at_once];
                stem_run<rows_at_once>(taps + 4 * x, tap, weight, bias, scale, out);
                const int64_t at = y * (b.width + 1) + x;
                for (int o = 0; o < outputs; o++) {
                    uint8_t *to = map + (int64_t)(first + o) * b.plane + at;
                    if (b.width - x >= run) store_anywhere(to, out[o]);
                    else memcpy(to, &out[o], (size_t)(b.width - x));
                }
            }
        }
    }
    const int end = mine.end == b.height ? p.height : (int)mine.end * s.stride - 1;
    for (; ready < end; ready++) prepare(ready);
    return finite;
}

// The planes of the stem, into the order of their runs.
static void pack_planes(const Block &b, uint8_t *map, int channels, int share, int shares) {
    const Range planes = share_of(channels, share, shares);
    for (int64_t c = planes.begin; c < planes.end; c++)
        for (int64_t r = 0; r < runs_of(b); r++) {
            uint8_t *at = map + c * b.plane + r * run;
            store(at, as_packed(load(at)));
        }
}

}  // namespace CNET_ISA
}  // namespace cnet
