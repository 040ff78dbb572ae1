// Average of 2x2 pixels between two blocks: rows are added as vectors, then neighbours, which two shuffles bring side by side.
//
// An odd last row or column is dropped. The last vector of a row may spill into what the next row overwrites, or into the plane's end.
#pragma once

#include "constants.h"
#include "plan.h"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

static_assert(lanes <= plane_slack && 2 * lanes <= map_slack, "room after planes and maps holds the last vectors");

// One share of the planes. `from` has the pitch and planes of block `a`; `to` is the map of block `b`.
static void pool(const Block &a, const float *from, const Block &b, float *to, int channels, int share, int shares) {
    const vec quarter = broadcast(0.25f);
    const Range planes = share_of(channels, share, shares);
    for (int64_t c = planes.begin; c < planes.end; c++) {
        for (int y = 0; y < b.height; y++) {
            const float *p = from + c * a.plane + (int64_t)2 * y * a.pitch, *q = p + a.pitch;
            float *out = to + c * b.plane + (int64_t)y * b.pitch;
            for (int x = 0; x < b.width; x += lanes) {
                const vec u = load_unaligned(p + 2 * x) + load_unaligned(q + 2 * x);
                const vec v = load_unaligned(p + 2 * x + lanes) + load_unaligned(q + 2 * x + lanes);
                store_unaligned(out + x, (even(u, v) + odd(u, v)) * quarter);
            }
        }
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
