// C[rows][32] = or += A[rows][k] B[k][32]: the one product that blocks of attention are made of, and how B is packed.
//
// float32 multiplies entry by entry, eight rows at a time. bfloat16 multiplies pairs: words of two neighbours along k,
// accumulated in float32 (AVX512-BF16), or 32 rows at a time in tiles of 16 x 16 (AMX); without these instructions
// bfloat16 is widened while packing and takes the float32 path.
#pragma once

#include <algorithm>

#include "amx_tiles.h"
#include "vectors.h"

namespace fovea {

constexpr int COLUMNS = 2 * LANES;

template <typename T>
struct Factor {  // what T is multiplied as: how many neighbours along k make a word, in multiples of how many words
  using type = float;
  static constexpr int pair = 1, step = 1, rows = 8;
};
#if defined(__AMX_BF16__)
template <>
struct Factor<bf16> {
  using type = bf16;
  static constexpr int pair = 2, step = LANES, rows = 2 * LANES;
};
#elif defined(__AVX512BF16__)
template <>
struct Factor<bf16> {
  using type = bf16;
  static constexpr int pair = 2, step = 1, rows = 8;
};
#endif

// Words of a row of d entries.
template <typename T>
constexpr int words_per_row(int d) {
  constexpr int entries = Factor<T>::pair * Factor<T>::step;
  return (d + entries - 1) / entries * Factor<T>::step;
}

inline vec multiply_add(vec a, vec b, vec c, float) { return a * b + c; }
#if defined(__AVX512BF16__)
inline vec multiply_add(vec a, vec b, vec c, bf16) { return (vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }
#endif

// An entry as a factor, and a vector of factors, as they lie or widened.
template <typename T, typename F>
inline void store_factor(T x, F* to) {
  if constexpr (sizeof(T) == sizeof(F))
    std::memcpy(to, &x, sizeof x);
  else
    *to = widen(x);
}
template <typename F, typename T>
inline vec load_factors(const T* x) {
  if constexpr (sizeof(T) == sizeof(F)) {
    vec words;
    std::memcpy(&words, x, sizeof words);
    return words;
  } else {
    return load(x);
  }
}

// keys[word][tile]: `many` keys side by side, key(i) being where the i-th begins; those behind the last repeat it, up to
// a whole vector. `keys` has room for d rounded up to a vector, and one vector of words more.
template <typename T, typename Key>
inline void pack_keys(Key key, int many, int d, int words, int tile, float* keys) {
  using F = typename Factor<T>::type;
  constexpr int pair = Factor<T>::pair;
  alignas(64) uint32_t padded[LANES][LANES];
  for (int i = 0; i < many; i += LANES)
    for (int w = 0; w < words; w += LANES) {
      const uint32_t* from[LANES];
      bool whole = w + LANES <= words && (w + LANES) * pair <= d && sizeof(T) == sizeof(F);
      for (int j = 0; j < LANES; j++) {
        const T* x = key(std::min(i + j, many - 1)) + int64_t(w) * pair;
        from[j] = whole ? reinterpret_cast<const uint32_t*>(x) : padded[j];
        if (!whole)
          for (int c = 0; c < LANES * pair; c++)
            store_factor(w * pair + c < d ? x[c] : T{}, reinterpret_cast<F*>(padded[j]) + c);
      }
      transpose(from, reinterpret_cast<uint32_t*>(keys) + int64_t(w) * tile + i, tile);
    }
}

// 2^x, as exactly as factors of F deserve.
template <typename F>
inline vec exp2_as(vec x) {
  return sizeof(F) == 2 ? exp2_approx(x) : exp2_vec(x);
}

// The largest of n floats, n a multiple of COLUMNS; two at a time, as each waits for the one before.
inline float horizontal_max(const float* s, int n) {
  vec top = load(s), other = load(s + LANES);
  for (int c = COLUMNS; c < n; c += COLUMNS) top = maximum(top, load(s + c)), other = maximum(other, load(s + c + LANES));
  return horizontal_max(maximum(top, other));
}

// Sixteen words along k: entries of `one`, or pairs of an entry of `one` and one of `two`.
template <int PAIR, typename T>
inline vec interleave(const T* one, const T* two) {
  if constexpr (PAIR == 2)
    return (vec)(widen_words(one) | widen_words(two) << 16);
  else
    return load(one);
}

// A word in every lane, as it is, whatever it holds.
inline vec broadcast_word(const float* word) {
  uint32_t bits;
  std::memcpy(&bits, word, 4);
  return (vec)(bits - uvec{});
}

// A: words along k, `stride_a` words from row to row. B: [words][32]. `words`: see `words_per_row`.
template <typename F, bool ADD>
inline void gemm_block(const float* A, int64_t stride_a, const float* B, int64_t stride_b, float* C, int64_t stride_c,
                    int words) {
#if defined(__AMX_BF16__)
  if constexpr (sizeof(F) == 2) {
    gemm_tiles<ADD>(A, stride_a * 4, B, stride_b * 4, C, stride_c * 4, words);
    return;
  }
#endif
  constexpr int rows = 8;
  vec c[rows][2];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < 2; j++) c[i][j] = ADD ? load(C + i * stride_c + j * LANES) : vec{};
  for (int w = 0; w < words; w++) {
    vec b0 = load(B + w * stride_b), b1 = load(B + w * stride_b + LANES);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
      vec a = broadcast_word(A + i * stride_a + w);
      c[i][0] = multiply_add(a, b0, c[i][0], F{});
      c[i][1] = multiply_add(a, b1, c[i][1], F{});
    }
  }
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < 2; j++) store(C + i * stride_c + j * LANES, c[i][j]);
}

}  // namespace fovea
