// What the kernels rely on in a plan beyond its types. plan.cpp asserts it of itself: a mistake of the exporter stops the build.
#pragma once

#include "constants.h"
#include "plan.h"

namespace cnet {

constexpr bool laid_out(const Plan &plan, const Block &b) {
    const bool wide = b.layout == Layout::wide;
    const int64_t pixels = (int64_t)b.height * b.pitch, lines = (pixels + line - 1) / line;
    if (b.pitch != b.width + (wide ? 1 : 0) || (!wide && b.width < row_least)) return false;
    if (b.plane % line || b.plane / line % 2 == 0 || b.plane < lines * line + plane_slack || b.channels * b.plane > INT32_MAX) return false;
    if (b.map % line || b.map + b.channels * b.plane + map_slack > plan.activations) return false;
    if (b.middle % line || b.middle + b.middle_channels * b.plane + map_slack > plan.activations) return false;
    return b.whole == 0 || (wide && b.whole % line == 0 && b.whole >= pixels + 2 * b.pitch + whole_slack);
}

// Whether every block's maps lie where vectors reach them, with the room that constants.h promises.
constexpr bool laid_out(const Plan &plan) {
    for (int i = 0; i < plan.blocks; i++)
        if (!laid_out(plan, plan.block[i])) return false;
    return true;
}

// Whether the last pooling stays within the map.
constexpr bool pooled_within(const Plan &plan) {
#if CNET_WINDOWED
    const Block &last = plan.block[plan.blocks - 1];
    return plan.window >= 0 && plan.window <= last.height && plan.window <= last.width;
#else
    return plan.blocks > 0;
#endif
}

#if CNET_V2
constexpr bool updates(const Plan &plan, const Block &b, const Layer &l) {
    const int inputs = l.second.groups * l.second.outputs;
    if (l.update.inputs != inputs || l.update.targets < 0 || l.update.targets > l.channels || l.update.groups < 0) return false;
    if (l.update.groups && (inputs % l.update.groups || l.update.targets % l.update.groups)) return false;
    if (l.first.swish != l.update.swish || l.first.swish < 0 || l.first.swish > 1) return false;
    if (l.excite.channels == 0) return l.excite.hidden == 0;
    if (l.excite.channels != inputs || l.excite.hidden < 1 || plan.fresh % line) return false;
    // The planes of an excited layer lie beside the map that they will be put in.
    return plan.fresh >= b.map + b.channels * b.plane && plan.fresh + inputs * b.plane + map_slack <= plan.activations;
}

// Whether every layer of a CondenseNet V2 updates the planes before it with those that it makes, and the head reads all planes.
constexpr bool updates(const Plan &plan) {
    for (int i = 0; i < plan.blocks; i++)
        for (int j = plan.block[i].first_layer; j < plan.block[i].last_layer; j++)
            if (!updates(plan, plan.block[i], plan.layer[j])) return false;
    return plan.hidden.features == plan.block[plan.blocks - 1].channels && plan.hidden.excited > 0 && plan.hidden.outputs == plan.head.features;
}
#endif

// Words that lie between the two convolutions of a layer, where threads share them.
constexpr int64_t between_of(const Block &b, const Layer &l, int per_word) {
    if (b.layout == Layout::wide) return ((int64_t)l.second.groups * l.second.inputs + 1) * b.whole;
    return (int64_t)l.first.groups * l.first.outputs / chunk * ((int64_t)b.height * b.width + chunk_slack) * (chunk / per_word);
}

// The most of any layer.
constexpr int64_t between_of(const Plan &plan, int per_word) {
    int64_t most = 0;
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        for (int j = b.first_layer; j < b.last_layer; j++) {
            const int64_t words = between_of(b, plan.layer[j], per_word);
            most = words > most ? words : most;
        }
    }
    return most;
}

}  // namespace cnet
