// A dense layer: 1x1 and 3x3 in turn, a strip of the map for each share.
//
// What lies between the convolutions is a buffer of words that stays in the second-level cache. A share computes the rows above and below
// its strip itself, so that a layer needs one meeting of the threads. On a small map, where these rows would be many, threads share groups
// instead of strips, and meet once more.
#pragma once

#include "bytes.hpp"
#include "conv3x3.hpp"
#include "plan.h"
#include "pointwise.hpp"

namespace cnet {
namespace CNET_ISA {

constexpr int64_t buffer_bytes = 1 << 18;  // the size of buffer to aim at

CNET_INLINE int pitch_of(const Block &b) { return b.width + 1; }
CNET_INLINE int64_t pixels_of(const Block &b) { return (int64_t)b.height * pitch_of(b); }
CNET_INLINE int64_t runs_of(const Block &b) { return (pixels_of(b) + run - 1) / run; }
CNET_INLINE int64_t odd_lines(int64_t bytes) { return (bytes + 63) / 64 * 64 | 64; }

// What the rows of a run take before they are zipped, with the row of zeros; and the words of a group.
CNET_INLINE int64_t rows_room(const Layer &l) {
    return ((int64_t)l.first.groups * l.first.outputs + 1) * (l.wide ? row_bytes<true> : row_bytes<false>);
}
CNET_INLINE int64_t columns_room(const Pointwise &p) { return (int64_t)p.words * word_bytes; }

// Runs that hold a row and a pixel.
CNET_INLINE int64_t strip_halo(const Block &b) { return (pitch_of(b) + run) / run; }

// The buffer of a strip: so many runs at a time, after and before a row and a pixel of others.
struct Strip {
    int64_t runs, before, plane;
};
CNET_INLINE Strip strip_of(const Block &b, const Conv3x3 &c) {
    const int64_t words = (int64_t)c.groups * c.words, halo = strip_halo(b);
    Strip s;
    s.before = halo;
    s.runs = greater(4, lesser(runs_of(b), buffer_bytes / (words * 4 * run) - 2 * halo));
    s.plane = odd_lines((s.runs + 2 * halo) * 4 * run + 4 * run);
    return s;
}
CNET_INLINE int64_t layer_scratch(const Block &b, const Layer &l) {
    return (int64_t)l.second.groups * l.second.words * strip_of(b, l.second).plane + rows_room(l) + columns_room(l.first);
}

// Zeros for the pixels of run `r` that are not of the map: the column between rows, and what lies above and below.
CNET_INLINE void blank_outside(const Block &b, int64_t count, int64_t r, uint8_t *words, int64_t plane) {
    const int64_t pixels = pixels_of(b), first = r * run;
    auto blank = [&](int64_t from, int64_t to) {
        for (int64_t w = 0; w < count; w++) memset(words + w * plane + 4 * (from - first), 0, 4 * (size_t)(to - from));
    };
    if (first < 0 || first >= pixels) return blank(first, first + run);
    const int pitch = pitch_of(b);
    for (int64_t gap = first / pitch * pitch + b.width; gap < first + run; gap += pitch)
        for (int64_t w = 0; gap >= first && w < count; w++) memset(words + w * plane + 4 * (gap - first), 0, 4);
    if (first + run > pixels) blank(pixels, first + run);
}

// The 1x1 of run `r`, zipped into `words`, the first plane at the run.
template <bool WIDE>
static void middle_run(const float *data, const Block &b, const Layer &l, const uint8_t *map, int64_t r, uint8_t *rows, uint8_t *columns,
                       uint8_t *words, int64_t plane) {
    const int64_t count = (int64_t)l.second.groups * l.second.words;
    if (r >= 0 && r < runs_of(b)) {
        for (int g = 0; g < l.first.groups; g++)
            pointwise_group<WIDE>(data, l.first, g, map + r * run, columns, Rows{rows, row_bytes<WIDE>, nullptr});
        zip_rows<WIDE>(table(data, l.second.sources), count, rows, words, plane);
    }
    blank_outside(b, count, r, words, plane);
}

CNET_INLINE void blank_row(const Layer &l, uint8_t *rows) {
    const int64_t size = l.wide ? row_bytes<true> : row_bytes<false>;
    memset(rows + rows_room(l) - size, 0, (size_t)size);
}

template <bool WIDE>
static void layer_strip(const float *data, const Block &b, const Layer &l, uint8_t *map, uint8_t *scratch, int share, int shares) {
    const Strip s = strip_of(b, l.second);
    const Range strip = share_of(runs_of(b), share, shares);
    const int64_t count = (int64_t)l.second.groups * l.second.words;
    uint8_t *buffer = scratch, *rows = buffer + count * s.plane, *columns = rows + rows_room(l);
    uint8_t *out = map + l.channels * b.plane;
    blank_row(l, rows);
    int64_t origin = strip.begin - s.before, done = origin;  // runs: the buffer's first, and the first that is not there
    for (int64_t from = strip.begin; from < strip.end;) {
        const int64_t to = lesser(strip.end, from + s.runs), need = to + s.before;
        for (; done < need; done++) middle_run<WIDE>(data, b, l, map, done, rows, columns, buffer + (done - origin) * word_bytes, s.plane);
        for (int64_t r = from; r < to; r++) {
            const uint8_t *in = buffer + (r - origin) * word_bytes;
            for (int g = 0; g < l.second.groups; g++)
                conv_group<WIDE>(data, l.second, g, 0, l.second.outputs, in + g * l.second.words * s.plane, s.plane, pitch_of(b),
                                 out + r * run, b.plane);
        }
        from = to;
        if (from < strip.end) {  // what the next runs read of these goes to the front
            const int64_t next = from - s.before;
            for (int64_t w = 0; w < count; w++) {
                uint8_t *plane = buffer + w * s.plane;
                memmove(plane, plane + (next - origin) * word_bytes, (size_t)((done - next) * word_bytes));
            }
            origin = next;
        }
    }
}

// A small map: threads share the groups of the 1x1, and after one more meeting those of the 3x3. Rows lie in `shared` run after run.
CNET_INLINE bool goes_whole(const Block &b, int shares) { return shares > 1 && b.whole; }
CNET_INLINE int64_t words_plane(const Block &b) { return odd_lines((runs_of(b) + 2 * strip_halo(b)) * word_bytes + word_bytes); }
CNET_INLINE int64_t whole_scratch(const Block &b, const Layer &l) { return greater(columns_room(l.first), l.second.words * words_plane(b)); }

template <bool WIDE>
static void whole_pointwise(const float *data, const Block &b, const Layer &l, const uint8_t *map, uint8_t *shared, uint8_t *columns,
                            int share, int shares) {
    const Range mine = share_of(runs_of(b) * l.first.groups, share, shares);
    for (int64_t u = mine.begin; u < mine.end; u++) {
        const int64_t r = u / l.first.groups;
        uint8_t *rows = shared + r * rows_room(l);
        if (u % l.first.groups == 0) blank_row(l, rows);
        pointwise_group<WIDE>(data, l.first, (int)(u % l.first.groups), map + r * run, columns, Rows{rows, row_bytes<WIDE>, nullptr});
    }
}

template <bool WIDE>
static void whole_conv3x3(const float *data, const Block &b, const Layer &l, uint8_t *map, const uint8_t *shared, uint8_t *words, int share,
                          int shares) {
    const Conv3x3 &c = l.second;
    // Where there are fewer groups than threads, several do a group, each some of its outputs.
    const int64_t parts = (shares + c.groups - 1) / c.groups, tiles = (c.outputs + widest_tile - 1) / widest_tile;
    const int64_t plane = words_plane(b), halo = strip_halo(b);
    const int32_t *sources = table(data, c.sources);
    const Range mine = share_of(c.groups * parts, share, shares);
    for (int64_t u = mine.begin, zipped = -1; u < mine.end; u++) {
        const int64_t g = u / parts;
        const Range outputs = share_of(tiles, (int)(u % parts), (int)parts);
        if (outputs.begin == outputs.end) continue;
        if (g != zipped) {
            const int32_t *own = sources + g * c.words * Word<WIDE>::values;
            for (int64_t r = -halo; r < runs_of(b) + halo; r++) {
                uint8_t *at = words + (r + halo) * word_bytes;
                if (r >= 0 && r < runs_of(b)) zip_rows<WIDE>(own, c.words, shared + r * rows_room(l), at, plane);
                blank_outside(b, c.words, r, at, plane);
            }
            zipped = g;
        }
        for (int64_t r = 0; r < runs_of(b); r++)
            conv_group<WIDE>(data, c, (int)g, (int)(outputs.begin * widest_tile), (int)lesser(c.outputs, outputs.end * widest_tile),
                             words + (r + halo) * word_bytes, plane, pitch_of(b), map + l.channels * b.plane + r * run, b.plane);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
