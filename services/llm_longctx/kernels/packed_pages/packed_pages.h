// Pages of 16 entries in 8 or 4 bits, as `layout.py` lays them out and `reference.py` says what they mean.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../native/vectors.h"

namespace fovea {

constexpr int PAGE = 16;         // entries of a page, and lanes of a vector
constexpr int VALUE_GROUP = 64;  // channels of a value that share a scale

// Sixteen scales, each a float of eight bits: 2^(e - 20) · (1 + m / 8).
inline vec load_scales(const uint8_t* p) {
  typedef uint8_t quarter __attribute__((vector_size(16)));
  quarter x;
  std::memcpy(&x, p, sizeof x);
  return (vec)((__builtin_convertvector(x, uvec) << 20) + (107u << 23));
}
inline vec load_zeros(const uint8_t* p) {
  typedef int8_t quarter __attribute__((vector_size(16)));
  quarter x;
  std::memcpy(&x, p, sizeof x);
  return __builtin_convertvector(__builtin_convertvector(x, ivec), vec);
}
inline float scale_of(uint8_t code) {
  uint32_t bits = (uint32_t(code) << 20) + (107u << 23);
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

template <int BITS>
struct PackedPage {
  static constexpr int STEPS = 32 / BITS;  // codes of a lane

  PackedPage(const uint8_t* from, int d) : from(from), d(d), width(round_up(d, LANES)) {}

  static int64_t bytes(int d) {
    return int64_t(round_up(d, LANES)) * (PAGE * BITS / 4 + 2) + 2 * PAGE * ((d + VALUE_GROUP - 1) / VALUE_GROUP);
  }
  static int shift(int step) { return BITS * (step >> 1) + 16 * (step & 1); }

  // Vector `tile` of the keys: lanes are entries, codes the channels from tile · STEPS on.
  uvec key_codes(int tile) const { return words(from + 64 * tile); }
  // Vector `part` of channels 16 · block …: lanes are channels, codes the entries from part · STEPS on.
  uvec value_codes(int block, int part) const {
    return words(from + code_bytes() + 64 * (block * (PAGE / STEPS) + part));
  }
  static vec code(uvec lanes, int step) {
    return __builtin_convertvector((ivec)((lanes >> shift(step)) & ((1u << BITS) - 1)), vec);
  }
  int code_bytes() const { return width * PAGE * BITS / 8; }
  int key_scales_at() const { return 2 * code_bytes(); }
  int key_zeros_at() const { return key_scales_at() + width; }
  int value_scales_at(int group) const { return key_zeros_at() + width + group * PAGE; }
  int value_zeros_at(int group) const { return value_scales_at((d + VALUE_GROUP - 1) / VALUE_GROUP + group); }

  vec key_scales(int c) const { return load_scales(from + key_scales_at() + c); }
  vec key_zeros(int c) const { return load_zeros(from + key_zeros_at() + c); }
  vec value_scales(int group) const { return load_scales(from + value_scales_at(group)); }
  vec value_zeros(int group) const { return load_zeros(from + value_zeros_at(group)); }

 private:
  static uvec words(const uint8_t* p) {
    uvec x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }

  const uint8_t* from;
  const int d, width;
};

// The codes of steps 2 · pair and 2 · pair + 1 of every lane, to be multiplied with two numbers that all lanes share.
template <int BITS, typename T>
struct CodePair {
  using Number = float;

  CodePair(uvec lanes, int pair)
      : one(PackedPage<BITS>::code(lanes, 2 * pair)), two(PackedPage<BITS>::code(lanes, 2 * pair + 1)) {}
  vec add_to(vec sum, const Number* x) const { return sum + one * broadcast(x[0]) + two * broadcast(x[1]); }

  vec one, two;
};

#if defined(__AVX512BF16__)
// Four bits are looked up as bfloat16 numbers, which hold them exactly, and multiplied pairwise.
template <>
struct CodePair<4, bf16> {
  using Number = bf16;

  CodePair(uvec lanes, int pair)
      : both((__m512bh)_mm512_permutexvar_epi16((__m512i)(lanes >> (4 * pair)), numbers())) {}
  vec add_to(vec sum, const Number* x) const {
    int32_t two;
    std::memcpy(&two, x, 4);
    return (vec)_mm512_dpbf16_ps((__m512)sum, both, (__m512bh)_mm512_set1_epi32(two));
  }
  // 0 … 15 twice: the fifth bit of an index is the next code's.
  static __m512i numbers() {
    return _mm512_broadcast_i64x4(_mm256_setr_epi16(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100,
                                                    0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170));
  }

  __m512bh both;
};
#endif

}  // namespace fovea
