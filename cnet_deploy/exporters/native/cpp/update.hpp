// What a layer of CondenseNet V2 does once its planes are there: excitation, and the update of the planes before them.
//
// Excitation needs the mean of whole planes. So a layer that has it leaves its planes in a buffer of their own, `fresh`; every share computes
// all means and factors from there (they are few, and so they don't depend on the number of shares), and puts the planes times their
// factors in the map.
//
// The update adds sums of the layer's planes, batch norm and activation applied, to the planes before them. A share does that in place,
// on pixels that are its alone. It computes the activated planes once for a run of pixels that stays in the nearest cache. Where a
// group has few inputs, reading and writing planes takes longest: so each changed plane has a list of terms, from all groups that write it.
// Where a group has many, it is a 1x1 whose tiles begin with what is in the planes.
#pragma once

#include "activation.hpp"
#include "constants.h"
#include "linear.hpp"
#include "plan.h"
#include "pointwise_wide.hpp"
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

// The means of `count` planes. Rows end within a vector, whose other lanes are left out.
CNET_INLINE void means_of(const Block &b, const float *planes, int count, float *means) {
    const int rows = b.pitch == b.width ? 1 : b.height;
    const int64_t run = b.pitch == b.width ? pixels_of(b) : b.width, whole = run / lanes * lanes;
    bits kept;
    for (int v = 0; v < lanes; v++) kept[v] = whole + v < run ? ~0u : 0u;
    for (int i = 0; i < count; i++) {
        const float *plane = planes + i * b.plane;
        vec sums = vec{};
        for (int y = 0; y < rows; y++) {
            const float *row = plane + (int64_t)y * b.pitch;
            for (int64_t x = 0; x < whole; x += lanes) sums = sums + load_unaligned(row + x);
            if (whole < run) sums = sums + (vec)((bits)load_unaligned(row + whole) & kept);
        }
        float sum = 0;
        for (int v = 0; v < lanes; v++) sum += sums[v];
        means[i] = sum / (float)((int64_t)b.height * b.width);
    }
}

// The factors of a layer's planes, at the beginning of `room`.
static void excitation(const float *data, const Block &b, const Excite &e, const float *fresh, float *room) {
    float *factors = room, *means = factors + linear_room(e.channels), *hidden = means + linear_room(e.channels);
    means_of(b, fresh, e.channels, means);
    linear(data + e.squeeze, means, e.channels, e.hidden, 0, 1, [&](int64_t i, vec sum) { store(hidden + i, relu(sum)); });
    linear(data + e.expand, hidden, e.hidden, e.channels, 0, 1, [&](int64_t i, vec sum) { store(factors + i, sigmoid(sum)); });
}

// ---- update ------------------------------------------------------------------------------------------------------------------------

constexpr int64_t active_floats = 1 << 12;  // of activated planes, to aim at: half of a first-level cache
constexpr int64_t active_pixels = 3 * line; // at least, and the unit of more
constexpr int terms_together = 8;           // whose weights are in registers
static_assert(active_pixels % (wide_vectors(wide_outputs) * lanes) == 0, "the largest tiles of an update fill its runs");

// Pixels that are done at a time.
CNET_INLINE int64_t update_step(const Block &b, const Update &u) {
    const int64_t all = round_up(pixels_of(b), lanes);
    return all <= 2 * active_pixels ? all : greater(active_floats / u.inputs / active_pixels, 1) * active_pixels;
}
CNET_INLINE int64_t update_floats(const Block &b, const Layer &l) {
    return excite_floats(l.excite) + round_up(l.update.inputs * update_step(b, l.update), line);
}

// Add TERMS activated planes, each times its weight, to `floats` of a plane.
template <int TERMS>
__attribute__((noinline)) void add_terms(float *x, const float *active, int64_t step, const int32_t *source, const float *weight,
                                         int64_t floats) {
    const float *from[TERMS];
    vec w[TERMS];
    CNET_UNROLL for (int i = 0; i < TERMS; i++) {
        from[i] = active + source[i] * step;
        w[i] = broadcast(weight[i]);
    }
    for (int64_t v = 0; v < floats; v += lanes) {
        vec sum = load(x + v);
        CNET_UNROLL for (int i = 0; i < TERMS; i++) sum = sum + load(from[i] + v) * w[i];
        store(x + v, sum);
    }
}

template <int TERMS = terms_together>
void add_terms_of(int64_t terms, float *x, const float *active, int64_t step, const int32_t *source, const float *weight, int64_t floats) {
    if (terms == TERMS) add_terms<TERMS>(x, active, step, source, weight, floats);
    else if constexpr (TERMS > 1) add_terms_of<TERMS - 1>(terms, x, active, step, source, weight, floats);
}

// Plane by plane, for `floats` of it.
CNET_INLINE void update_by_plane(const float *data, const Update &u, float *map, const float *active, int64_t step, int64_t floats) {
    const int32_t *target = integers(data, u.target), *first = integers(data, u.first), *source = integers(data, u.source);
    const float *weight = data + u.weight;
    for (int t = 0; t < u.targets; t++)
        for (int64_t term = first[t]; term < first[t + 1]; term += terms_together)
            add_terms_of(lesser(terms_together, first[t + 1] - term), map + target[t], active, step, source + term, weight + term, floats);
}

struct UpdateTile {
    float *map;             // the tile's first pixel in plane 0
    const int32_t *target;  // plane of each output
    const float *active;    // the tile's first pixel in the group's first input
    int64_t step;           // floats from input to input
    int inputs;
    const float *weight;    // [inputs][TILE]
};

template <int TILE, int OUT, int V>
__attribute__((noinline)) void update_tile(const UpdateTile &t) {
    vec sum[V][OUT];
    float *out[OUT];
    CNET_UNROLL for (int o = 0; o < OUT; o++) {
        out[o] = t.map + t.target[o];
        const float *next = t.map + t.target[o + OUT];
        CNET_UNROLL for (int v = 0; v < V; v++) {
            sum[v][o] = load(out[o] + lanes * v);
            __builtin_prefetch(next + lanes * v, 1);
        }
    }
    const float *in = t.active, *w = t.weight;
    for (int i = 0; i < t.inputs; i++) {
        vec x[V];
        CNET_UNROLL for (int v = 0; v < V; v++) {
            x[v] = load(in + lanes * v);
            hold(x[v]);
        }
        CNET_UNROLL for (int o = 0; o < OUT; o++) {
            vec b = broadcast(w[o]);
            CNET_UNROLL for (int v = 0; v < V; v++) sum[v][o] = sum[v][o] + x[v] * b;
        }
        in += t.step;
        w += TILE;
    }
    CNET_UNROLL for (int o = 0; o < OUT; o++)
        CNET_UNROLL for (int v = 0; v < V; v++) store(out[o] + lanes * v, sum[v][o]);
}

// `vectors` vectors of pixels, in as few tiles as possible, as even as possible.
template <int TILE, int OUT, int V>
void update_run(UpdateTile t, int64_t vectors) {
    const int64_t tiles = (vectors + V - 1) / V;
    float *map = t.map;
    const float *active = t.active;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t from = vectors * i / tiles, count = vectors * (i + 1) / tiles - from;
        t.map = map + from * lanes;
        t.active = active + from * lanes;
        auto run = [&](auto n) {
            if (count == decltype(n)::value) update_tile<TILE, OUT, decltype(n)::value>(t);
        };
        run(Constant<V>{});
        if constexpr (V > 1) run(Constant<V - 1>{});
        if constexpr (V > 2) run(Constant<V - 2>{});
    }
}

// Group by group, for `floats` pixels.
CNET_INLINE void update_by_group(const float *data, const Update &u, float *map, const float *active, int64_t step, int64_t floats) {
    const int inputs = u.inputs / u.groups, outputs = u.targets / u.groups;
    constexpr int most = wide_vectors(wide_outputs) < 3 ? wide_vectors(wide_outputs) : 3;
    UpdateTile t;
    t.map = map;
    t.step = step;
    t.inputs = inputs;
    for (int g = 0; g < u.groups; g++) {
        t.active = active + g * inputs * step;
        int done = 0;
        auto take = [&](auto of) {
            constexpr int tile = decltype(of)::value, at_once = tile < wide_outputs ? tile : wide_outputs;
            for (; outputs - done >= tile; done += tile)
                for (int o = 0; o < tile; o += at_once) {
                    const int64_t row = (int64_t)g * outputs + done;
                    t.target = integers(data, u.target) + row + o;
                    t.weight = data + u.weight + row * inputs + o;
                    update_run<tile, at_once, most>(t, floats / lanes);
                }
        };
        each(wide_tiles, take);
    }
}

template <bool SWISH>
CNET_INLINE void activate(const float *plane, float scale, float shift, float *to, int64_t floats) {
    const vec scales = broadcast(scale), shifts = broadcast(shift);
    for (int64_t v = 0; v < floats; v += lanes) store(to + v, activated<SWISH>(load(plane + v) * scales + shifts));
}

// The update for pixels [from, to) of the map, both whole vectors. Where there are `factors`, the layer's planes times them are put in the
// map first.
static void update(const float *data, const Block &b, const Layer &l, float *map, const float *fresh, const float *factors, int64_t from,
                   int64_t to, float *active) {
    const Update &u = l.update;
    const int32_t *channel = integers(data, u.channel);
    const float *scale = data + u.scale, *shift = data + u.shift;
    const int64_t all = pixels_of(b), step = update_step(b, u);
    for (int64_t at = from; at < to; at += step) {
        const int64_t floats = lesser(step, to - at);
        for (int i = 0; i < u.inputs; i++) {
            float *plane = map + (l.channels + channel[i]) * b.plane + at, *out = active + i * step;
            if (factors) {
                const float *raw = fresh + channel[i] * b.plane + at;
                const vec factor = broadcast(factors[channel[i]]);
                for (int64_t v = 0; v < floats; v += lanes) store(plane + v, load(raw + v) * factor);
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
        if (u.groups) update_by_group(data, u, map + at, active, step, floats);
        else update_by_plane(data, u, map + at, active, step, floats);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
