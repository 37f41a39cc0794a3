// Rows of activations in the forms that matrices of different formats are multiplied with, each made when needed.
#pragma once

#include "../native/quantized_rows.h"
#include "../native/row_products.h"
#include "decoder.h"

namespace fovea {

constexpr int STRIP = LANES;  // rows of a matrix that are multiplied at a time

inline int64_t strips_of(const Weights& m) { return (m.rows + STRIP - 1) / STRIP; }

template <typename T>
class MatrixRows {
 public:
  // Rows [B,K], which live until the next ones come.
  void assign(const float* x, int rows, int columns) {
    from = x, B = rows, K = columns;
    has_bytes = has_factors = false;
  }

  // Strip `at` of a matrix times all rows: out [B][16], with the bias; returns how many of the 16 there are.
  int multiply(const Weights& m, int64_t at, float* out) {
    const int many = int(std::min<int64_t>(STRIP, m.rows - at * STRIP));
    if (m.format == PLAIN) {
      if (!has_factors) factors.assign(from, B, K), has_factors = true;
      factors.strip(static_cast<const T*>(m.data), static_cast<const T*>(m.bias), at * STRIP, many, out);
      return many;
    }
    if (!has_bytes) bytes.assign(from, B, K), has_bytes = true;
    multiply_strip(m.format == FOUR_BITS ? 4 : 8, m.data, at, bytes, out);
    for (int b = 0; b < B && m.bias; b++)
      for (int i = 0; i < many; i++) out[b * STRIP + i] += widen(static_cast<const T*>(m.bias)[at * STRIP + i]);
    return many;
  }

 private:
  const float* from = nullptr;
  int B = 0, K = 0;
  bool has_bytes = false, has_factors = false;
  ByteRows bytes;
  Products<T> factors;
};

}  // namespace fovea
