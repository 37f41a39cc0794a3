// Products of few rows with matrices of 8 or 4 bits, in groups of 32 columns that share a scale and, in 4 bits, a
// minimum: w = scale · q + minimum, as GGUF's Q4_0, Q4_1 and Q8_0 have them.
//
// A matrix lies in strips of 16 rows, a group of a strip in one piece: four columns of 16 rows make a vector, so that
// 32-bit lanes are rows and no lane is ever summed with another. Rows of x are rounded to 8 bits per group. The order of
// additions does not depend on how many rows of x there are. Knows nothing about who multiplies.
#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fovea {

constexpr int GROUP = 32;

typedef uint8_t bytes __attribute__((vector_size(64)));
typedef int8_t octets __attribute__((vector_size(LANES)));

// acc + the four products of each lane: unsigned w, signed x, the same four x in all lanes.
template <int BITS>
inline ivec dot_bytes(ivec acc, bytes w, int32_t x);

#if defined(__AVX512VNNI__)
template <int BITS>
inline ivec dot_bytes(ivec acc, bytes w, int32_t x) {
  return (ivec)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
}
#elif defined(__AVX2__)
inline __m256i dot_nibbles(__m256i w, __m256i x) {  // sums of pairs fit 16 bits, because w has four
  return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
template <int BITS>
inline ivec dot_bytes(ivec acc, bytes w, int32_t x) {
  __m256i halves[2], sums[2], xs = _mm256_set1_epi32(x), low = _mm256_set1_epi8(15);
  std::memcpy(halves, &w, 64);
  std::memcpy(sums, &acc, 64);
  for (int i = 0; i < 2; i++) {
    if (BITS == 4) {
      sums[i] = _mm256_add_epi32(sums[i], dot_nibbles(halves[i], xs));
    } else {
      __m256i high = _mm256_and_si256(_mm256_srli_epi16(halves[i], 4), low);
      __m256i upper = _mm256_slli_epi32(dot_nibbles(high, xs), 4);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_add_epi32(upper, dot_nibbles(_mm256_and_si256(halves[i], low), xs)));
    }
  }
  std::memcpy(&acc, sums, 64);
  return acc;
}
#else
template <int BITS>
inline ivec dot_bytes(ivec acc, bytes w, int32_t x) {
  int8_t parts[4];
  std::memcpy(parts, &x, 4);
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < 4; j++) acc[i] += int32_t(w[4 * i + j]) * parts[j];
  return acc;
}
#endif

inline vec to_floats(ivec x) { return __builtin_convertvector(x, vec); }

// Rows of x in 8 bits, group by group: of each a scale, the sum, and scale times the sum, which a minimum is multiplied by.
class ByteRows {
 public:
  template <typename S>
  void assign(const S* x, int rows, int columns) {
    resize(rows, columns);
    for (int b = 0; b < B; b++) quantize(x + int64_t(b) * K, b);
  }

  // Room for rows, which are then quantized one by one, by several threads or one.
  void resize(int rows, int columns) {
    B = rows, K = columns, groups = (K + GROUP - 1) / GROUP;
    values.resize(size_t(B) * groups * GROUP);
    scales.resize(size_t(B) * groups);
    sums.resize(size_t(B) * groups);
    offsets.resize(size_t(B) * groups);
  }

  // Takes x [K] as row b.
  template <typename S>
  void quantize(const S* x, int b) {
    const int whole = K / GROUP;
    for (int g = 0; g < whole; g++) quantize_group(load(x + g * GROUP), load(x + g * GROUP + LANES), b, g);
    if (whole < groups) {
      alignas(64) float rest[GROUP] = {};
      for (int i = whole * GROUP; i < K; i++) rest[i - whole * GROUP] = widen(x[i]);
      quantize_group(load(rest), load(rest + LANES), b, whole);
    }
  }

  // Of group g: the bytes of row b and behind them those of the next rows, and so on.
  const int8_t* bytes_of(int b, int g) const { return &values[(size_t(g) * B + b) * GROUP]; }
  const float* scales_of(int b, int g) const { return &scales[size_t(g) * B + b]; }
  const int32_t* sums_of(int b, int g) const { return &sums[size_t(g) * B + b]; }
  const float* offsets_of(int b, int g) const { return &offsets[size_t(g) * B + b]; }

  int B = 0, K = 0, groups = 0;

 private:
  void quantize_group(vec first, vec second, int b, int g) {
    float most = horizontal_max(maximum(maximum(first, -first), maximum(second, -second)));
    float by = most > 0 ? 127.0f / most : 0.0f;
    const size_t at = size_t(g) * B + b;
    int8_t* to = &values[at * GROUP];
    vec total = store_bytes(first * broadcast(by), to) + store_bytes(second * broadcast(by), to + LANES);
    scales[at] = most / 127.0f;
    const float sum = horizontal_sum(total);
    sums[at] = int32_t(sum), offsets[at] = scales[at] * sum;
  }

  // The nearest integers of sixteen numbers of at most 127, as bytes; returns them as floats.
  static vec store_bytes(vec x, int8_t* to) {
    const vec magic = broadcast(12582912.0f);  // see `exp2_vec`
    vec shifted = x + magic;
    auto narrow = __builtin_convertvector((ivec)shifted - (ivec)magic, octets);
    std::memcpy(to, &narrow, sizeof narrow);
    return shifted - magic;
  }

  std::vector<int8_t, Lined<int8_t>> values;
  std::vector<float> scales, offsets;
  std::vector<int32_t> sums;
};

// A group of a strip, as it lies in memory.
template <int BITS>
struct Group;
template <>
struct Group<4> {
  static constexpr int VECTORS = 4;      // each holds eight columns: four in the low halves of bytes, four in the high
  uint8_t q[64 * VECTORS];
  uint16_t scale[LANES], minimum[LANES];
};
template <>
struct Group<8> {
  static constexpr int VECTORS = 8;      // each holds four columns, as unsigned bytes: 128 stands for 0
  uint8_t q[64 * VECTORS];
  uint16_t scale[LANES];
};

inline int32_t four_bytes(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

template <int N>
inline void multiply_group(const Group<4>& w, const ByteRows& x, int b, int g, vec* acc) {
  bytes low[4], high[4];
  for (int v = 0; v < 4; v++) {
    bytes both;
    std::memcpy(&both, w.q + 64 * v, 64);
    low[v] = both & (bytes{} + 15), high[v] = (bytes)((uvec)both >> 4) & (bytes{} + 15);
  }
  vec scale = load_half(w.scale), minimum = load_half(w.minimum);
  const int8_t* rows = x.bytes_of(b, g);
  const float *scales = x.scales_of(b, g), *offsets = x.offsets_of(b, g);
#pragma GCC unroll 8
  for (int n = 0; n < N; n++) {
    ivec even{}, odd{};
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
      even = dot_bytes<4>(even, low[v], four_bytes(rows + n * GROUP + 8 * v));
      odd = dot_bytes<4>(odd, high[v], four_bytes(rows + n * GROUP + 8 * v + 4));
    }
    acc[n] += scale * (to_floats(even + odd) * broadcast(scales[n]));
    acc[n] += minimum * broadcast(offsets[n]);
  }
}

template <int N>
inline void multiply_group(const Group<8>& w, const ByteRows& x, int b, int g, vec* acc) {
  bytes all[8];
  for (int v = 0; v < 8; v++) std::memcpy(&all[v], w.q + 64 * v, 64);
  vec scale = load_half(w.scale);
  const int8_t* rows = x.bytes_of(b, g);
  const float* scales = x.scales_of(b, g);
  const int32_t* sums = x.sums_of(b, g);
#pragma GCC unroll 8
  for (int n = 0; n < N; n++) {
    const int8_t* row = rows + n * GROUP;
    ivec even{}, odd{};
#pragma GCC unroll 4
    for (int v = 0; v < 8; v += 2) {
      even = dot_bytes<8>(even, all[v], four_bytes(row + 4 * v));
      odd = dot_bytes<8>(odd, all[v + 1], four_bytes(row + 4 * v + 4));
    }
    ivec whole = even + odd - (ivec{} + 128 * sums[n]);
    acc[n] += scale * (to_floats(whole) * broadcast(scales[n]));
  }
}

// Strip `at` of a matrix times all rows of x: out [B][16] floats.
template <int BITS>
class QuantizedStrip {
 public:
  QuantizedStrip(const void* matrix, int64_t at, int groups)
      : groups(groups), first(static_cast<const Group<BITS>*>(matrix) + at * groups) {}

  void multiply(const ByteRows& x, float* out) const {
    for (int b = 0; b < x.B;) {
      int many = x.B - b >= 8 ? 8 : x.B - b >= 4 ? 4 : x.B - b >= 2 ? 2 : 1;
      if (many == 8) rows<8>(x, b, out);
      if (many == 4) rows<4>(x, b, out);
      if (many == 2) rows<2>(x, b, out);
      if (many == 1) rows<1>(x, b, out);
      b += many;
    }
  }

 private:
  template <int N>
  void rows(const ByteRows& x, int b, float* out) const {
    vec acc[N];
    for (int n = 0; n < N; n++) acc[n] = vec{};
    for (int g = 0; g < groups; g++) multiply_group<N>(first[g], x, b, g, acc);
    for (int n = 0; n < N; n++) store(out + (b + n) * LANES, acc[n]);
  }

  const int groups;
  const Group<BITS>* first;
};

// Strip `at` of a matrix of 4 or 8 bits times all rows of x: out [B][16].
inline void multiply_strip(int bits, const void* matrix, int64_t at, const ByteRows& x, float* out) {
  if (bits == 4)
    QuantizedStrip<4>(matrix, at, x.groups).multiply(x, out);
  else
    QuantizedStrip<8>(matrix, at, x.groups).multiply(x, out);
}

}  // namespace fovea
