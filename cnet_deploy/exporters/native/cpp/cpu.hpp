// What the processor and the system can do, asked without the help of a compiler's runtime library.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace cnet {

#if defined(__x86_64__)

// Which registers the system saves for a process (XCR0): without that an instruction faults though the processor has it.
static inline uint64_t saved_state() {
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static inline bool has(uint32_t word, int bit) { return word >> bit & 1; }

static inline bool supported(const char *isa) {
    if (!strcmp(isa, "baseline")) return true;
    uint32_t a, b, c, d, b7, c7, a71 = 0, most, unused;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 27)) return false;  // OSXSAVE
    const uint64_t saved = saved_state();
    if (!__get_cpuid_count(7, 0, &most, &b7, &c7, &d)) return false;
    if (most >= 1) __get_cpuid_count(7, 1, &a71, &unused, &unused, &unused);
    uint32_t extended = 0;
    __get_cpuid(0x80000001, &unused, &unused, &extended, &unused);
    // x86-64-v3: AVX, FMA, F16C, MOVBE, AVX2, BMI1, BMI2, LZCNT.
    const bool v3 = (saved & 6) == 6 && has(c, 28) && has(c, 12) && has(c, 29) && has(c, 22) && has(b7, 5) && has(b7, 3) && has(b7, 8) &&
                    has(extended, 5);
    if (!strcmp(isa, "avx2")) return v3;
    if (!strcmp(isa, "avx_vnni")) return v3 && has(a71, 4);
    // x86-64-v4: AVX-512 F, DQ, CD, BW, VL.
    const bool v4 = v3 && (saved & 0xe6) == 0xe6 && has(b7, 16) && has(b7, 17) && has(b7, 28) && has(b7, 30) && has(b7, 31);
    if (!strcmp(isa, "avx512")) return v4;
    if (!strcmp(isa, "avx512_vnni")) return v4 && has(c7, 11);
    return !strcmp(isa, "avx512_bf16") && v4 && has(a71, 5);
}

#else

// NEON is part of every aarch64 processor; products of bytes came later.
static inline bool supported(const char *isa) {
#if defined(__aarch64__)
    const bool dotprod = getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
    if (!strcmp(isa, "neon_dotprod")) return dotprod;
    if (!strcmp(isa, "neon_i8mm")) return dotprod && (getauxval(AT_HWCAP2) >> 13 & 1);  // HWCAP2_I8MM
#endif
    return !strcmp(isa, "neon") || !strcmp(isa, "baseline");
}

#endif

}  // namespace cnet
