// The network in integers from image to logits, for one instruction set. As in ../kernels.cpp, nothing here may be visible outside.
#include "../kernels.h"

#include "bytes.hpp"
#include "conv3x3.hpp"
#include "ends.hpp"
#include "layer.hpp"
#include "pointwise.hpp"
#include "stem.hpp"

namespace cnet {
namespace CNET_ISA {

static int64_t scratch_floats(const Plan &plan) {
    int64_t most = greater(stem_scratch(plan), pool_scratch(plan));
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        for (int j = b.first_layer; j < b.last_layer; j++) {
            most = greater(most, layer_scratch(b, plan.layer[j]));
            if (b.whole) most = greater(most, whole_scratch(b, plan.layer[j]));
        }
        if (b.middle_channels) most = greater(most, columns_room(b.transition));
    }
    return round_up(most, 4 * line) / 4 + line;
}

// Do every share of one phase that this thread can get, then wait for the others.
template <class Work>
void phase(Member &m, Work work) {
    for (int share; (share = claim(m)) >= 0; finish(m)) work(share);
    meet(m);
}

template <bool WIDE>
static void layer(const Plan &plan, const Memory &memory, Member &m, const Block &b, const Layer &l, uint8_t *map, uint8_t *scratch) {
    const int shares = shares_of(*m.team);
    uint8_t *shared = (uint8_t *)memory.between;
    if (!goes_whole(b, shares)) return phase(m, [&](int share) { layer_strip<WIDE>(plan.data, b, l, map, scratch, share, shares); });
    phase(m, [&](int share) { whole_pointwise<WIDE>(plan.data, b, l, map, shared, scratch, share, shares); });
    phase(m, [&](int share) { whole_conv3x3<WIDE>(plan.data, b, l, map, shared, scratch, share, shares); });
}

// The 1x1 of a transition fills a map of its own before the pooling begins.
static void transition(const Plan &plan, const Block &b, const uint8_t *map, uint8_t *middle, uint8_t *scratch, int share, int shares) {
    const Range mine = share_of(runs_of(b), share, shares);
    for (int64_t r = mine.begin; r < mine.end; r++)
        for (int g = 0; g < b.transition.groups; g++)
            pointwise_group<false>(plan.data, b.transition, g, map + r * run, scratch,
                                   Rows{middle + r * run, 0, table(plan.data, b.transition.target)});
}

static void run_network(const Plan &plan, const Memory &memory, Member &m, const float *image, float *logits) {
    uint8_t *scratch = (uint8_t *)(memory.scratch + m.thread * memory.scratch_floats), *maps = (uint8_t *)memory.activations;
    int16_t *features = (int16_t *)(void *)memory.features;
    // After the features, a flag of each share of the stem: whether what it read is finite.
    int32_t *finite = (int32_t *)(void *)(memory.features + plan.head.features - most_shares);
    const int shares = shares_of(*m.team);
    const Block &start = plan.block[0];
    phase(m, [&](int share) { finite[share] = stem(plan, start, image, maps + start.map, scratch, share, shares); });
    if (lanes > 4) phase(m, [&](int share) { pack_planes(start, maps + start.map, plan.stem.channels, share, shares); });
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        uint8_t *map = maps + b.map;
        for (int j = b.first_layer; j < b.last_layer; j++) {
            const Layer &l = plan.layer[j];
            if (l.wide) layer<true>(plan, memory, m, b, l, map, scratch);
            else layer<false>(plan, memory, m, b, l, map, scratch);
        }
        if (i + 1 == plan.blocks) break;
        const Block &next = plan.block[i + 1];
        uint8_t *middle = maps + b.middle, *to = maps + next.map;
        if (b.middle_channels) {
            phase(m, [&](int share) { transition(plan, b, map, middle, scratch, share, shares); });
            phase(m, [&](int share) { pool(b, middle, next, to, b.middle_channels, scratch, share, shares); });
        } else {
            phase(m, [&](int share) { pool(b, map, next, to, b.channels, scratch, share, shares); });
        }
    }
    const Block &last = plan.block[plan.blocks - 1];
    phase(m, [&](int share) { average(plan, last, maps + last.map, features, scratch, share, shares); });
    phase(m, [&](int share) {
        bool all = true;
        for (int i = 0; i < shares; i++) all = all && finite[i];
        classify(plan, features, all, logits, share, shares);
    });
}

extern __attribute__((visibility("hidden"))) const Kernels kernels;
const Kernels kernels = {CNET_ISA_NAME, scratch_floats, run_network};

}  // namespace CNET_ISA
}  // namespace cnet
