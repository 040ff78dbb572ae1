// Vectors: the few operations that every kernel is written in, once for each instruction set.
//
// The compiler's vector extensions give arithmetic; what they lack or turn into poor code (a maximum that keeps NaN, products of bf16
// pairs, de-interleaving) is an intrinsic here and nowhere else.
//
// `hold` pins a value into a register. Without it GCC folds one unaligned load into the memory operand of every multiply-add that uses
// it, and a load that crosses a cache line costs two: half the speed of the 3x3.
#pragma once

#include <stdint.h>
#include <string.h>

#include "constants.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define CNET_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define CNET_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CNET_UNROLL _Pragma("GCC unroll 64")
#endif

namespace cnet {
namespace CNET_ISA {

#if defined(__AVX512F__)
constexpr int lanes = 16, registers = 32;
#elif defined(__AVX2__)
constexpr int lanes = 8, registers = 16;
#elif defined(__aarch64__)
constexpr int lanes = 4, registers = 32;
#else
constexpr int lanes = 4, registers = 16;
#endif
static_assert(line % lanes == 0 && chunk % lanes == 0 && classes_together % lanes == 0, "planes, chunks and classes are whole vectors");

// In bf16 a word holds the values of two channels and a multiply-add takes both; sums, maps and biases stay fp32.
#if CNET_BF16
constexpr bool paired = true;
#else
constexpr bool paired = false;
#endif
constexpr int per_word = paired ? 2 : 1;

typedef float vec __attribute__((vector_size(4 * lanes), may_alias));
typedef float vec_unaligned __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * lanes), may_alias));
typedef int32_t shuffle_index __attribute__((vector_size(4 * lanes)));

CNET_INLINE vec load(const float *p) { return *(const vec *)p; }
CNET_INLINE vec load_unaligned(const float *p) { return (vec) * (const vec_unaligned *)p; }
CNET_INLINE void store(float *p, vec v) { *(vec *)p = v; }
CNET_INLINE void store_unaligned(float *p, vec v) { *(vec_unaligned *)p = (vec_unaligned)v; }
CNET_INLINE void store_first(float *p, vec v, int count) {
    if (count >= lanes) store_unaligned(p, v);
    else memcpy(p, &v, 4 * (size_t)count);
}

#if defined(__AVX512F__)
CNET_INLINE vec broadcast(float x) { return (vec)_mm512_set1_ps(x); }
// The second operand is what an x86 maximum returns when one is NaN.
CNET_INLINE vec maximum(vec bound, vec x) { return (vec)_mm512_max_ps((__m512)bound, (__m512)x); }
CNET_INLINE vec minimum(vec bound, vec x) { return (vec)_mm512_min_ps((__m512)bound, (__m512)x); }
#elif defined(__AVX2__)
CNET_INLINE vec broadcast(float x) { return (vec)_mm256_set1_ps(x); }
CNET_INLINE vec maximum(vec bound, vec x) { return (vec)_mm256_max_ps((__m256)bound, (__m256)x); }
CNET_INLINE vec minimum(vec bound, vec x) { return (vec)_mm256_min_ps((__m256)bound, (__m256)x); }
#elif defined(__SSE2__)
CNET_INLINE vec broadcast(float x) { return (vec)_mm_set1_ps(x); }
CNET_INLINE vec maximum(vec bound, vec x) { return (vec)_mm_max_ps((__m128)bound, (__m128)x); }
CNET_INLINE vec minimum(vec bound, vec x) { return (vec)_mm_min_ps((__m128)bound, (__m128)x); }
#elif defined(__aarch64__)
CNET_INLINE vec broadcast(float x) { return (vec)vdupq_n_f32(x); }
CNET_INLINE vec maximum(vec bound, vec x) { return (vec)vmaxq_f32((float32x4_t)bound, (float32x4_t)x); }
CNET_INLINE vec minimum(vec bound, vec x) { return (vec)vminq_f32((float32x4_t)bound, (float32x4_t)x); }
#else
CNET_INLINE vec broadcast(float x) { return (vec){x, x, x, x}; }
CNET_INLINE vec maximum(vec bound, vec x) { return bound > x ? bound : x; }
CNET_INLINE vec minimum(vec bound, vec x) { return bound < x ? bound : x; }
#endif
CNET_INLINE vec relu(vec x) { return maximum(vec{}, x); }
CNET_INLINE float relu(float x) { return 0 > x ? 0 : x; }

// Half a vector, where groups of eight outputs would leave half of a whole one idle. Elsewhere the same as a whole one.
#if defined(__AVX512F__)
constexpr int half_lanes = 8;
typedef float half __attribute__((vector_size(32), may_alias));
typedef float half_unaligned __attribute__((vector_size(32), aligned(4), may_alias));
CNET_INLINE half load_half(const float *p) { return (half) * (const half_unaligned *)p; }
CNET_INLINE half broadcast_half(float x) { return (half)_mm256_set1_ps(x); }
#else
constexpr int half_lanes = lanes;
typedef vec half;
CNET_INLINE half load_half(const float *p) { return load_unaligned(p); }
CNET_INLINE half broadcast_half(float x) { return broadcast(x); }
#endif

// A template can choose between the two by type.
template <class V> struct kind_of;
template <> struct kind_of<vec> {
    using type = vec;
    static constexpr int size = lanes;
    CNET_INLINE vec get(const float *p) { return load_unaligned(p); }
    CNET_INLINE vec fill(float x) { return broadcast(x); }
};
#if defined(__AVX512F__)
template <> struct kind_of<half> {
    using type = half;
    static constexpr int size = half_lanes;
    CNET_INLINE half get(const float *p) { return load_half(p); }
    CNET_INLINE half fill(float x) { return broadcast_half(x); }
};
#endif

// The vector for a tile of so many outputs: half of one where a whole one is too long.
template <int TILE, bool WHOLE = TILE >= lanes> struct vector_for { using type = vec; };
template <int TILE> struct vector_for<TILE, false> { using type = half; };

template <class V> CNET_INLINE void hold(V &v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#else
    (void)v;
#endif
}

// Hide where a pointer comes from: else every weight is hoisted out of the loop, and spilled.
template <class T> CNET_INLINE void forget(T *&p) { asm volatile("" : "+r"(p)); }

// ---- bf16 -----------------------------------------------------------------------------------------------------------------------

// fp32 -> bf16 in the upper half, to nearest even; NaN stays NaN.
CNET_INLINE bits rounded(vec x) {
    bits u = (bits)x;
    bits up = u + 0x7fffu + ((u >> 16) & 1u);
    return (x != x) ? (u | 0x400000u) : up;
}

#if CNET_BF16 && defined(__AVX512BF16__)
CNET_INLINE vec multiply_add(vec sum, vec a, vec b) { return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); }
CNET_INLINE half multiply_add(half sum, half a, half b) { return (half)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b); }
// Channels `low` and `high` of one pixel into one word.
CNET_INLINE vec pair(vec low, vec high) {
    alignas(64) static const int16_t interleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (vec)_mm512_permutexvar_epi16(*(const __m512i *)interleave, both);
}
// Neighbouring lanes are neighbouring channels.
CNET_INLINE void store_pairs(float *p, vec v) {
    __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &narrow, sizeof narrow);
}
#elif CNET_BF16
template <class V> CNET_INLINE V multiply_add(V sum, V a, V b) {
    typedef uint32_t words __attribute__((vector_size(sizeof(V))));
    V low_a = (V)((words)a << 16), low_b = (V)((words)b << 16);
    V high_a = (V)((words)a & 0xffff0000u), high_b = (V)((words)b & 0xffff0000u);
    return sum + low_a * low_b + high_a * high_b;
}
CNET_INLINE vec pair(vec low, vec high) { return (vec)((rounded(low) >> 16) | (rounded(high) & 0xffff0000u)); }
CNET_INLINE void store_pairs(float *p, vec v) {
    bits r = rounded(v);
    uint32_t words[lanes / 2];
    for (int i = 0; i < lanes / 2; i++) words[i] = r[2 * i] >> 16 | (r[2 * i + 1] & 0xffff0000u);
    memcpy(p, words, sizeof words);
}
#else
template <class V> CNET_INLINE V multiply_add(V sum, V a, V b) { return sum + a * b; }
CNET_INLINE vec pair(vec low, vec) { return low; }
CNET_INLINE void store_pairs(float *p, vec v) { store_unaligned(p, v); }
#endif

// ---- neighbours -----------------------------------------------------------------------------------------------------------------

// The lanes of even (odd) place in two vectors that follow each other.
#if defined(__clang__) && defined(__AVX512F__)
CNET_INLINE vec even(vec a, vec b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30); }
CNET_INLINE vec odd(vec a, vec b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31); }
#elif defined(__clang__) && defined(__AVX2__)
CNET_INLINE vec even(vec a, vec b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
CNET_INLINE vec odd(vec a, vec b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
#elif defined(__clang__)
CNET_INLINE vec even(vec a, vec b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
CNET_INLINE vec odd(vec a, vec b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
#else
CNET_INLINE shuffle_index every_second(int first) {
    shuffle_index index{};
    for (int i = 0; i < lanes; i++) index[i] = 2 * i + first;
    return index;
}
CNET_INLINE vec even(vec a, vec b) { return __builtin_shuffle(a, b, every_second(0)); }
CNET_INLINE vec odd(vec a, vec b) { return __builtin_shuffle(a, b, every_second(1)); }
#endif

// ---- small arithmetic that all files share ----------------------------------------------------------------------------------------

CNET_INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
CNET_INLINE int64_t round_down(int64_t x, int64_t to) { return (x >= 0 ? x : x - to + 1) / to * to; }
CNET_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
CNET_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// A number as a type, for a generic lambda to take as a template argument.
template <int N> struct Constant {
    static constexpr int value = N;
};

// take(Constant<SIZE>{}) for every size in a list of tiles, in its order. With `auto` for `void`, GCC emits kernels in the order of use.
template <class Take, int... SIZES> CNET_INLINE auto each(Tiles<SIZES...>, const Take &take) { (take(Constant<SIZES>{}), ...); }

// What share `index` of `count` gets of `total` things: [begin, end).
struct Range {
    int64_t begin, end;
};
CNET_INLINE Range share_of(int64_t total, int index, int count) { return {total * index / count, total * (index + 1) / count}; }

CNET_INLINE const int32_t *integers(const float *data, int64_t at) { return (const int32_t *)(const void *)(data + at); }

}  // namespace CNET_ISA
}  // namespace cnet
