// Between blocks and at the end: 2x2 average pooling, the last average, and the classifier.
#pragma once

#include "bytes.hpp"
#include "constants.h"
#include "layer.hpp"
#include "plan.h"

namespace cnet {
namespace CNET_ISA {

CNET_INLINE int64_t pool_scratch(const Plan &p) {
    int64_t most = 0;
    for (int i = 0; i < p.blocks; i++) most = greater(most, 2 * odd_lines(p.block[i].plane + 3 * run));
    return most;
}

// One share of the planes. `from` has the planes of block `a`; `to` is the map of block `b`.
static void pool(const Block &a, const uint8_t *from, const Block &b, uint8_t *to, int channels, uint8_t *scratch, int share, int shares) {
    uint8_t *wide = scratch, *narrow = scratch + odd_lines(a.plane + 3 * run);
    const Range planes = share_of(channels, share, shares);
    const int pitch_a = pitch_of(a), pitch_b = pitch_of(b);
    for (int64_t c = planes.begin; c < planes.end; c++) {
        for (int64_t r = 0; r < runs_of(a); r++) store(wide + r * run, in_order(load(from + c * a.plane + r * run)));
        for (int y = 0; y < b.height; y++) {
            const uint8_t *p = wide + (int64_t)2 * y * pitch_a, *q = p + pitch_a;
            uint8_t *out = narrow + (int64_t)y * pitch_b;
            auto half = [&](int64_t at) {
                const reg u = load_anywhere(p + at), v = load_anywhere(q + at), even = fill(0x00ff00ff);
                const reg left = plus_shorts(both(u, even), both(v, even)), right = plus_shorts(shorts_right<8>(u), shorts_right<8>(v));
                return shorts_right<2>(plus_shorts(plus_shorts(left, right), fill(0x00020002)));
            };
            // The last vector of a row may spill into what the next row overwrites, or into the room at the end.
            for (int x = 0; x < b.width; x += run) store_anywhere(out + x, shorts_in_order(half(2 * x), half(2 * x + run)));
        }
        for (int64_t r = 0; r < runs_of(b); r++) store(to + c * b.plane + r * run, as_packed(load(narrow + r * run)));
    }
}

// 255 for the pixels that are averaged, 0 for others, in the order of runs. `size` is the window's, or 0.
static void mark_pixels(const Block &b, int size, uint8_t *mask, uint8_t *scratch) {
    const int height = size ? size : b.height, width = size ? size : b.width;
    memset(scratch, 0, (size_t)(runs_of(b) * run));
    for (int y = 0; y < height; y++) memset(scratch + (int64_t)y * pitch_of(b), 255, (size_t)width);
    for (int64_t r = 0; r < runs_of(b); r++) store(mask + r * run, as_packed(load(scratch + r * run)));
}

// QuantizedPool.of for one share of the features, which are 16-bit values.
static void average(const Plan &p, const Block &b, const uint8_t *map, int16_t *features, uint8_t *scratch, int share, int shares) {
    const Range range = share_of(p.head.kept, share, shares);
    uint8_t *mask = scratch, *spare = scratch + odd_lines(b.plane + 3 * run);
    mark_pixels(b, p.window, mask, spare);
    const int32_t *planes = table(p.data, p.head.planes), *thresholds = table(p.data, p.head.thresholds);
    const int64_t area = p.window ? (int64_t)p.window * p.window : (int64_t)b.height * b.width;
    const int64_t divisor = area << (pool_bits - p.head.bits);
    const reg ones = fill(0x00010001), nothing = fill(0);
    for (int64_t i = range.begin; i < range.end; i++) {
        const uint8_t *plane = map + planes[i];
        const reg flip = fill(thresholds[2 * i]), cut = fill(thresholds[2 * i + 1]);
        int64_t total = 0;
        for (int64_t first = 0; first < runs_of(b);) {
            const int64_t end = lesser(runs_of(b), first + 4096);  // sums of so many fit into 32 bits
            reg sum = nothing;
            for (; first < end; first++) {
                const reg x = flipped(load(plane + first * run), flip), valid = load(mask + first * run);
                auto add = [&](reg value, reg keep) {
                    const reg cut_off = both(less_shorts(shorts_left<pool_bits>(value), cut), keep);
                    sum = plus(sum, pairs(cut_off, ones));
                };
                add(low_bytes(x, nothing), low_bytes(valid, valid));
                add(high_bytes(x, nothing), high_bytes(valid, valid));
            }
            int32_t parts[reg_bytes / 4];
            memcpy(parts, &sum, sizeof sum);
            for (const int32_t part : parts) total += part;
        }
        features[i] = (int16_t)((2 * total + divisor) / (2 * divisor));
    }
}

// Keeps a product from becoming part of a multiply-add, which would not round it.
CNET_INLINE void alone(double &x) {
#if defined(__x86_64__)
    asm("" : "+x"(x));
#else
    asm("" : "+w"(x));
#endif
}

// The classifier: sums of 16-bit features by 8-bit weights. NaN where the image has a value that is not finite.
static void classify(const Plan &p, const int16_t *features, bool finite, float *logits, int share, int shares) {
    const Head &h = p.head;
    const int words = (h.kept + 3) / 4;
    constexpr int parts = classes_at_once / lanes;
    const Range range = share_of((h.classes + classes_at_once - 1) / classes_at_once, share, shares);
    for (int64_t j = range.begin; j < range.end; j++) {
        const uint8_t *weight = (const uint8_t *)(p.data + h.weight) + j * words * 4 * classes_at_once;
        reg sum[parts];
        CNET_UNROLL for (int v = 0; v < parts; v++) sum[v] = fill(0);
        for (int w = 0; w < words; w++) {
            int32_t even, odd;  // features 0 and 2, 1 and 3
            int16_t pair[2] = {features[4 * w], features[4 * w + 2]}, other[2] = {features[4 * w + 1], features[4 * w + 3]};
            memcpy(&even, pair, 4);
            memcpy(&odd, other, 4);
            CNET_UNROLL for (int v = 0; v < parts; v++, weight += reg_bytes) {
                const reg four = load(weight);
                sum[v] = add_pairs(sum[v], shorts_down<8>(shorts_left<8>(four)), fill(even));
                sum[v] = add_pairs(sum[v], shorts_down<8>(four), fill(odd));
            }
        }
        int32_t totals[classes_at_once];
        memcpy(totals, sum, sizeof totals);
        const float *scale = p.data + h.scale, *bias = p.data + h.bias;
        for (int c = 0; c < classes_at_once && j * classes_at_once + c < h.classes; c++) {
            const int64_t at = j * classes_at_once + c;
            double product = (double)totals[c] * scale[at];
            alone(product);
            logits[at] = finite ? (float)(product + bias[at]) : __builtin_nanf("");
        }
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
