// Rows of x times packed matrices of 8 or 4 bits. Knows nothing about Python, torch or models.
#include <type_traits>

#include "../native/quantized_rows.h"
#include "../native/row_products.h"

namespace {

using namespace fovea;

constexpr int BLOCK = 128;   // rows of x that stay in the cache while strips are multiplied with them
constexpr int STRIPS = 4;    // whose results fill whole lines of the cache

enum Output { NARROW, WIDE, ADDED };  // of the weights' type, float32, or added to float32 that is there

struct Matrix {
  int64_t bits;
  const void *data, *bias;  // packed; [rows] or null
  void* out;                // [B,rows]
  int64_t rows;
};

// Strip `at` of a matrix times rows of x: [B][16], with the bias.
template <typename T>
void multiply_strip(const Matrix& m, int64_t at, const ByteRows& x, float* out) {
  fovea::multiply_strip(int(m.bits), m.data, at, x, out);
  if (!m.bias) return;
  const int many = int(std::min<int64_t>(LANES, m.rows - at * LANES));
  for (int b = 0; b < x.B; b++)
    for (int i = 0; i < many; i++) out[b * LANES + i] += widen(static_cast<const T*>(m.bias)[at * LANES + i]);
}

template <typename O>
void write_strip(const float* found, const Matrix& m, int64_t at, int first, int B, bool is_added) {
  const int many = int(std::min<int64_t>(LANES, m.rows - at * LANES));
  for (int b = 0; b < B; b++) {
    const float* from = found + b * LANES;
    O* to = static_cast<O*>(m.out) + (first + b) * m.rows + at * LANES;
    if (many == LANES)
      store_as(is_added ? load(to) + load(from) : load(from), to);
    else
      for (int i = 0; i < many; i++) narrow(is_added ? widen(to[i]) + from[i] : from[i], to + i);
  }
}

template <typename X, typename T>
void multiply(const X* x, const Matrix* matrices, int count, int B, int K, const Norm<T>& norm, bool gated, Output kind,
              int threads) {
  // Memory stays with the thread: to get it from the system each time costs a tenth of a long chunk's time.
  thread_local std::vector<ByteRows> kept;
  std::vector<ByteRows>& blocks = kept;
  const size_t many = (B + BLOCK - 1) / BLOCK;
  if (blocks.size() < many) blocks.resize(many);
  for (size_t i = 0; i < many; i++) blocks[i].resize(std::min(BLOCK, B - int(i) * BLOCK), K);
  struct Piece {  // some strips of a matrix
    int matrix;
    int64_t first, end;
  };
  std::vector<Piece> pieces;
  for (int m = 0; m < (gated ? 1 : count); m++) {
    const int64_t strips = (matrices[m].rows + LANES - 1) / LANES;
    for (int64_t at = 0; at < strips; at += STRIPS) pieces.push_back({m, at, std::min(at + STRIPS, strips)});
  }
  const int busy = int(std::min<int64_t>(threads, pieces.size()));
#pragma omp parallel num_threads(busy) if (busy > 1)
  {
    Floats normed(norm.weight ? K : 0);
#pragma omp for schedule(static)
    for (int b = 0; b < B; b++) {
      const X* row = x + int64_t(b) * K;
      if (norm.weight)
        norm.apply(row, normed.data(), K), blocks[b / BLOCK].quantize(normed.data(), b % BLOCK);
      else
        blocks[b / BLOCK].quantize(row, b % BLOCK);
    }
    Floats found(size_t(LANES) * std::min(BLOCK, B)), opened(found.size());
#pragma omp for schedule(dynamic)
    for (size_t p = 0; p < pieces.size(); p++)
      for (size_t i = 0; i < many; i++)
        for (int64_t at = pieces[p].first; at < pieces[p].end; at++) {
          const Matrix& m = matrices[pieces[p].matrix];
          multiply_strip<T>(m, at, blocks[i], found.data());
          if (gated) {
            multiply_strip<T>(matrices[1], at, blocks[i], opened.data());
            for (int c = 0; c < LANES * blocks[i].B; c += LANES)
              store(&found[c], silu(load(&found[c])) * load(&opened[c]));
          }
          if (kind == NARROW)
            write_strip<T>(found.data(), m, at, int(i) * BLOCK, blocks[i].B, false);
          else
            write_strip<float>(found.data(), m, at, int(i) * BLOCK, blocks[i].B, kind == ADDED);
        }
  }
}

}  // namespace

// x [B,K] times matrices: of each bits, data, bias, out and rows, as 64-bit words. `is_bf16` is the type of biases, norm
// and outputs; x is of it too, unless `has_stream`: then it is float32. `norm`: weight of a norm that x passes first, or
// null. `output`: see `Output`. With `gated` there are two matrices: a gate, and what it opens; silu of the first
// times the second goes to the first's out.
extern "C" void fovea_multiply_packed(int is_bf16, int has_stream, const void* x, const int64_t* matrices, int count,
                                      int B, int K, const void* norm, float eps, float offset, int gated, int output,
                                      int threads) {
  std::vector<Matrix> parsed(count);
  for (int m = 0; m < count; m++) {
    const int64_t* p = matrices + 5 * m;
    parsed[m] = {p[0], reinterpret_cast<const void*>(p[1]), reinterpret_cast<const void*>(p[2]),
                 reinterpret_cast<void*>(p[3]), p[4]};
  }
  auto by = [&](auto* rows, auto* weight) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(weight)>>;
    multiply(rows, parsed.data(), count, B, K, Norm<T>{weight, eps, offset}, gated, Output(output), threads);
  };
  if (is_bf16 && has_stream)
    by(static_cast<const float*>(x), static_cast<const bf16*>(norm));
  else if (is_bf16)
    by(static_cast<const bf16*>(x), static_cast<const bf16*>(norm));
  else
    by(static_cast<const float*>(x), static_cast<const float*>(norm));
}
