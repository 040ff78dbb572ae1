// Numbers that int8.py and these kernels must agree on; every generated plan.cpp asserts that they are equal.
#pragma once

#include "../constants.h"

namespace cnet {

constexpr int row_tile = 4;          // outputs of a 1x1 that are computed together
constexpr int run_most = 64;         // pixels of the longest run: planes are whole runs
constexpr int classes_at_once = 16;  // classes whose weights stand side by side
constexpr int most_shares = 32;      // flags after the features
constexpr int extra_bits = 4;        // of the fraction that a layer in int16 adds to bytes
constexpr int pool_bits = 7;         // of the fraction of a threshold before the last pooling
constexpr int cache_line = 64;       // bytes

constexpr Tiles<4, 2, 1> conv_tiles{};  // outputs of a group of a 3x3, as in ../constants.h

}  // namespace cnet
