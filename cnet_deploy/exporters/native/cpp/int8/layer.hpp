// A dense layer: 1x1 and 3x3 in turn, a strip of the map for each share.
//
// What lies between the convolutions is a buffer of words that stays in the second-level cache. A share computes the rows above and below
// its strip itself, so that a layer needs one meeting of the threads; on a small map, where these rows would be many, the 1x1 of the whole
// map comes first, and the 3x3 after one more meeting.
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

// The buffer of a strip: so many runs at a time, after and before a row and a pixel of others.
struct Strip {
    int64_t runs, before, plane;
};
CNET_INLINE Strip strip_of(const Block &b, const Conv3x3 &c) {
    const int64_t words = (int64_t)c.groups * c.words, halo = (pitch_of(b) + 1 + run - 1) / run;
    Strip s;
    s.before = halo;
    s.runs = greater(4, lesser(runs_of(b), buffer_bytes / (words * 4 * run) - 2 * halo));
    s.plane = odd_lines((s.runs + 2 * halo) * 4 * run + 4 * run);
    return s;
}
CNET_INLINE int64_t layer_scratch(const Block &b, const Layer &l) {
    return (int64_t)l.second.groups * l.second.words * strip_of(b, l.second).plane + rows_room(l) + columns_room(l.first);
}

// The 1x1 of run `r`, zipped into `words`, the first plane at the run. Pixels that are not of the map become zeros.
template <bool WIDE>
static void middle_run(const float *data, const Block &b, const Layer &l, const uint8_t *map, int64_t r, uint8_t *rows, uint8_t *columns,
                       uint8_t *words, int64_t plane) {
    const int64_t count = (int64_t)l.second.groups * l.second.words, pixels = pixels_of(b), first = r * run;
    auto blank = [&](int64_t from, int64_t to) {
        for (int64_t w = 0; w < count; w++) memset(words + w * plane + 4 * (from - first), 0, 4 * (size_t)(to - from));
    };
    if (first < 0 || first >= pixels) return blank(first, first + run);
    pointwise_run<WIDE>(data, l.first, map + first, columns, Rows{rows, row_bytes<WIDE>, nullptr});
    zip_rows<WIDE>(table(data, l.second.sources), count, rows, words, plane);
    const int pitch = pitch_of(b);
    for (int64_t gap = first / pitch * pitch + b.width; gap < first + run; gap += pitch)
        if (gap >= first) blank(gap, gap + 1);
    if (first + run > pixels) blank(pixels, first + run);
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
            if (l.second.requantization.shifts) conv_run<WIDE, true>(data, l.second, in, s.plane, pitch_of(b), out + r * run, b.plane);
            else conv_run<WIDE, false>(data, l.second, in, s.plane, pitch_of(b), out + r * run, b.plane);
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

// The whole map's 1x1 into `shared`, in whose planes the map begins after a row and a pixel of zeros.
CNET_INLINE int64_t whole_start(const Block &b) { return (pitch_of(b) + 1 + run - 1) / run * word_bytes; }
CNET_INLINE bool goes_whole(const Block &b, int shares) { return shares > 1 && b.whole > 0; }

template <bool WIDE>
static void whole_pointwise(const float *data, const Block &b, const Layer &l, const uint8_t *map, uint8_t *shared, uint8_t *scratch,
                            int share, int shares) {
    uint8_t *rows = scratch, *columns = rows + rows_room(l);
    blank_row(l, rows);
    const int64_t halo = whole_start(b) / word_bytes;
    const Range mine = share_of(runs_of(b) + 2 * halo, share, shares);
    for (int64_t r = mine.begin - halo; r < mine.end - halo; r++)
        middle_run<WIDE>(data, b, l, map, r, rows, columns, shared + whole_start(b) + r * word_bytes, b.whole);
}

template <bool WIDE>
static void whole_conv3x3(const float *data, const Block &b, const Layer &l, uint8_t *map, const uint8_t *shared, int share, int shares) {
    const Range mine = share_of(runs_of(b), share, shares);
    for (int64_t r = mine.begin; r < mine.end; r++) {
        const uint8_t *in = shared + whole_start(b) + r * word_bytes;
        uint8_t *out = map + l.channels * b.plane + r * run;
        if (l.second.requantization.shifts) conv_run<WIDE, true>(data, l.second, in, b.whole, pitch_of(b), out, b.plane);
        else conv_run<WIDE, false>(data, l.second, in, b.whole, pitch_of(b), out, b.plane);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
