// The first convolution: 3x3 over the image's channels, which are three in most networks, with a stride.
//
// With a stride of 2 a vector would have to take every second pixel. So each row of the image is first split, by the column modulo the
// stride, into rows of which a tap reads neighbouring pixels: 27 taps become 27 pointers, and the tile is that of a 1x1 with 27 inputs.
// Vectors split rows for strides of 1 and 2; for others it is done pixel by pixel.
#pragma once

#include "constants.h"
#include "plan.h"
#include "pointwise_wide.hpp"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

constexpr int taps = 9 * CNET_CHANNELS;  // 3x3 of every channel
constexpr int margin = 16;               // floats before and after a split row, for taps beside the image

CNET_INLINE int64_t split_floats(int width) { return round_up(width, line) + 2 * margin + 4 * line; }
CNET_INLINE int64_t stem_scratch(const Plan &p, const Block &b) { (void)p; return taps * split_floats(b.width); }

template <int TILE, int OUT, int V>
__attribute__((noinline)) void stem_tile(const float *const *tap, int64_t at, const float *weight, float *out, int64_t plane, int last) {
    vec sum[OUT][V];
    CNET_UNROLL for (int o = 0; o < OUT; o++)
        CNET_UNROLL for (int v = 0; v < V; v++) sum[o][v] = vec{};
    for (int i = 0; i < taps; i++) {
        vec x[V];
        CNET_UNROLL for (int v = 0; v < V; v++) {
            x[v] = load_unaligned(tap[i] + at + lanes * v);
            hold(x[v]);
        }
        CNET_UNROLL for (int o = 0; o < OUT; o++) {
            vec b = broadcast(weight[i * TILE + o]);
            CNET_UNROLL for (int v = 0; v < V; v++) sum[o][v] = sum[o][v] + x[v] * b;
        }
    }
    CNET_UNROLL for (int o = 0; o < OUT; o++) {
        float *to = out + o * plane + at;
        CNET_UNROLL for (int v = 0; v < V - 1; v++) store_unaligned(to + lanes * v, sum[o][v]);
        store_first(to + lanes * (V - 1), sum[o][V - 1], last);
    }
}

template <int TILE, int OUT, int V>
void stem_row(const float *const *tap, int from, int width, const float *weight, float *out, int64_t plane) {
    for (; width - from >= V * lanes; from += V * lanes) stem_tile<TILE, OUT, V>(tap, from, weight, out, plane, lanes);
    if constexpr (V > 1) stem_row<TILE, OUT, V / 2>(tap, from, width, weight, out, plane);
    else if (from < width) stem_tile<TILE, OUT, 1>(tap, from, weight, out, plane, width - from);
}

// to[x] = row[x * stride + remainder] for the pixels that there are; zeros around them.
CNET_INLINE void split_row(const float *row, int image_width, int stride, int remainder, float *to, int64_t floats) {
    const int count = image_width > remainder ? (image_width - remainder + stride - 1) / stride : 0;
    memset(to - margin, 0, 4 * margin);
    int x = 0;
    if (stride == 1) {
        memcpy(to, row + remainder, 4 * (size_t)count);
        x = count;
    } else if (stride == 2) {
        for (; (x + lanes) * 2 <= image_width; x += lanes) {
            const vec a = load_unaligned(row + 2 * x), b = load_unaligned(row + 2 * x + lanes);
            store_unaligned(to + x, remainder ? odd(a, b) : even(a, b));
        }
    }
    for (; x < count; x++) to[x] = row[(int64_t)x * stride + remainder];
    memset(to + count, 0, 4 * (size_t)(floats - margin - count));
}

static void stem(const Plan &p, const Block &b, const float *image, float *map, float *scratch, int share, int shares) {
    const int stride = p.stem.stride;
    const int64_t floats = split_floats(b.width);
    // Three rows of each channel, each split for the taps to the left, in the middle and to the right.
    auto split = [&](int c, int y, int kx) { return scratch + ((c * 3 + (y + 3) % 3) * 3 + kx) * floats + margin; };
    auto prepare = [&](int y) {
        for (int c = 0; c < CNET_CHANNELS; c++)
            for (int kx = 0; kx < (stride == 1 ? 1 : stride == 2 ? 2 : 3); kx++) {
                float *to = split(c, y, kx);
                const int remainder = kx == 2 ? stride - 1 : kx;
                if (y < 0 || y >= p.height) memset(to - margin, 0, 4 * (size_t)floats);
                else split_row(image + ((int64_t)c * p.height + y) * p.width, p.width, stride, remainder, to, floats);
            }
    };
    auto tap = [&](int c, int y, int kx) -> const float * {
        if (stride == 1) return split(c, y, 0) + kx - 1;
        if (kx == 0) return split(c, y, stride == 2 ? 1 : 2) - 1;
        return split(c, y, kx - 1);
    };
    const Range rows = share_of(b.height, share, shares);
    int ready = (int)rows.begin * stride - 2;  // the last row of the image that was prepared
    for (int y = (int)rows.begin; y < rows.end; y++) {
        const int first = y * stride - 1, last = y * stride + 1;
        for (int r = ready + 1 > first ? ready + 1 : first; r <= last; r++) prepare(r);
        ready = last;
        const float *tap_of[taps];
        for (int c = 0; c < CNET_CHANNELS; c++)
            for (int ky = 0; ky < 3; ky++)
                for (int kx = 0; kx < 3; kx++) tap_of[(c * 3 + ky) * 3 + kx] = tap(c, first + ky, kx);
        float *out = map + (int64_t)y * b.pitch;
        int done = 0;
        auto take = [&](auto outputs) {
            constexpr int tile = decltype(outputs)::value, at_once = tile < wide_outputs ? tile : wide_outputs;
            for (; p.stem.channels - done >= tile; done += tile)
                for (int o = 0; o < tile; o += at_once)
                    stem_row<tile, at_once, wide_vectors(at_once)>(tap_of, 0, b.width, p.data + p.stem.weight + (int64_t)done * taps + o,
                                                             out + (int64_t)(done + o) * b.plane, b.plane);
        };
        each(wide_tiles, take);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
