// The end: batch norm, ReLU and the average over the map, for the channels that the classifier keeps; then the classifier.
//
// The classifier reads each weight once and uses it once, so it runs as fast as memory delivers them: in one stream, with
// classes_together classes side by side.
#pragma once

#include "constants.h"
#include "plan.h"
#include "vectors.hpp"
#if CNET_V2
#include "activation.hpp"
#include "linear.hpp"
#endif

namespace cnet {
namespace CNET_ISA {

// Channels that are averaged.
CNET_INLINE int pooled_features(const Plan &p) {
#if CNET_V2
    return p.hidden.features;
#else
    return p.head.features;
#endif
}

static void average(const Plan &p, const Block &b, const float *map, float *features, int share, int shares) {
    const int32_t *planes = integers(p.data, p.head.planes);
    const Range range = share_of(pooled_features(p), share, shares);
    const float area = (float)((int64_t)b.height * b.width);
    for (int64_t i = range.begin; i < range.end; i++) {
        const float *plane = map + planes[i];
        const float scale = p.data[p.head.scale + i], shift = p.data[p.head.shift + i];
        const vec scales = broadcast(scale), shifts = broadcast(shift);
        // A wide map's rows have a column between them (those of a window have more), a narrow one's are one run.
        const int rows = b.pitch == b.width ? 1 : b.height;
        const int64_t run = b.pitch == b.width ? (int64_t)b.height * b.width : b.width;
        vec sums = vec{};
        float sum = 0;
        for (int y = 0; y < rows; y++) {
            const float *row = plane + (int64_t)y * b.pitch;
            int64_t x = 0;
            for (; x + lanes <= run; x += lanes) sums = sums + relu(load_unaligned(row + x) * scales + shifts);
            for (; x < run; x++) sum += relu(row[x] * scale + shift);
        }
        for (int v = 0; v < lanes; v++) sum += sums[v];
        features[i] = sum / area;
    }
}

#if CNET_V2
// What lies in the memory of the head: the features, the excitation's narrow layer, the layer before the classifier.
CNET_INLINE float *excited_of(const Plan &p, float *features) { return features + linear_room(p.hidden.features); }
CNET_INLINE float *hidden_of(const Plan &p, float *features) { return excited_of(p, features) + linear_room(p.hidden.excited); }

static void squeeze_features(const Plan &p, float *features, int share, int shares) {
    const Hidden &h = p.hidden;
    float *to = excited_of(p, features);
    linear(p.data + h.squeeze, features, h.features, h.excited, share, shares, [&](int64_t i, vec sum) { store(to + i, relu(sum)); });
}

static void excite_features(const Plan &p, float *features, int share, int shares) {
    const Hidden &h = p.hidden;
    linear(p.data + h.expand, excited_of(p, features), h.excited, h.features, share, shares,
           [&](int64_t i, vec sum) { store(features + i, load(features + i) * sigmoid(sum)); });
}

static void hidden_layer(const Plan &p, float *features, int share, int shares) {
    const Hidden &h = p.hidden;
    float *to = hidden_of(p, features);
    linear(p.data + h.weight, features, h.features, h.outputs, share, shares,
           [&](int64_t i, vec sum) { store(to + i, hard_swish(sum + load(p.data + h.bias + i))); });
}
#endif

static void classify(const Plan &p, const float *features, float *logits, int share, int shares) {
    constexpr int vectors = classes_together / lanes;
    const int n = p.head.features;
    const Range range = share_of((p.head.classes + classes_together - 1) / classes_together, share, shares);
    for (int64_t j = range.begin; j < range.end; j++) {
        const float *w = p.data + p.head.weight + j * n * classes_together;
        vec sum[vectors];
        CNET_UNROLL for (int v = 0; v < vectors; v++) sum[v] = load(p.data + p.head.bias + j * classes_together + v * lanes);
        for (int i = 0; i < n; i++, w += classes_together) {
            const vec x = broadcast(features[i]);
            CNET_UNROLL for (int v = 0; v < vectors; v++) sum[v] = sum[v] + x * load(w + v * lanes);
        }
        float *out = logits + j * classes_together;
        const int rest = (int)lesser(classes_together, p.head.classes - j * classes_together);
        for (int v = 0; v < vectors && v * lanes < rest; v++) store_first(out + v * lanes, sum[v], rest - v * lanes);
    }
}

}  // namespace CNET_ISA
}  // namespace cnet
