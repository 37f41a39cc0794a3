// Rows of x times packed matrices of 8 or 4 bits. Knows nothing about Python, torch or models.
#include "../native/quantized_rows.h"
#include "../native/row_products.h"

namespace {

using namespace fovea;

constexpr int BLOCK = 128;   // rows of x that stay in the cache while strips are multiplied with them
constexpr int STRIPS = 4;    // whose results fill whole lines of the cache

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

template <typename T>
void write_strip(const float* found, const Matrix& m, int64_t at, int first, int B) {
  const int many = int(std::min<int64_t>(LANES, m.rows - at * LANES));
  for (int b = 0; b < B; b++) {
    T* to = static_cast<T*>(m.out) + (first + b) * m.rows + at * LANES;
    if (many == LANES)
      store_as(load(found + b * LANES), to);
    else
      for (int i = 0; i < many; i++) narrow(found[b * LANES + i], to + i);
  }
}

template <typename T>
void multiply(const T* x, const Matrix* matrices, int count, int B, int K, bool gated, int threads) {
  std::vector<ByteRows> blocks((B + BLOCK - 1) / BLOCK);
  for (size_t i = 0; i < blocks.size(); i++) blocks[i].resize(std::min(BLOCK, B - int(i) * BLOCK), K);
  struct Piece {  // some strips of a matrix
    int matrix;
    int64_t first, end;
  };
  std::vector<Piece> pieces;
  for (int m = 0; m < (gated ? 1 : count); m++) {
    const int64_t strips = (matrices[m].rows + LANES - 1) / LANES;
    for (int64_t at = 0; at < strips; at += STRIPS) pieces.push_back({m, at, std::min(at + STRIPS, strips)});
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int b = 0; b < B; b++) blocks[b / BLOCK].quantize(x + int64_t(b) * K, b % BLOCK);
    Floats found(size_t(LANES) * std::min(BLOCK, B)), opened(found.size());
#pragma omp for schedule(dynamic)
    for (size_t p = 0; p < pieces.size(); p++)
      for (size_t i = 0; i < blocks.size(); i++)
        for (int64_t at = pieces[p].first; at < pieces[p].end; at++) {
          const Matrix& m = matrices[pieces[p].matrix];
          multiply_strip<T>(m, at, blocks[i], found.data());
          if (gated) {
            multiply_strip<T>(matrices[1], at, blocks[i], opened.data());
            for (int c = 0; c < LANES * blocks[i].B; c += LANES)
              store(&found[c], silu(load(&found[c])) * load(&opened[c]));
          }
          write_strip<T>(found.data(), m, at, int(i) * BLOCK, blocks[i].B);
        }
  }
}

}  // namespace

// x [B,K] times matrices: of each bits, data, bias, out and rows, as 64-bit words. Biases and outputs have x's type. With
// `gated` there are two: a gate, and what it opens; silu of the first times the second goes to the first's out.
extern "C" void fovea_multiply_packed(int is_bf16, const void* x, const int64_t* matrices, int count, int B, int K,
                                      int gated, int threads) {
  std::vector<Matrix> parsed(count);
  for (int m = 0; m < count; m++) {
    const int64_t* p = matrices + 5 * m;
    parsed[m] = {p[0], reinterpret_cast<const void*>(p[1]), reinterpret_cast<const void*>(p[2]),
                 reinterpret_cast<void*>(p[3]), p[4]};
  }
  if (is_bf16)
    multiply(static_cast<const bf16*>(x), parsed.data(), count, B, K, gated, threads);
  else
    multiply(static_cast<const float*>(x), parsed.data(), count, B, K, gated, threads);
}
