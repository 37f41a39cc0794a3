// Rotated pages of 16 entries in 4 or 3 bits, as `layout.py` lays them out and `rotation.py` and `reference.py` say what
// they mean. Knows one page; knows nothing about attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "packed_pages.h"

namespace fovea {

constexpr int ROTATED = 64;  // is added to the bits of a format whose entries are rotated

template <int BITS>
struct Levels;  // ascending; three bits twice, so that the fourth bit of an index does not matter
template <>
struct Levels<4> {
  static constexpr float at[LANES] = {-2.7326f, -2.0690f, -1.6180f, -1.2562f, -0.9423f, -0.6568f, -0.3880f, -0.1284f,
                                      0.1284f,  0.3880f,  0.6568f,  0.9423f,  1.2562f,  1.6180f,  2.0690f,  2.7326f};
};
template <>
struct Levels<3> {
  static constexpr float at[LANES] = {-2.1519f, -1.3439f, -0.7560f, -0.2451f, 0.2451f, 0.7560f, 1.3439f, 2.1519f,
                                      -2.1519f, -1.3439f, -0.7560f, -0.2451f, 0.2451f, 0.7560f, 1.3439f, 2.1519f};
};

template <int BITS>
inline vec level_of(uvec code) {
#if defined(__AVX512F__)
  return (vec)_mm512_permutexvar_ps((__m512i)code, _mm512_loadu_ps(Levels<BITS>::at));
#else
  vec out;
  for (int i = 0; i < LANES; i++) out[i] = Levels<BITS>::at[code[i] & 15];
  return out;
#endif
}

// Code of each lane: how many midpoints between levels lie below it.
template <int BITS>
inline uvec nearest_level(vec x) {
  const float* level = Levels<BITS>::at;
  ivec code{};
  for (int i = 0; i + 1 < 1 << BITS; i++) code -= (ivec)(x > broadcast((level[i] + level[i + 1]) / 2));
  return (uvec)code;
}

// The sign of a channel of a head: a hash of both.
inline float sign_of(uint32_t head, uint32_t channel) {
  uint32_t x = head * 0x9e3779b9u + channel * 0x85ebca6bu;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return (x ^ (x >> 16)) & 1 ? -1.0f : 1.0f;
}
inline void signs_of(uint32_t head, int d, float* to) {
  for (int c = 0; c < d; c++) to[c] = sign_of(head, uint32_t(c));
}

// Walsh–Hadamard over numbers or vectors x[0 … d), a block per binary digit of d, orthonormal.
template <typename X>
inline void hadamard(X* x, int d) {
  for (int digit = 30; digit >= 0; digit--) {
    const int n = 1 << digit;
    if (!(d & n)) continue;
    for (int half = 1; half < n; half *= 2)
      for (int i = 0; i < n; i += 2 * half)
        for (int j = i; j < i + half; j++) {
          const X a = x[j], b = x[j + half];
          x[j] = a + b, x[j + half] = a - b;
        }
    const float by = 1.0f / std::sqrt(float(n));
    for (int i = 0; i < n; i++) x[i] = x[i] * by;
    x += n;
  }
}

inline uint16_t to_half(float x) {  // 0 … 65504, to the nearest
  if (x < 0x1p-14f) return uint16_t(std::nearbyint(x * 0x1p24f));
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t(((bits + 0xfff + ((bits >> 13) & 1)) >> 13) - (112 << 10));
}

// 16 codes in each of 16 lanes. `pair(i)` has code 2i at the bottom of each lane's lower half and 2i + 1 at that of the
// upper; above them lie others.
template <int BITS>
struct CodeBlock {
  static constexpr int bytes = 32 * BITS;
  uvec low, high;

  static CodeBlock at(const uint8_t* codes, int block, int blocks) {
    CodeBlock found;
    std::memcpy(&found.low, codes + (BITS == 4 ? 128 : 64) * block, 64);
    if (BITS == 4) {
      std::memcpy(&found.high, codes + 128 * block + 64, 64);
    } else {
      hvec upper;
      std::memcpy(&upper, codes + 64 * blocks + 32 * block, 32);
      const uvec wide = __builtin_convertvector(upper, uvec);
      found.high = (wide & 0xff) << 2 | (wide & 0xff00) << 10;
    }
    return found;
  }
  uvec pair(int i) const {
    if (BITS == 4) return (i < 4 ? low : high) >> (4 * (i % 4));
    return ((low >> (2 * i)) & 0x00030003u) | ((high >> i) & ~0x00030003u);
  }
  uvec code(int step) const { return (pair(step >> 1) >> (16 * (step & 1))) & ((1u << BITS) - 1); }

  static void put(uint8_t* codes, int block, int blocks, const uvec* of) {  // 16 codes of all lanes
    uvec low{}, high{};
    for (int i = 0; i < LANES; i++) {
      const int half = 16 * (i & 1), at = i >> 1;
      if (BITS == 4)
        (at < 4 ? low : high) |= of[i] << (4 * (at % 4) + half);
      else
        low |= (of[i] & 3) << (2 * at + half), high |= (of[i] >> 2) << (at + half / 2);
    }
    std::memcpy(codes + (BITS == 4 ? 128 : 64) * block, &low, 64);
    if (BITS == 4) {
      std::memcpy(codes + 128 * block + 64, &high, 64);
    } else {
      const hvec upper = __builtin_convertvector(high, hvec);
      std::memcpy(codes + 64 * blocks + 32 * block, &upper, 32);
    }
  }
};

// The levels of codes 2i and 2i + 1 of every lane, to be multiplied with two numbers that all lanes share.
template <int BITS, typename T>
struct LevelPair {
  using Number = float;

  LevelPair(const CodeBlock<BITS>& block, int i) : one(level_of<BITS>(block.pair(i))), two(level_of<BITS>(block.pair(i) >> 16)) {}
  vec add_to(vec sum, const Number* x) const { return sum + one * broadcast(x[0]) + two * broadcast(x[1]); }

  vec one, two;
};

#if defined(__AVX512BF16__)
template <int BITS>
struct LevelPair<BITS, bf16> {
  using Number = bf16;

  LevelPair(const CodeBlock<BITS>& block, int i)
      : both((__m512bh)_mm512_permutexvar_epi16((__m512i)block.pair(i), numbers())) {}
  vec add_to(vec sum, const Number* x) const {
    int32_t two;
    std::memcpy(&two, x, 4);
    return (vec)_mm512_dpbf16_ps((__m512)sum, both, (__m512bh)_mm512_set1_epi32(two));
  }
  static __m512i numbers() {  // an index has five bits, of which the upper ones do not matter
    const __m512 levels = _mm512_loadu_ps(Levels<BITS>::at);
    return (__m512i)_mm512_cvtne2ps_pbh(levels, levels);
  }

  __m512bh both;
};
#endif

// A page: codes of keys, codes of values, scales of keys and of values, whose signs are the bits of its head's number.
template <int BITS>
struct RotatedPage {
  using Block = CodeBlock<BITS>;

  RotatedPage(const uint8_t* from, int d) : from(from), blocks((d + LANES - 1) / LANES) {}

  static int64_t bytes(int d) { return int64_t(round_up(d, LANES)) * PAGE * BITS / 4 + 4 * PAGE; }

  Block keys(int block) const { return Block::at(from, block, blocks); }
  Block values(int block) const { return Block::at(from + code_bytes(), block, blocks); }
  vec key_scales() const { return load_scales(0); }
  vec value_scales() const { return load_scales(1); }
  uint32_t head() const {
    uint32_t number = 0;
    for (int side = 0; side < 2; side++) {
      uint16_t halves[PAGE];
      std::memcpy(halves, from + scales_at(side), sizeof halves);
      for (int i = 0; i < PAGE; i++) number |= uint32_t(halves[i] >> 15) << (PAGE * side + i);
    }
    return number;
  }
  int code_bytes() const { return blocks * Block::bytes; }
  int scales_at(int side) const { return 2 * code_bytes() + 2 * PAGE * side; }

  const uint8_t* from;
  const int blocks;

 private:
  vec load_scales(int side) const {
    uint16_t halves[PAGE];
    std::memcpy(halves, from + scales_at(side), sizeof halves);
    return (vec)((uvec)load_half(halves) & 0x7fffffffu);
  }
};

// Calls work(format) with a format of pages as a constant.
template <typename Work>
void with_format(int format, Work work) {
  if (format == 8) work(std::integral_constant<int, 8>());
  if (format == 4) work(std::integral_constant<int, 4>());
  if (format == ROTATED + 4) work(std::integral_constant<int, ROTATED + 4>());
  if (format == ROTATED + 3) work(std::integral_constant<int, ROTATED + 3>());
}

template <int FORMAT>
inline int64_t page_bytes(int d) {
  if constexpr (FORMAT > ROTATED) return RotatedPage<FORMAT - ROTATED>::bytes(d);
  else return PackedPage<FORMAT>::bytes(d);
}

}  // namespace fovea
