// Products of few rows with matrices as they lie, row by row, in float32 or bfloat16.
//
// A matrix is read once for up to four rows of x, and the time is that of its memory; the order of additions does not
// depend on how many rows there are, so a row's result does not either. Sums are float32. Knows nothing about layers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gemm.h"

namespace fovea {

// x / (1 + e^-by)
inline vec damp(vec x, vec by) {
  vec power = by * broadcast(-LOG2E), most = broadcast(126.0f);
  return x / (broadcast(1.0f) + exp2_vec(power > most ? most : power));
}

inline vec silu(vec x) { return damp(x, x); }

// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
inline vec gelu(vec x) {
  return damp(x, broadcast(2 * 0.7978845608f) * (x + broadcast(0.044715f) * x * x * x));
}

// How a row is normed: x / sqrt(mean x² + eps) · (offset + weight).
template <typename T>
struct Norm {
  const T* weight;  // null: rows stay as they are
  float eps, offset;

  template <typename X, typename O>
  void apply(const X* x, O* out, int width) const {
    const int whole = width / LANES * LANES, even = whole / COLUMNS * COLUMNS;
    vec squares{}, more{};  // two sums, as each addition waits for the one before
    for (int c = 0; c < even; c += COLUMNS) {
      squares += load(x + c) * load(x + c);
      more += load(x + c + LANES) * load(x + c + LANES);
    }
    if (even < whole) squares += load(x + even) * load(x + even);
    float total = horizontal_sum(squares + more);
    for (int c = whole; c < width; c++) total += widen(x[c]) * widen(x[c]);
    const float by = 1.0f / std::sqrt(total / float(width) + eps);
    for (int c = 0; c < whole; c += LANES)
      store_as(load(x + c) * broadcast(by) * (load(weight + c) + broadcast(offset)), out + c);
    for (int c = whole; c < width; c++) narrow(widen(x[c]) * by * (widen(weight[c]) + offset), out + c);
  }
};

// Rows of x, padded with zeros to whole vectors of factors, against rows of matrices.
template <typename T>
class Products {
  using F = typename Factor<T>::type;
  static constexpr int STEP = LANES * Factor<T>::pair;

 public:
  Products() = default;
  template <typename S>
  Products(const S* x, int B, int K) {
    assign(x, B, K);
  }

  template <typename S>
  void assign(const S* x, int rows_of_x, int columns) {
    B = rows_of_x, K = columns, whole = K / STEP * STEP, wide = (K + STEP - 1) / STEP * STEP;
    rows.assign(size_t(B) * wide, F{});
    for (int b = 0; b < B; b++)
      for (int c = 0; c < K; c++) rows[size_t(b) * wide + c] = factor(x[int64_t(b) * K + c]);
  }

  // dots[w][b], `many` consecutive rows of a matrix (up to 16 for one row of x, 4 for more), x rows from b on.
  template <int W, int N>
  void dots(const T* weight, int many, int b, float* to) const {
    vec sums[W][N];
    for (int w = 0; w < W; w++)
      for (int n = 0; n < N; n++) sums[w][n] = vec{};
    const T* from[W];
    for (int w = 0; w < W; w++) from[w] = weight + int64_t(std::min(w, many - 1)) * K;
    const F* x[N];
    for (int n = 0; n < N; n++) x[n] = &rows[size_t(std::min(b + n, B - 1)) * wide];
    for (int c = 0; c < whole; c += STEP) {
      vec mine[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) mine[n] = load_factors<F>(x[n] + c);
#pragma GCC unroll 16
      for (int w = 0; w < W; w++) {
        // Memory is read in strips of 16 rows, too many streams for the processor to foresee: the next strip is told.
        __builtin_prefetch(from[w] + c + int64_t(LANES) * K);
        vec theirs = load_factors<F>(from[w] + c);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sums[w][n] = multiply_add(theirs, mine[n], sums[w][n], F{});
      }
    }
    if (whole < K)
      for (int w = 0; w < W; w++) {
        T rest[STEP] = {};
        std::copy(from[w] + whole, from[w] + K, rest);
        for (int n = 0; n < N; n++)
          sums[w][n] = multiply_add(load_factors<F>(rest), load_factors<F>(x[n] + whole), sums[w][n], F{});
      }
    store(to, horizontal_sums(&sums[0][0]));
  }

  // Results of rows `at` … `at`+many-1 (at most 16) of a matrix for all rows of x: [B][16] floats.
  void strip(const T* weight, const T* bias, int64_t at, int many, float* to) const {
    alignas(64) float found[LANES];
    weight += at * K;
    if (B == 1) {
      dots<LANES, 1>(weight, many, 0, to);
    } else {
      for (int w = 0; w < many; w += 4)
        for (int b = 0; b < B; b += 4) {
          dots<4, 4>(weight + int64_t(w) * K, std::min(4, many - w), b, found);
          for (int n = 0; n < std::min(4, B - b); n++)
            for (int i = 0; i < 4; i++) to[(b + n) * LANES + w + i] = found[i * 4 + n];
        }
    }
    for (int b = 0; b < B && bias; b++)
      for (int i = 0; i < many; i++) to[b * LANES + i] += widen(bias[at + i]);
  }

  int B = 0, K = 0;

 private:
  template <typename S>
  static F factor(S x) {
    if constexpr (sizeof(S) == sizeof(T) || sizeof(F) == sizeof(float)) {
      F out;
      store_factor(x, &out);
      return out;
    } else {  // a float, as a factor of two bytes
      T out;
      narrow(x, &out);
      F same;
      std::memcpy(&same, &out, sizeof same);
      return same;
    }
  }

  int whole = 0, wide = 0;
  std::vector<F> rows;
};

}  // namespace fovea
