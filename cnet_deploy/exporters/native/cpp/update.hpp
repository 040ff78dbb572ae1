// What a layer of CondenseNet V2 does once its planes are there: excitation, and the update of the planes before them.
//
// Excitation needs the mean of whole planes. So a layer that has it leaves its planes in a buffer of their own, `fresh`; every share computes
// all means and factors from there (they are few, and so they don't depend on the number of shares), and puts the planes times their
// factors in the map.
//
// The update adds a sum of the layer's planes, batch norm and activation applied, to each plane that it changes. A share does that
// in place, on pixels or planes that are its alone. It computes the activated planes once for a run of pixels that stays in the nearest
// cache. For each changed plane there is a list of terms, so that it is read and written as few times as there are dozens of them.
#pragma once

#include "activation.hpp"
#include "constants.h"
#include "linear.hpp"
#include "plan.h"
#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

CNET_INLINE int64_t pixels_of(const Block &b) { return (int64_t)b.height * b.pitch; }

// Where a layer's 3x3 puts its planes.
CNET_INLINE float *planes_of(const Plan &plan, const Block &b, const Layer &l, float *activations) {
    return activations + (l.excite.channels ? plan.fresh : b.map + l.channels * b.plane);
}

// ---- excitation --------------------------------------------------------------------------------------------------------------------

CNET_INLINE int64_t excite_floats(const Excite &e) { return 2 * linear_room(e.channels) + linear_room(e.hidden); }

CNET_INLINE float mean_of(const Block &b, const float *plane) {
    const int rows = b.pitch == b.width ? 1 : b.height;
    const int64_t run = b.pitch == b.width ? pixels_of(b) : b.width;
    vec sums = vec{};
    float sum = 0;
    for (int y = 0; y < rows; y++) {
        const float *row = plane + (int64_t)y * b.pitch;
        int64_t x = 0;
        for (; x + lanes <= run; x += lanes) sums = sums + load_unaligned(row + x);
        for (; x < run; x++) sum += row[x];
    }
    for (int v = 0; v < lanes; v++) sum += sums[v];
    return sum / (float)((int64_t)b.height * b.width);
}

// The factors of a layer's planes, at the beginning of `room`.
static void excitation(const float *data, const Block &b, const Excite &e, const float *fresh, float *room) {
    float *factors = room, *means = factors + linear_room(e.channels), *hidden = means + linear_room(e.channels);
    for (int i = 0; i < e.channels; i++) means[i] = mean_of(b, fresh + i * b.plane);
    linear(data + e.squeeze, means, e.channels, e.hidden, 0, 1, [&](int64_t i, vec sum) { store(hidden + i, relu(sum)); });
    linear(data + e.expand, hidden, e.hidden, e.channels, 0, 1, [&](int64_t i, vec sum) { store(factors + i, sigmoid(sum)); });
}

// ---- update ------------------------------------------------------------------------------------------------------------------------

constexpr int64_t active_floats = 1 << 12;  // of activated planes, to aim at: half of a first-level cache
constexpr int terms_together = 8;           // whose weights are in registers

// Pixels that are done at a time.
CNET_INLINE int64_t update_step(const Block &b, const Update &u) {
    return lesser(round_up(pixels_of(b), lanes), greater(active_floats / u.inputs / (4 * line) * (4 * line), 4 * line));
}
CNET_INLINE int64_t update_floats(const Block &b, const Layer &l) {
    return excite_floats(l.excite) + round_up(l.update.inputs * update_step(b, l.update), line);
}

// Add TERMS activated planes, each times its weight, to `count` vectors of a plane.
template <int TERMS>
__attribute__((noinline)) void add_terms(float *x, const float *active, int64_t step, const int32_t *source, const float *weight, int64_t count) {
    const float *from[TERMS];
    vec w[TERMS];
    CNET_UNROLL for (int i = 0; i < TERMS; i++) {
        from[i] = active + source[i] * step;
        w[i] = broadcast(weight[i]);
    }
    for (int64_t v = 0; v < count * lanes; v += lanes) {
        vec sum = load(x + v);
        CNET_UNROLL for (int i = 0; i < TERMS; i++) sum = sum + load(from[i] + v) * w[i];
        store(x + v, sum);
    }
}

template <int TERMS = terms_together>
void add_terms_of(int64_t terms, float *x, const float *active, int64_t step, const int32_t *source, const float *weight, int64_t count) {
    if (terms == TERMS) add_terms<TERMS>(x, active, step, source, weight, count);
    else if constexpr (TERMS > 1) add_terms_of<TERMS - 1>(terms, x, active, step, source, weight, count);
}

// Activate pixels [from, from + floats) of one input: whole vectors.
template <bool SWISH>
CNET_INLINE void activate(const float *plane, float scale, float shift, float *to, int64_t floats) {
    const vec scales = broadcast(scale), shifts = broadcast(shift);
    for (int64_t v = 0; v < floats; v += lanes) store(to + v, activated<SWISH>(load(plane + v) * scales + shifts));
}

// The update for pixels [from, to) of the map, both whole vectors: of the changed planes in `targets`, counted as in the plan. `excited` are
// those of the layer's planes, counted as its inputs, that are put in the map.
static void update(const float *data, const Block &b, const Layer &l, float *map, const float *fresh, int64_t from, int64_t to,
                   Range targets, Range excited, float *room) {
    const Update &u = l.update;
    const int32_t *channel = integers(data, u.channel), *target = integers(data, u.target), *first = integers(data, u.first);
    const int32_t *source = integers(data, u.source);
    const float *scale = data + u.scale, *shift = data + u.shift, *weight = data + u.weight;
    const int64_t all = pixels_of(b), step = update_step(b, u);
    float *planes = map + l.channels * b.plane, *active = room;
    const float *factors = nullptr;
    if (l.excite.channels) {
        factors = room;
        active += excite_floats(l.excite);
        excitation(data, b, l.excite, fresh, room);
    }
    for (int64_t at = from; at < to; at += step) {
        const int64_t floats = lesser(step, to - at);
        for (int i = 0; i < u.inputs; i++) {
            const float *plane = planes + channel[i] * b.plane + at;
            float *out = active + i * step;
            if (factors) {
                const float *raw = fresh + channel[i] * b.plane + at;
                const vec factor = broadcast(factors[channel[i]]);
                const bool mine = i >= excited.begin && i < excited.end;
                float *scaled = mine ? planes + channel[i] * b.plane + at : out;
                for (int64_t v = 0; v < floats; v += lanes) store(scaled + v, load(raw + v) * factor);
                plane = scaled;
            }
            if (u.swish) activate<true>(plane, scale[i], shift[i], out, floats);
            else activate<false>(plane, scale[i], shift[i], out, floats);
        }
        // Nothing is added beside the map: what lies there would grow with every image.
        auto clear = [&](int64_t begin, int64_t end) {
            for (int i = 0; i < u.inputs; i++)
                for (int64_t p = begin; p < end; p++) active[i * step + p - at] = 0;
        };
        if (b.pitch > b.width)
            for (int64_t gap = greater(at - b.width + b.pitch - 1, 0) / b.pitch * b.pitch + b.width; gap < at + floats; gap += b.pitch)
                clear(gap, gap + 1);
        if (at + floats > all) clear(greater(at, all), at + floats);
        for (int64_t t = targets.begin; t < targets.end; t++) {
            float *x = map + target[t] + at;
            for (int64_t term = first[t]; term < first[t + 1]; term += terms_together)
                add_terms_of(lesser(terms_together, first[t + 1] - term), x, active, step, source + term, weight + term, floats / lanes);
        }
    }
}

// One share of the pixels.
CNET_INLINE void update_pixels(const float *data, const Block &b, const Layer &l, float *map, const float *fresh, int64_t from, int64_t to,
                               float *room) {
    if (from < to) update(data, b, l, map, fresh, from, to, {0, l.update.targets}, {0, l.update.inputs}, room);
}

}  // namespace CNET_ISA
}  // namespace cnet
