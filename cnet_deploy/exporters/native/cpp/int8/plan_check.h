// What the kernels rely on in a plan beyond its types. plan.cpp asserts it of itself: a mistake of the exporter stops the build.
#pragma once

#include "constants.h"
#include "plan.h"

namespace cnet {

constexpr int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of * of; }

// ---- maps -------------------------------------------------------------------------------------------------------------------------

constexpr int64_t in_runs(const Block &b) { return whole((int64_t)b.height * (b.width + 1), run_most); }

// Pieces of the activations, in bytes.
struct Piece {
    int64_t begin, size;
};
constexpr Piece map_of(const Block &b) { return {b.map, b.channels * b.plane}; }
// With a plane for the rows that fill up the last tiles of the transition's 1x1.
constexpr Piece middle_of(const Block &b) { return {b.middle, b.middle_channels ? (b.middle_channels + 1) * b.plane : 0}; }
constexpr bool placed(const Plan &plan, Piece p) {
    return p.begin >= 0 && p.begin % cache_line == 0 && p.size <= INT32_MAX && p.begin + p.size <= 4 * plan.activations;
}
constexpr bool apart(Piece a, Piece b) { return a.begin + a.size <= b.begin || b.begin + b.size <= a.begin || !a.size || !b.size; }

// Whether every block's planes are whole runs on cache lines, and the maps that are in use together lie apart.
constexpr bool laid_out(const Plan &plan) {
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        if (b.height < 1 || b.width < 1 || b.plane % cache_line || b.plane / cache_line % 2 == 0 || b.plane < in_runs(b)) return false;
        if (!placed(plan, map_of(b)) || !placed(plan, middle_of(b)) || !apart(map_of(b), middle_of(b))) return false;
        if (i + 1 == plan.blocks) break;
        const Block &next = plan.block[i + 1];
        if (!apart(map_of(b), map_of(next)) || !apart(middle_of(b), map_of(next))) return false;
    }
    return true;
}

// Words that lie between the two convolutions of a layer, where threads share them: the most of any layer.
constexpr int64_t between_of(const Plan &plan) {
    int64_t most = 0;
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        for (int j = b.first_layer; b.whole && j < b.last_layer; j++) {
            const Layer &l = plan.layer[j];
            const int64_t bytes = in_runs(b) * ((int64_t)l.first.groups * l.first.outputs + 1) * (l.wide ? 2 : 1);
            most = bytes > most ? bytes : most;
        }
    }
    return (most + 3) / 4;
}

// ---- one after the other ----------------------------------------------------------------------------------------------------------

// Whether every layer finds the planes that those before it left, and every block half the pixels of the one before it.
constexpr bool connected(const Plan &plan) {
    int64_t channels = plan.stem.channels;
    int height = (plan.height - 1) / plan.stem.stride + 1, width = (plan.width - 1) / plan.stem.stride + 1, layer = 0;
    for (int i = 0; i < plan.blocks; i++, height /= 2, width /= 2) {
        const Block &b = plan.block[i];
        if (b.height != height || b.width != width || b.first_layer != layer || b.last_layer < layer) return false;
        for (; layer < b.last_layer; layer++) {
            const Layer &l = plan.layer[layer];
            if (l.channels != channels || l.first.outputs % row_tile || (l.wide != 0 && l.wide != 1)) return false;
            channels += (int64_t)l.second.groups * l.second.outputs;
        }
        if (b.channels != channels) return false;
        if (b.middle_channels) channels = b.middle_channels;
        if (b.middle_channels > (int64_t)b.transition.groups * b.transition.outputs || b.transition.outputs % row_tile) return false;
    }
    return true;
}

// Whether the last pooling stays within the map, and the flags after the features are where the kernels look for them.
constexpr bool pooled_within(const Plan &plan) {
    const Block &last = plan.block[plan.blocks - 1];
    if (plan.head.features != whole(plan.head.kept, 4) / 2 + most_shares || plan.head.bits < 0 || plan.head.bits > extra_bits) return false;
    return plan.window >= 0 && plan.window <= last.height && plan.window <= last.width;
}

// ---- tables -----------------------------------------------------------------------------------------------------------------------

// Tables lie in `data` in the order in which int8.py lists them, each on a cache line of its own. Each of these takes the place that a
// structure's tables must begin at, and returns where they end; -1: one lies elsewhere, or another is as large as it should be.
constexpr Words after(Words at, Words table, int64_t words) { return at == table ? at + whole(words, cache_line / 4) : -1; }

constexpr Words after(Words at, const Requantization &r, int64_t rows) { return after(at, r.rows, 3 * rows); }

constexpr Words after(Words at, const Pointwise &p, int values, bool to_map) {
    const int64_t inputs = (int64_t)p.groups * p.words * values, outputs = (int64_t)p.groups * p.outputs;
    if (to_map) at = after(at, p.target, outputs);
    else if (p.target) return -1;
    at = after(at, p.planes, inputs);
    at = after(at, p.thresholds, 2 * inputs);
    at = after(at, p.weight, outputs * p.words);
    at = after(at, p.bias, outputs);
    at = after(at, p.offset, outputs);
    return after(at, p.requantization, outputs);
}

constexpr Words after(Words at, const Conv3x3 &c, int values) {
    const int64_t outputs = (int64_t)c.groups * c.outputs;
    at = after(at, c.sources, (int64_t)c.groups * c.words * values);
    at = after(at, c.weight, outputs * c.words * 9);
    at = after(at, c.offset, outputs);
    return after(at, c.requantization, outputs);
}

constexpr Words after(Words at, const Stem &s) {
    constexpr int taps = 3 * CNET_CHANNELS;
    const int64_t outputs = whole(s.channels, row_tile);
    at = after(at, s.weight, outputs * (taps + (taps + 1) / 2));
    at = after(at, s.bias, outputs);
    return after(at, s.requantization, outputs);
}

constexpr Words after(Words at, const Head &h) {
    at = after(at, h.planes, h.kept);
    at = after(at, h.thresholds, 2 * (int64_t)h.kept);
    at = after(at, h.weight, whole(h.classes, classes_at_once) * (whole(h.kept, 4) / 4));
    at = after(at, h.scale, h.classes);
    return after(at, h.bias, h.classes);
}

// Where the last table ends, if each is where it must be and as large; else -1.
constexpr Words tables_end(const Plan &plan) {
    Words at = after(0, plan.stem);
    for (int i = 0; i < plan.blocks; i++) {
        const Block &b = plan.block[i];
        for (int j = b.first_layer; j < b.last_layer; j++) {
            const int values = plan.layer[j].wide ? 2 : 4;
            at = after(at, plan.layer[j].second, values);
            at = after(at, plan.layer[j].first, values, false);
        }
        if (b.middle_channels) at = after(at, b.transition, 4, true);
    }
    return after(at, plan.head);
}

}  // namespace cnet
