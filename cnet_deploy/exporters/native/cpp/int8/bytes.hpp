// Vectors of bytes, 16-bit and 32-bit integers: the few operations that the kernels are written in, once for each instruction set.
//
// A run is the pixels whose 32-bit sums fill four registers: as many as a register has bytes. Four sums are packed into one register of
// bytes, 128 bits at a time, which leaves the pixels of a run in another order than their own; and zipping the bytes of four planes of that
// order, again 128 bits at a time, gives four registers of pixels in their own order. So planes are kept as packing leaves them, and
// nothing is ever shuffled on purpose, but where rows are moved (`in_order`, `as_packed`).
#pragma once

#include <stdint.h>
#include <string.h>

#include "../vectors.hpp"

namespace cnet {
namespace CNET_ISA {

#if defined(__AVX512BW__)
typedef __m512i reg;
#define CNET_OP(name) _mm512_##name
#define CNET_WHOLE(name) _mm512_##name##_si512
#elif defined(__AVX2__)
typedef __m256i reg;
#define CNET_OP(name) _mm256_##name
#define CNET_WHOLE(name) _mm256_##name##_si256
#elif defined(__x86_64__)
typedef __m128i reg;
#define CNET_OP(name) _mm_##name
#define CNET_WHOLE(name) _mm_##name##_si128
#else
typedef uint8x16_t reg;
#endif
constexpr int reg_bytes = sizeof(reg), run = reg_bytes;  // pixels of a run

#if defined(__x86_64__)
#if defined(__AVX512BW__)
CNET_INLINE reg load(const void *p) { return _mm512_load_si512(p); }
CNET_INLINE reg load_anywhere(const void *p) { return _mm512_loadu_si512(p); }
CNET_INLINE void store(void *p, reg x) { _mm512_store_si512(p, x); }
CNET_INLINE void store_anywhere(void *p, reg x) { _mm512_storeu_si512(p, x); }
#else
CNET_INLINE reg load(const void *p) { return CNET_WHOLE(load)((const reg *)p); }
CNET_INLINE reg load_anywhere(const void *p) { return CNET_WHOLE(loadu)((const reg *)p); }
CNET_INLINE void store(void *p, reg x) { CNET_WHOLE(store)((reg *)p, x); }
CNET_INLINE void store_anywhere(void *p, reg x) { CNET_WHOLE(storeu)((reg *)p, x); }
#endif
CNET_INLINE reg fill(int32_t x) { return CNET_OP(set1_epi32)(x); }
CNET_INLINE reg flipped(reg x, reg mask) { return CNET_WHOLE(xor)(x, mask); }
CNET_INLINE reg both(reg x, reg mask) { return CNET_WHOLE(and)(x, mask); }
CNET_INLINE reg less_bytes(reg x, reg y) { return CNET_OP(subs_epu8)(x, y); }
CNET_INLINE reg less_shorts(reg x, reg y) { return CNET_OP(subs_epu16)(x, y); }
CNET_INLINE reg plus(reg x, reg y) { return CNET_OP(add_epi32)(x, y); }
CNET_INLINE reg plus_shorts(reg x, reg y) { return CNET_OP(adds_epi16)(x, y); }
CNET_INLINE reg low_bytes(reg x, reg y) { return CNET_OP(unpacklo_epi8)(x, y); }
CNET_INLINE reg high_bytes(reg x, reg y) { return CNET_OP(unpackhi_epi8)(x, y); }
CNET_INLINE reg low_shorts(reg x, reg y) { return CNET_OP(unpacklo_epi16)(x, y); }
CNET_INLINE reg high_shorts(reg x, reg y) { return CNET_OP(unpackhi_epi16)(x, y); }
CNET_INLINE reg packed_words(reg x, reg y) { return CNET_OP(packs_epi32)(x, y); }
CNET_INLINE reg packed_shorts(reg x, reg y) { return CNET_OP(packus_epi16)(x, y); }
CNET_INLINE reg between(reg x, reg least, reg most) { return CNET_OP(min_epi16)(CNET_OP(max_epi16)(x, least), most); }
CNET_INLINE reg pairs(reg x, reg y) { return CNET_OP(madd_epi16)(x, y); }
template <int N> CNET_INLINE reg shorts_left(reg x) { return CNET_OP(slli_epi16)(x, N); }
template <int N> CNET_INLINE reg shorts_right(reg x) { return CNET_OP(srli_epi16)(x, N); }
template <int N> CNET_INLINE reg shorts_down(reg x) { return CNET_OP(srai_epi16)(x, N); }
#if defined(__AVX2__)
CNET_INLINE reg shifted(reg x, int32_t count) { return CNET_OP(srav_epi32)(x, fill(count)); }
CNET_INLINE reg scaled(reg x, reg multiplier) { return CNET_OP(mulhrs_epi16)(x, multiplier); }
#else
CNET_INLINE reg shifted(reg x, int32_t count) { return _mm_sra_epi32(x, _mm_cvtsi32_si128(count)); }
CNET_INLINE reg scaled(reg x, reg multiplier) {
    const reg low = _mm_mullo_epi16(x, multiplier), high = _mm_mulhi_epi16(x, multiplier), half = fill(1 << 14);
    const reg first = _mm_srai_epi32(_mm_add_epi32(_mm_unpacklo_epi16(low, high), half), 15);
    const reg second = _mm_srai_epi32(_mm_add_epi32(_mm_unpackhi_epi16(low, high), half), 15);
    return _mm_packs_epi32(first, second);
}
#endif
#else
CNET_INLINE reg load(const void *p) { return vld1q_u8((const uint8_t *)p); }
CNET_INLINE reg load_anywhere(const void *p) { return vld1q_u8((const uint8_t *)p); }
CNET_INLINE void store(void *p, reg x) { vst1q_u8((uint8_t *)p, x); }
CNET_INLINE void store_anywhere(void *p, reg x) { vst1q_u8((uint8_t *)p, x); }
CNET_INLINE int16x8_t shorts(reg x) { return vreinterpretq_s16_u8(x); }
CNET_INLINE int32x4_t words(reg x) { return vreinterpretq_s32_u8(x); }
CNET_INLINE reg of(int16x8_t x) { return vreinterpretq_u8_s16(x); }
CNET_INLINE reg of(uint16x8_t x) { return vreinterpretq_u8_u16(x); }
CNET_INLINE reg of(int32x4_t x) { return vreinterpretq_u8_s32(x); }
CNET_INLINE reg fill(int32_t x) { return of(vdupq_n_s32(x)); }
CNET_INLINE reg flipped(reg x, reg mask) { return veorq_u8(x, mask); }
CNET_INLINE reg both(reg x, reg mask) { return vandq_u8(x, mask); }
CNET_INLINE reg less_bytes(reg x, reg y) { return vqsubq_u8(x, y); }
CNET_INLINE reg less_shorts(reg x, reg y) { return of(vqsubq_u16(vreinterpretq_u16_u8(x), vreinterpretq_u16_u8(y))); }
CNET_INLINE reg plus(reg x, reg y) { return of(vaddq_s32(words(x), words(y))); }
CNET_INLINE reg plus_shorts(reg x, reg y) { return of(vqaddq_s16(shorts(x), shorts(y))); }
CNET_INLINE reg low_bytes(reg x, reg y) { return vzip1q_u8(x, y); }
CNET_INLINE reg high_bytes(reg x, reg y) { return vzip2q_u8(x, y); }
CNET_INLINE reg low_shorts(reg x, reg y) { return of(vzip1q_s16(shorts(x), shorts(y))); }
CNET_INLINE reg high_shorts(reg x, reg y) { return of(vzip2q_s16(shorts(x), shorts(y))); }
CNET_INLINE reg packed_words(reg x, reg y) { return of(vcombine_s16(vqmovn_s32(words(x)), vqmovn_s32(words(y)))); }
CNET_INLINE reg packed_shorts(reg x, reg y) { return vcombine_u8(vqmovun_s16(shorts(x)), vqmovun_s16(shorts(y))); }
CNET_INLINE reg between(reg x, reg least, reg most) { return of(vminq_s16(vmaxq_s16(shorts(x), shorts(least)), shorts(most))); }
CNET_INLINE reg pairs(reg x, reg y) {
    const int16x8_t a = shorts(x), b = shorts(y);
    return of(vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
}
template <int N> CNET_INLINE reg shorts_left(reg x) { return of(vshlq_n_s16(shorts(x), N)); }
template <int N> CNET_INLINE reg shorts_right(reg x) { return of(vshrq_n_u16(vreinterpretq_u16_u8(x), N)); }
template <int N> CNET_INLINE reg shorts_down(reg x) { return of(vshrq_n_s16(shorts(x), N)); }
CNET_INLINE reg shifted(reg x, int32_t count) { return of(vshlq_s32(words(x), vdupq_n_s32(-count))); }
CNET_INLINE reg scaled(reg x, reg multiplier) { return of(vqrdmulhq_s16(shorts(x), shorts(multiplier))); }
#endif

// The pixels of a packed run in their own order, and back.
#if defined(__AVX512BW__)
CNET_INLINE reg in_order(reg x) {
    return _mm512_permutexvar_epi32(_mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0), x);
}
CNET_INLINE reg as_packed(reg x) { return in_order(x); }
#elif defined(__AVX2__)
CNET_INLINE reg in_order(reg x) { return _mm256_permutevar8x32_epi32(x, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0)); }
CNET_INLINE reg as_packed(reg x) { return _mm256_permutevar8x32_epi32(x, _mm256_set_epi32(7, 5, 3, 1, 6, 4, 2, 0)); }
#else
CNET_INLINE reg in_order(reg x) { return x; }
CNET_INLINE reg as_packed(reg x) { return x; }
#endif

// 16-bit values of two registers as bytes, all in order.
CNET_INLINE reg shorts_in_order(reg x, reg y) {
#if defined(__AVX512BW__)
    return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), packed_shorts(x, y));
#elif defined(__AVX2__)
    return _mm256_permute4x64_epi64(packed_shorts(x, y), 0xd8);
#else
    return packed_shorts(x, y);
#endif
}

// ---- sums of products -----------------------------------------------------------------------------------------------------------

// These are assembly where it is short: GCC 12 copies the sums of the intrinsics from register to register, several times in each turn of a
// loop, which then takes twice as long.

// Two 16-bit values in a word.
CNET_INLINE reg add_pairs(reg sum, reg x, reg w) {
#if defined(__AVX512VNNI__)
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
#elif defined(__AVXVNNI__)
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
    return sum;
#else
    return plus(sum, pairs(x, w));
#endif
}

// Four bytes in a word, as what they are multiplied by takes them.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool signed_alone = false;
typedef reg four;
CNET_INLINE four four_of(reg x) { return x; }
CNET_INLINE four four_weights(reg w) { return w; }
CNET_INLINE reg add_fours(reg sum, four x, four w) {
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
#elif defined(__AVXVNNI__)
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
    return sum;
#else
    return of(vusdotq_s32(words(sum), x, vreinterpretq_s8_u8(w)));
#endif
}
#elif defined(__ARM_FEATURE_DOTPROD)
// Signed by signed: values have 128 less, which Pointwise.offset and Conv3x3.offset give back.
constexpr bool signed_alone = true;
typedef reg four;
CNET_INLINE four four_of(reg x) { return flipped(x, fill((int32_t)0x80808080)); }
CNET_INLINE four four_weights(reg w) { return w; }
CNET_INLINE reg add_fours(reg sum, four x, four w) {
    return of(vdotq_s32(words(sum), vreinterpretq_s8_u8(x), vreinterpretq_s8_u8(w)));
}
#else
// As 16-bit values, those of even and of odd place: nothing can overflow there.
constexpr bool signed_alone = false;
struct four {
    reg even, odd;
};
CNET_INLINE four four_of(reg x) { return {both(x, fill(0x00ff00ff)), shorts_right<8>(x)}; }
CNET_INLINE four four_weights(reg w) { return {shorts_down<8>(shorts_left<8>(w)), shorts_down<8>(w)}; }
CNET_INLINE reg add_fours(reg sum, four x, four w) { return plus(plus(sum, pairs(x.even, w.even)), pairs(x.odd, w.odd)); }
#endif

// What a word holds: four bytes; or two 16-bit values (WIDE).
template <bool WIDE> struct Word {
    typedef four type;
    static constexpr int values = 4;
    CNET_INLINE type of(reg x) { return four_of(x); }
    CNET_INLINE type weights(int32_t w) { return four_weights(fill(w)); }
    CNET_INLINE reg add(reg sum, type x, type w) { return add_fours(sum, x, w); }
};
template <> struct Word<true> {
    typedef reg type;
    static constexpr int values = 2;
    CNET_INLINE type of(reg x) { return x; }
    CNET_INLINE type weights(int32_t w) { return fill(w); }
    CNET_INLINE reg add(reg sum, type x, type w) { return add_pairs(sum, x, w); }
};

CNET_INLINE void pin(reg &x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#else
    asm("" : "+w"(x));
#endif
}
#if !(defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD))
CNET_INLINE void pin(four &x) {
    pin(x.even);
    pin(x.odd);
}
#endif

constexpr int rows_at_once = registers == 32 ? 4 : 2;  // whose sums of a run fit into the registers

// ---- requantization ---------------------------------------------------------------------------------------------------------------

// One row's sums of a run -> two registers of 16-bit values.
template <bool SHIFTS>
CNET_INLINE void rescale(const reg (&sum)[4], const int32_t *row, reg (&out)[2]) {
    const reg multiplier = fill(row[1]), zero = fill(row[2]);
    for (int i = 0; i < 2; i++) {
        reg a = sum[2 * i], b = sum[2 * i + 1];
        if (SHIFTS) {
            a = shifted(a, row[0]);
            b = shifted(b, row[0]);
        }
        out[i] = plus_shorts(scaled(packed_words(a, b), multiplier), zero);
    }
}

// One row's sums of a run -> its bytes, packed.
template <bool SHIFTS>
CNET_INLINE reg requantized(const reg (&sum)[4], const int32_t *row) {
    reg two[2];
    rescale<SHIFTS>(sum, row, two);
    return packed_shorts(two[0], two[1]);
}

CNET_INLINE const int32_t *table(const float *data, int64_t at) { return (const int32_t *)(const void *)(data + at); }

}  // namespace CNET_ISA
}  // namespace cnet
