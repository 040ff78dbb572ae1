// Numbers that int8.py and these kernels must agree on; every generated plan.cpp asserts that they are equal.
#pragma once

namespace cnet {

constexpr int row_tile = 4;          // outputs of a 1x1 that are computed together
constexpr int run_most = 64;         // pixels of the longest run: planes are whole runs
constexpr int classes_at_once = 16;  // classes whose weights stand side by side
constexpr int most_shares = 32;      // flags after the features

}  // namespace cnet
