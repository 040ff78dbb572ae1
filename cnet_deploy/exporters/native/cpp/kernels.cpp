// The network from image to logits, for one instruction set: CNET_ISA names its namespace, the compiler's flags say what it has.
//
// Nothing here may be visible outside or shared between two of these files: a linker that merged one template compiled for AVX-512 with
// its twin for the baseline would break the machines that the baseline is for. So all is in the namespace, and no header of the
// standard library that defines functions is included.
#include "kernels.h"

#include "conv3x3_narrow.hpp"
#include "conv3x3_wide.hpp"
#include "head.hpp"
#include "layer_wide.hpp"
#include "pointwise_narrow.hpp"
#include "pointwise_wide.hpp"
#include "pool.hpp"
#include "stem.hpp"
#if CNET_V2
#include "update.hpp"
#endif

namespace cnet {
namespace CNET_ISA {

static int64_t scratch_floats(const Plan &plan) {
    int64_t most = stem_scratch(plan, plan.block[0]);
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        for (int j = b.first_layer; j < b.last_layer; j++) {
            const Layer &l = plan.layer[j];
            most = greater(most, b.layout == Layout::wide ? wide_scratch(b, l.second) : narrow_scratch(b, l.first));
#if CNET_V2
            const int64_t room = swish_floats(l.first) + update_floats(b, l);
            most = greater(most, b.layout == Layout::wide ? wide_scratch(b, l.second) + room : room);
#endif
        }
    }
    return round_up(most, line) + line;
}

// Do every share of one phase that this thread can get, then wait for the others.
template <class Work>
void phase(Member &m, Work work) {
    for (int share; (share = claim(m)) >= 0; finish(m)) work(share);
    meet(m);
}

// The 1x1 of a transition fills a map of its own, without a ReLU, before the pooling begins.
static void transition_pointwise(const Plan &plan, const Block &b, const float *map, float *middle, int share, int shares) {
    const Range range = share_of(((int64_t)b.height * b.pitch + lanes - 1) / lanes, share, shares);
    pointwise_wide<false>(plan.data, b.transition, map, range.begin * lanes, range.end - range.begin, -__builtin_inff(),
                          middle + range.begin * lanes, b.plane);
}

#if CNET_V2
// The layers of a block, each of which updates the planes before it. A layer that follows begins when that is done: where its 1x1 needs the
// same pixels only, in the same phase.
static void dense_layers(const Plan &plan, const Memory &memory, Member &m, const Block &b, float *map, float *scratch, int shares) {
    const float *fresh = memory.activations + plan.fresh, *data = plan.data;
    // Every share computes all factors.
    auto factors_of = [&](const Layer &l) -> const float * {
        if (!l.excite.channels) return nullptr;
        excitation(data, b, l.excite, fresh, scratch);
        return scratch;
    };
    auto update_share = [&](const Layer &l, int share) {
        const Range strip = share_of((pixels_of(b) + lanes - 1) / lanes, share, shares);
        const float *factors = factors_of(l);
        update(data, b, l, map, fresh, factors, strip.begin * lanes, strip.end * lanes, scratch + excite_floats(l.excite));
    };
    const bool excited = b.first_layer < b.last_layer && plan.layer[b.first_layer].excite.channels;
    const bool wide = b.layout == Layout::wide, whole = wide && b.whole && (shares > 1 || excited);
    for (int j = b.first_layer; j < b.last_layer; j++) {
        const Layer &l = plan.layer[j];
        float *out = planes_of(plan, b, l, memory.activations);
        if (whole) {
            phase(m, [&](int share) {
                const Layer *before = j > b.first_layer ? &l - 1 : nullptr;
                const float *factors = before ? factors_of(*before) : nullptr;
                float *room = scratch + (before ? excite_floats(before->excite) : 0);
                update_and_pointwise(data, b, before, l, map, fresh, factors, memory.between, room, share, shares);
            });
            phase(m, [&](int share) { whole_conv3x3(data, b, l, out, memory.between, share, shares); });
            if (j + 1 == b.last_layer) phase(m, [&](int share) { update_share(l, share); });
        } else if (wide) {
            phase(m, [&](int share) { layer_wide(data, b, l, map, out, scratch, share, shares); });
            if (l.excite.channels) phase(m, [&](int share) { update_share(l, share); });
            else if (shares > 1) phase(m, [&](int share) { update_seam(data, b, l, map, scratch, share, shares); });
        } else {
            phase(m, [&](int share) { pointwise_narrow(data, b, l.first, map, scratch, memory.between, share, shares); });
            phase(m, [&](int share) { conv3x3_narrow(data, b, l.second, memory.between, out, share, shares); });
            phase(m, [&](int share) { update_share(l, share); });
        }
    }
}
#endif

static void run(const Plan &plan, const Memory &memory, Member &m, const float *image, float *logits) {
    float *scratch = memory.scratch + m.thread * memory.scratch_floats;
    const int shares = shares_of(*m.team);
    phase(m, [&](int share) { stem(plan, plan.block[0], image, memory.activations + plan.block[0].map, scratch, share, shares); });
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        float *map = memory.activations + b.map;
#if CNET_V2
        dense_layers(plan, memory, m, b, map, scratch, shares);
#else
        for (int j = b.first_layer; j < b.last_layer; j++) {
            const Layer &l = plan.layer[j];
            float *out = map + l.channels * b.plane;
            if (b.layout == Layout::wide && goes_whole(b, shares)) {
                phase(m, [&](int share) { whole_pointwise(plan.data, b, l, map, memory.between, scratch, share, shares); });
                phase(m, [&](int share) { whole_conv3x3(plan.data, b, l, out, memory.between, share, shares); });
            } else if (b.layout == Layout::wide) {
                phase(m, [&](int share) { layer_wide(plan.data, b, l, map, out, scratch, share, shares); });
            } else {
                phase(m, [&](int share) { pointwise_narrow(plan.data, b, l.first, map, scratch, memory.between, share, shares); });
                phase(m, [&](int share) { conv3x3_narrow(plan.data, b, l.second, memory.between, out, share, shares); });
            }
        }
#endif
        if (i + 1 < plan.blocks) {
            const Block &next = plan.block[i + 1];
            float *middle = memory.activations + b.middle, *to = memory.activations + next.map;
            if (b.middle_channels) {
                phase(m, [&](int share) { transition_pointwise(plan, b, map, middle, share, shares); });
                phase(m, [&](int share) { pool(b, middle, next, to, b.middle_channels, share, shares); });
            } else {
                phase(m, [&](int share) { pool(b, map, next, to, b.channels, share, shares); });
            }
        }
    }
#if CNET_WINDOWED
    Block last = plan.block[plan.blocks - 1];
    if (plan.window) last.height = last.width = plan.window;  // what is averaged, as if it were the whole map
#else
    const Block &last = plan.block[plan.blocks - 1];
#endif
    phase(m, [&](int share) { average(plan, last, memory.activations + last.map, memory.features, share, shares); });
#if CNET_V2
    phase(m, [&](int share) { squeeze_features(plan, memory.features, share, shares); });
    phase(m, [&](int share) { excite_features(plan, memory.features, share, shares); });
    phase(m, [&](int share) { hidden_layer(plan, memory.features, share, shares); });
    phase(m, [&](int share) { classify(plan, hidden_of(plan, memory.features), logits, share, shares); });
#else
    phase(m, [&](int share) { classify(plan, memory.features, logits, share, shares); });
#endif
}

extern __attribute__((visibility("hidden"))) const Kernels kernels;
const Kernels kernels = {CNET_ISA_NAME, scratch_floats, run};

}  // namespace CNET_ISA
}  // namespace cnet
