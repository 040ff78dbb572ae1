// 1x1 convolution of a run of pixels.
//
// The planes of a group are gathered, cut at their thresholds and zipped into words once; all the group's outputs then read the words
// from the nearest cache. Rows leave it as packed bytes (or 16-bit values) in their own order: the 3x3 gathers them anew, since its groups
// read rows of all groups of the 1x1.
#pragma once

#include "bytes.hpp"
#include "constants.h"
#include "plan.h"

namespace cnet {
namespace CNET_ISA {

constexpr int word_bytes = 4 * run;  // of a run of words
template <bool WIDE> constexpr int row_bytes = WIDE ? 2 * run : run;

// Gather a group's planes: `map` is the run in the map's first plane, `columns` becomes [words][run][4 bytes].
template <bool WIDE, bool FLIPS>
CNET_INLINE void gather_run(const int32_t *planes, const int32_t *thresholds, int words, const uint8_t *map, uint8_t *columns) {
    auto take = [&](int i) {
        const reg x = load(map + planes[i]);
        return FLIPS ? flipped(x, fill(thresholds[2 * i])) : x;
    };
    for (int w = 0; w < words; w++, columns += word_bytes) {
        if constexpr (WIDE) {
            const reg a = take(2 * w), b = take(2 * w + 1), cut_a = fill(thresholds[4 * w + 1]), cut_b = fill(thresholds[4 * w + 3]);
            const reg nothing = fill(0);
            auto zip = [&](reg x, reg y, uint8_t *to) {
                x = less_shorts(shorts_left<extra_bits>(x), cut_a);
                y = less_shorts(shorts_left<extra_bits>(y), cut_b);
                store(to, low_shorts(x, y));
                store(to + reg_bytes, high_shorts(x, y));
            };
            zip(low_bytes(a, nothing), low_bytes(b, nothing), columns);
            zip(high_bytes(a, nothing), high_bytes(b, nothing), columns + 2 * reg_bytes);
        } else {
            reg x[4];
            CNET_UNROLL for (int i = 0; i < 4; i++) x[i] = less_bytes(take(4 * w + i), fill(thresholds[8 * w + 2 * i + 1]));
            const reg low_a = low_bytes(x[0], x[1]), high_a = high_bytes(x[0], x[1]);
            const reg low_b = low_bytes(x[2], x[3]), high_b = high_bytes(x[2], x[3]);
            store(columns, low_shorts(low_a, low_b));
            store(columns + reg_bytes, high_shorts(low_a, low_b));
            store(columns + 2 * reg_bytes, low_shorts(high_a, high_b));
            store(columns + 3 * reg_bytes, high_shorts(high_a, high_b));
        }
    }
}

// Sums of OUT of the row_tile rows whose weights stand together.
template <bool WIDE, int OUT>
CNET_INLINE void multiply_run(const uint8_t *columns, int words, const int32_t *weight, reg (&sum)[OUT][4]) {
    using word = Word<WIDE>;
    for (int w = 0; w < words; w++, columns += word_bytes, weight += row_tile) {
        typename word::type factor[OUT];
        CNET_UNROLL for (int o = 0; o < OUT; o++) {
            factor[o] = word::weights(weight[o]);
            pin(factor[o]);
        }
        CNET_UNROLL for (int v = 0; v < 4; v++) {
            const typename word::type x = word::of(load(columns + v * reg_bytes));
            CNET_UNROLL for (int o = 0; o < OUT; o++) sum[o][v] = word::add(sum[o][v], x, factor[o]);
        }
    }
}

// Where rows go: row r to `to + r * stride`, or to the plane that `target` names.
struct Rows {
    uint8_t *to;
    int64_t stride;
    const int32_t *target;
};

template <bool WIDE, bool SHIFTS>
__attribute__((noinline)) void multiply_group(const float *data, const Pointwise &p, int g, const uint8_t *columns, const Rows &rows) {
    const int32_t *weight = table(data, p.weight) + (int64_t)g * p.outputs * p.words;
    const int32_t *bias = table(data, p.bias) + (int64_t)g * p.outputs, *offset = table(data, p.offset) + (int64_t)g * p.outputs;
    const int32_t *scale = table(data, p.requantization.rows) + (int64_t)g * p.outputs * 3;
    constexpr int together = rows_at_once;
    for (int first = 0; first < p.outputs; first += row_tile, weight += (int64_t)row_tile * p.words) {
        for (int part = 0; part < row_tile; part += together) {
            reg sum[together][4];
            CNET_UNROLL for (int o = 0; o < together; o++) {
                const int row = first + part + o;
                const reg start = fill(signed_alone && !WIDE ? bias[row] + offset[row] : bias[row]);
                CNET_UNROLL for (int v = 0; v < 4; v++) sum[o][v] = start;
            }
            multiply_run<WIDE, together>(columns, p.words, weight + part, sum);
            CNET_UNROLL for (int o = 0; o < together; o++) {
                const int64_t row = (int64_t)g * p.outputs + first + part + o;
                uint8_t *to = rows.to + (rows.target ? rows.target[row] : row * rows.stride);
                const int32_t *constants = scale + (first + part + o) * 3;
                if constexpr (WIDE) {
                    reg two[2];
                    rescale<SHIFTS>(sum[o], constants, two);
                    constexpr int32_t largest = (256 << extra_bits) - 1;
                    const reg least = fill(0), most = fill(largest << 16 | largest);
                    CNET_UNROLL for (int i = 0; i < 2; i++) store(to + i * reg_bytes, between(two[i], least, most));
                } else {
                    store(to, requantized<SHIFTS>(sum[o], constants));
                }
            }
        }
    }
}

// One group of a run. `map` is the run in the first plane; `columns` has room for a group's words.
template <bool WIDE>
CNET_INLINE void pointwise_group(const float *data, const Pointwise &p, int g, const uint8_t *map, uint8_t *columns, const Rows &rows) {
    const int inputs = p.words * Word<WIDE>::values;
    const int32_t *planes = table(data, p.planes) + (int64_t)g * inputs, *thresholds = table(data, p.thresholds) + (int64_t)g * inputs * 2;
    if (p.flips) gather_run<WIDE, true>(planes, thresholds, p.words, map, columns);
    else gather_run<WIDE, false>(planes, thresholds, p.words, map, columns);
    if (p.requantization.shifts) multiply_group<WIDE, true>(data, p, g, columns, rows);
    else multiply_group<WIDE, false>(data, p, g, columns, rows);
}

}  // namespace CNET_ISA
}  // namespace cnet
