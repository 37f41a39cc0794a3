// Sixteen floats at a time, in the compiler's own vector types: AVX-512 where there is one, halves or quarters elsewhere.
//
// Everything is plain arithmetic that any target takes; only the bfloat16 product and the 16x16 transposition have a
// form of their own for AVX-512. Knows nothing about attention.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fovea {

constexpr int LANES = 16;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));

// bfloat16: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

// Buffers that begin where a line of the cache does.
template <typename T>
struct Lined {
  using value_type = T;
  Lined() = default;
  template <typename U>
  Lined(const Lined<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const Lined&) const { return true; }
  bool operator!=(const Lined&) const { return false; }
};
using Floats = std::vector<float, Lined<float>>;

inline constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, bf16* out) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  out->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline vec load(const float* p) {
  vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline uvec widen_words(const bf16* p) {  // each in the lower half of a word
  hvec half;
  std::memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)
  return (uvec)_mm512_cvtepu16_epi32((__m256i)half);
#else
  return __builtin_convertvector(half, uvec);
#endif
}
inline vec load(const bf16* p) {
  return (vec)(widen_words(p) << 16);
}
inline vec load_half(const uint16_t* p) {  // 16 numbers of IEEE's half precision
#if defined(__AVX512F__)
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
  vec out;
  for (int i = 0; i < LANES; i++) {
    uint32_t sign = uint32_t(p[i] & 0x8000) << 16, rest = uint32_t(p[i] & 0x7fff) << 13;
    float magnitude;
    std::memcpy(&magnitude, &rest, 4);
    magnitude *= 0x1p112f;  // the exponents' biases differ; subnormal ones come out right
    if (rest >= 0x0f800000u) magnitude = rest == 0x0f800000u ? INFINITY : NAN;
    std::memcpy(&rest, &magnitude, 4);
    rest |= sign;
    float whole;
    std::memcpy(&whole, &rest, 4);
    out[i] = whole;
  }
  return out;
#endif
}
inline void store(float* p, vec x) { std::memcpy(p, &x, sizeof x); }
// Narrowed to the nearest, and stored.
inline void store_as(vec x, float* to) { store(to, x); }
inline void store_as(vec x, bf16* to) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy(to, &half, sizeof half);
#else
  for (int i = 0; i < LANES; i++) narrow(x[i], to + i);
#endif
}

inline vec broadcast(float x) { return x - vec{}; }
inline vec maximum(vec a, vec b) { return a > b ? a : b; }

inline float horizontal_max(vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
  return most;
#endif
}

inline float horizontal_sum(vec x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
#endif
}

// 2^x with a relative error of 2e-7 or less for x in [-125, 127]; exactly 0 below, -inf included.
inline vec exp2_vec(vec x) {
  const vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
  vec inside = maximum(x, broadcast(-126.0f));
  vec shifted = inside + magic;
  vec f = inside - (shifted - magic);
  vec p = broadcast(1.5403530393e-4f);
  p = p * f + broadcast(1.3333558146e-3f);
  p = p * f + broadcast(9.6181291076e-3f);
  p = p * f + broadcast(5.5504108665e-2f);
  p = p * f + broadcast(2.4022650696e-1f);
  p = p * f + broadcast(6.9314718056e-1f);
  p = p * f + broadcast(1.0f);
  vec scaled = (vec)((ivec)p + ((ivec)shifted << 23));
  return x < broadcast(-125.0f) ? vec{} : scaled;
}

// 2^x in fewer steps: a relative error of 3e-6 or less, exactly 0 for -inf.
inline vec exp2_approx(vec x) {
#if defined(__AVX512F__)
  vec f = (vec)_mm512_reduce_ps((__m512)x, 1);  // x - floor(x)
  vec p = broadcast(1.353917186e-2f);
  p = p * f + broadcast(5.200115791e-2f);
  p = p * f + broadcast(2.414494793e-1f);
  p = p * f + broadcast(6.930023875e-1f);
  p = p * f + broadcast(1.000002650f);
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)x);  // times 2^floor(x)
#else
  return exp2_vec(x);
#endif
}

// Transposes 16 rows of 16 32-bit words: out[j * stride_out + i] = in[i][j].
inline void transpose(const uint32_t* const* in, uint32_t* out, int64_t stride_out) {
#if defined(__AVX512F__)
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(in[i]);
  for (int i = 0; i < 8; i++) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + 2 + j]);
      a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + 2 + j]);
    }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++) {
      b[8 * i + j] = _mm512_shuffle_i32x4(a[8 * i + j], a[8 * i + 4 + j], 0x88);
      b[8 * i + 4 + j] = _mm512_shuffle_i32x4(a[8 * i + j], a[8 * i + 4 + j], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    a[j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0x88);
    a[8 + j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0xdd);
  }
  for (int j = 0; j < 16; j++) _mm512_storeu_si512(out + j * stride_out, a[j]);
#else
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) out[j * stride_out + i] = in[i][j];
#endif
}

// Sums of 16 vectors: lane i of the result is the sum of x[i]'s lanes.
inline vec horizontal_sums(const vec* x) {
#if defined(__AVX512F__)
  __m512 a[8], b[4];
  for (int i = 0; i < 8; i++) {
    __m512 low = _mm512_unpacklo_ps((__m512)x[2 * i], (__m512)x[2 * i + 1]);
    a[i] = _mm512_add_ps(low, _mm512_unpackhi_ps((__m512)x[2 * i], (__m512)x[2 * i + 1]));
  }
  for (int i = 0; i < 4; i++) {
    __m512d low = _mm512_unpacklo_pd((__m512d)a[2 * i], (__m512d)a[2 * i + 1]);
    __m512d high = _mm512_unpackhi_pd((__m512d)a[2 * i], (__m512d)a[2 * i + 1]);
    b[i] = _mm512_add_ps((__m512)low, (__m512)high);
  }
  // Each quarter of b[i] holds parts of the sums of x[4i] … x[4i+3].
  __m512 c0 = _mm512_add_ps(_mm512_shuffle_f32x4(b[0], b[1], 0x88), _mm512_shuffle_f32x4(b[0], b[1], 0xdd));
  __m512 c1 = _mm512_add_ps(_mm512_shuffle_f32x4(b[2], b[3], 0x88), _mm512_shuffle_f32x4(b[2], b[3], 0xdd));
  return (vec)_mm512_add_ps(_mm512_shuffle_f32x4(c0, c1, 0x88), _mm512_shuffle_f32x4(c0, c1, 0xdd));
#else
  vec out;
  for (int i = 0; i < LANES; i++) out[i] = horizontal_sum(x[i]);
  return out;
#endif
}

}  // namespace fovea
