// Numbers that the exporter and the kernels must agree on. constants.py has the same names and values, and every generated plan.cpp
// asserts that they are equal. Here are only constants: this file is compiled for each instruction set, and none may share code with
// another.
#pragma once

namespace cnet {

// Sizes of tiles of outputs. A group's outputs are cut into tiles in this order, as many of each size as fit; weights are stored so.
template <int... SIZES> struct Tiles {};
template <int... A, int... B> constexpr bool operator==(Tiles<A...>, Tiles<B...>) { return false; }
template <int... A> constexpr bool operator==(Tiles<A...>, Tiles<A...>) { return true; }

constexpr Tiles<8, 4, 2, 1> wide_tiles{};      // wide maps: 1x1, 3x3 and the first convolution
constexpr Tiles<8, 4, 2> wide_tiles_paired{};  // wide maps: a 1x1 whose outputs are stored in pairs (bf16)
constexpr Tiles<32, 16> narrow_tiles{};        // narrow maps: 1x1
constexpr Tiles<32, 16, 8> row_tiles{};        // narrow maps: 3x3
constexpr Tiles<64, 16> linear_tiles{};        // matrices of excitation and of the layer before the classifier (V2)

constexpr int line = 16;              // words in a cache line, 64 bytes: tables and planes begin on one
constexpr int chunk = 16;             // channels that stand side by side in the buffer between the convolutions of a narrow layer
constexpr int classes_together = 64;  // classes whose weights stand side by side
constexpr int row_least = 4;          // pixels in a row of a narrow map, at least: the 3x3 has no smaller tile

// Room after the last pixel, so that vectors need not stop exactly there.
constexpr int plane_slack = line;      // floats, of every plane: the last vector of a map may be written beyond its last row
constexpr int map_slack = 4 * line;    // floats, after the last plane of a map: vectors may be read there
constexpr int whole_slack = 8 * line;  // floats, of a plane of a wide layer's shared buffer, besides one row above the map and one below
constexpr int chunk_slack = 16;        // pixels, of a chunk: the last tile of a map may be written beyond its last pixel

}  // namespace cnet
