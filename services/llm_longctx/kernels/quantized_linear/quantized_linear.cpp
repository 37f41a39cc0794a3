// Rows of x times a packed matrix of 8 or 4 bits. Knows nothing about Python, torch or models.
#include "../native/quantized_rows.h"

namespace {

using namespace fovea;

template <int BITS>
void multiply(const ByteRows& x, const void* matrix, int64_t rows, float* out, int threads) {
  const int64_t strips = (rows + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Floats found(size_t(LANES) * x.B);
#pragma omp for schedule(static)
    for (int64_t s = 0; s < strips; s++) {
      QuantizedStrip<BITS>(matrix, s, x.groups).multiply(x, found.data());
      const int many = int(std::min<int64_t>(LANES, rows - s * LANES));
      for (int b = 0; b < x.B; b++)
        std::copy_n(&found[b * LANES], many, out + b * rows + s * LANES);
    }
  }
}

}  // namespace

// x [B,K] float32 times a matrix [rows,K]: out [B,rows].
extern "C" void fovea_multiply_packed(int bits, const float* x, int B, int K, const void* matrix, int64_t rows,
                                      float* out, int threads) {
  ByteRows packed;
  packed.assign(x, B, K);
  if (bits == 4)
    multiply<4>(packed, matrix, rows, out, threads);
  else
    multiply<8>(packed, matrix, rows, out, threads);
}
