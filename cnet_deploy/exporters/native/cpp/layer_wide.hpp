// A dense layer on a wide map: 1x1 and 3x3 in turn, a strip of the map for each share.
//
// What lies between the two convolutions never exists as a whole: the 1x1 fills a buffer that stays in the second-level cache, the 3x3
// empties it, and the two rows of overlap slide to its front. A share computes the row above and below its strip itself, so that one
// layer needs one meeting of the threads.
#pragma once

#include "constants.h"
#include "conv3x3_wide.hpp"
#include "plan.h"
#include "pointwise_wide.hpp"
#include "vectors.hpp"
#if CNET_V2
#include "pointwise_swish.hpp"
#include "update.hpp"
#endif

namespace cnet {
namespace CNET_ISA {

constexpr int64_t buffer_floats = 1 << 16;  // the size of buffer to aim at: a quarter of a megabyte

// How a layer goes through its strip: so many pixels at a time, in a buffer of so many planes of so many floats.
struct Steps {
    bool by_rows;
    int64_t unit;    // strips and steps are multiples of it: a vector, or the rows that share their loads
    int64_t pixels;  // of a step
    int64_t planes, plane;
};

CNET_INLINE Steps steps_of(const Block &b, const Conv3x3 &c) {
    Steps s;
    s.by_rows = rows_pay(c.outputs, b.height, b.width);
    s.unit = s.by_rows ? 4 * b.pitch : lanes;
    s.planes = (int64_t)c.groups * c.inputs;
    const int64_t least = s.by_rows ? (int64_t)shared_rows_step * b.pitch : 24 * lanes;
    const int64_t most = (buffer_floats / s.planes - 2 * b.pitch) / least * least;
    s.pixels = lesser(round_up((int64_t)b.height * b.pitch, least), greater(least, most));
    s.plane = round_up(s.pixels + 2 * b.pitch + (s.by_rows ? s.unit : 0) + 10 * line, line);
    if (s.plane / line % 2 == 0) s.plane += line;
    return s;
}

CNET_INLINE int64_t wide_scratch(const Block &b, const Conv3x3 &c) {
    const Steps s = steps_of(b, c);
    return (s.planes + 1) * s.plane;  // one for rows that nobody reads
}

// The 1x1 of a layer. `room` is for activated inputs, where hard swish needs them.
CNET_INLINE void first_pointwise(const float *data, const Pointwise &p, const float *map, int64_t from, int64_t vectors, float *out,
                                 int64_t plane, float *room) {
#if CNET_V2
    if (p.swish) return pointwise_swish<paired>(data, p, map, from, vectors, out, plane, room);
#endif
    (void)room;
    pointwise_wide<paired>(data, p, map, from, vectors, 0.0f, out, plane);
}

CNET_INLINE void zero_planes(float *first, int64_t planes, int64_t plane, int64_t from, int64_t to) {
    if (to <= from) return;
    for (int64_t i = 0; i < planes; i++) memset(first + i * plane + from, 0, 4 * (size_t)(to - from));
}

// The pixels of a share's strip. Rows that are left over go to the last strip, and to its last step, since they can't share loads alone.
CNET_INLINE Range strip_of(const Block &b, const Steps &s, int share, int shares) {
    const int64_t all = (int64_t)b.height * b.pitch, computable = round_up(all, lanes);
    const int64_t units = s.by_rows ? all / s.unit : computable / s.unit;
    const Range strip = share_of(units, share, shares);
    return {strip.begin * s.unit, strip.end < units ? strip.end * s.unit : s.by_rows ? all : computable};
}

#if CNET_V2
// What a share may update while others still read the map: none of the pixels that the 1x1 of a neighbour's strip reads too.
CNET_INLINE Range inner_of(const Block &b, const Steps &s, int share, int shares) {
    const int64_t halo = b.pitch + 1, computable = round_up((int64_t)b.height * b.pitch, lanes);
    const Range strip = strip_of(b, s, share, shares);
    const int64_t begin = share == 0 ? 0 : lesser(round_up(strip.begin + halo, line), computable);
    const int64_t end = share + 1 == shares ? computable : round_down(strip.end - halo, line);
    return {begin, greater(begin, end)};
}

// What is left to update when all strips are done: the seam after a share's inner pixels.
static void update_seam(const float *data, const Block &b, const Layer &l, float *map, float *room, int share, int shares) {
    const Steps s = steps_of(b, l.second);
    if (share + 1 == shares) return;
    update(data, b, l, map, nullptr, nullptr, inner_of(b, s, share, shares).end, inner_of(b, s, share + 1, shares).begin, room);
}
#endif

// `out` is the plane of the first output.
static void layer_wide(const float *data, const Block &b, const Layer &l, float *map, float *out, float *scratch, int share, int shares) {
    const Steps s = steps_of(b, l.second);
    const int64_t all = (int64_t)b.height * b.pitch, halo = b.pitch + 1, computable = round_up(all, lanes);
    const Range strip = strip_of(b, s, share, shares);
    const int64_t begin = strip.begin, end = strip.end;
    if (begin == end) return;
    float *room = scratch + wide_scratch(b, l.second);
#if CNET_V2
    const Range inner = inner_of(b, s, share, shares);
    int64_t updated = inner.begin;
#endif

    int64_t origin = round_down(begin - halo, line);  // the pixel that the buffer begins with
    int64_t done = greater(origin, 0);                // pixels before it are there
    zero_planes(scratch, s.planes, s.plane, 0, done - origin);
    for (int64_t from = begin; from < end;) {
        const int64_t to = end - from < s.pixels + (s.by_rows ? s.unit : 0) ? end : from + s.pixels;
        const int64_t need = lesser(round_up(to + halo, lanes), computable);
        if (need > done) {
            first_pointwise(data, l.first, map, done, (need - done) / lanes, scratch + (done - origin), s.plane, room);
            // The column between the rows, and all that is below the map.
            for (int64_t gap = greater(done - b.width + b.pitch - 1, 0) / b.pitch * b.pitch + b.width; gap < need; gap += b.pitch)
                for (int64_t i = 0; i < s.planes; i++) scratch[i * s.plane + gap - origin] = 0;
            done = need;
        }
        if (done >= all) zero_planes(scratch, s.planes, s.plane, all - origin, to + halo + 2 * lanes - origin);
        conv3x3_wide(data, l.second, scratch - origin, s.plane, b.pitch, from, to, s.by_rows, out, b.plane);
#if CNET_V2
        // The 1x1 is ahead of these pixels.
        const int64_t until = lesser(to == end ? inner.end : round_down(to, line), inner.end);
        if (!l.excite.channels && until > updated) {
            update(data, b, l, map, nullptr, nullptr, updated, until, room);
            updated = until;
        }
#endif
        from = to;
        const int64_t next = round_down(from - halo, line), by = next - origin;
        if (from < end && by > 0) {
            for (int64_t i = 0; i < s.planes; i++) {
                float *p = scratch + i * s.plane;
                memmove(p, p + by, 4 * (size_t)(done - next));
            }
            origin = next;
        }
    }
}

// Several threads on a small map: strips of few rows would compute much twice. So the 1x1 of the whole map comes first, into a buffer
// that all share, and the 3x3 after one more meeting.
CNET_INLINE bool goes_whole(const Block &b, int shares) { return shares > 1 && b.whole > 0; }
CNET_INLINE int64_t whole_origin(const Block &b) { return -round_up(b.pitch + 1, line); }
static_assert(line + 1 + 2 * lanes <= whole_slack, "the zeros around a map end within its plane of the shared buffer");

// The pixels of a share's 1x1.
CNET_INLINE Range whole_strip(const Block &b, int share, int shares) {
    const Range strip = share_of(round_up((int64_t)b.height * b.pitch, lanes) / lanes, share, shares);
    return {strip.begin * lanes, strip.end * lanes};
}

// Zeros around the pixels of a share's 1x1, once it is done.
CNET_INLINE void whole_zeros(const Block &b, const Layer &l, float *between, int share, int shares) {
    const int64_t all = (int64_t)b.height * b.pitch, origin = whole_origin(b), planes = (int64_t)l.second.groups * l.second.inputs;
    const Range strip = whole_strip(b, share, shares), mine = share_of(planes, share, shares);
    const int64_t from = strip.begin, to = strip.end;
    for (int64_t gap = greater(from - b.width + b.pitch - 1, 0) / b.pitch * b.pitch + b.width; gap < to; gap += b.pitch)
        for (int64_t i = 0; i < planes; i++) between[i * b.whole + gap - origin] = 0;
    // Zeros above the map. Those below it are left to the last strip's share, since its 1x1 writes there too.
    zero_planes(between + mine.begin * b.whole, mine.end - mine.begin, b.whole, 0, -origin);
    if (share + 1 == shares) zero_planes(between, planes, b.whole, all - origin, all + b.pitch + 1 + 2 * lanes - origin);
}

static void whole_pointwise(const float *data, const Block &b, const Layer &l, const float *map, float *between, float *room, int share,
                            int shares) {
    const Range strip = whole_strip(b, share, shares);
    float *out = between + (strip.begin - whole_origin(b));
    first_pointwise(data, l.first, map, strip.begin, (strip.end - strip.begin) / lanes, out, b.whole, room);
    whole_zeros(b, l, between, share, shares);
}

#if CNET_V2
constexpr int64_t fused_pixels = 2 * active_pixels;  // whose planes stay in the second-level cache between an update and a 1x1

// The update of the layer before (if there is one) and the 1x1 of this one read the same pixels: in turn, a few at a time.
static void update_and_pointwise(const float *data, const Block &b, const Layer *before, const Layer &l, float *map, const float *fresh,
                                 const float *factors, float *between, float *room, int share, int shares) {
    const Range strip = whole_strip(b, share, shares);
    for (int64_t from = strip.begin; from < strip.end; from += fused_pixels) {
        const int64_t to = lesser(from + fused_pixels, strip.end);
        if (before) update(data, b, *before, map, fresh, factors, from, to, room);
        first_pointwise(data, l.first, map, from, (to - from) / lanes, between + (from - whole_origin(b)), b.whole, room);
    }
    whole_zeros(b, l, between, share, shares);
}
#endif

static void whole_conv3x3(const float *data, const Block &b, const Layer &l, float *out, const float *between, int share, int shares) {
    const Steps s = steps_of(b, l.second);
    const Range strip = strip_of(b, s, share, shares);
    if (strip.begin == strip.end) return;
    conv3x3_wide(data, l.second, between - whole_origin(b), b.whole, b.pitch, strip.begin, strip.end, s.by_rows, out, b.plane);
}

}  // namespace CNET_ISA
}  // namespace cnet
