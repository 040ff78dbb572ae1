// What CondenseNet V2 has beside the ReLU: hard swish and the sigmoid. NaN stays NaN in both.
#pragma once

#include "vectors.hpp"

namespace cnet {
namespace CNET_ISA {

// x * min(max(x + 3, 0), 6) / 6
CNET_INLINE vec hard_swish(vec x) {
    const vec gate = x * broadcast(1.0f / 6) + broadcast(0.5f);
    return x * minimum(broadcast(1.0f), maximum(vec{}, gate));
}

template <bool SWISH> CNET_INLINE vec activated(vec x) { return SWISH ? hard_swish(x) : relu(x); }

// e to the x, for x from -87 to 88 (others are brought there): 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Errors are below 2e-7 of it.
CNET_INLINE vec exponential(vec x) {
    x = minimum(broadcast(88.0f), maximum(broadcast(-87.0f), x));
    const vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: a sum with it has the nearest whole number in its lowest bits
    const vec moved = x * broadcast(1.44269504f) + magic, n = moved - magic;
    const vec r = x - n * broadcast(0.693145752f) - n * broadcast(1.42860677e-6f);
    vec p = r * broadcast(1.0f / 720) + broadcast(1.0f / 120);
    p = p * r + broadcast(1.0f / 24);
    p = p * r + broadcast(1.0f / 6);
    p = p * r + broadcast(0.5f);
    p = p * r + broadcast(1.0f);
    p = p * r + broadcast(1.0f);
    return p * (vec)(((bits)moved << 23) + (127u << 23));
}

CNET_INLINE vec sigmoid(vec x) { return broadcast(1.0f) / (broadcast(1.0f) + exponential(-x)); }

}  // namespace CNET_ISA
}  // namespace cnet
