// Tiles of AMX: 32 x 32 sums of products of bfloat16 pairs stay in eight registers of 16 x 64 bytes.
//
// A thread owns `Tiles` while it multiplies. Knows strides in bytes, not what is multiplied.
#pragma once

#include <cstdint>
#if defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace fovea {

#if defined(__AMX_BF16__)

// All eight registers are whole while this lives.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

// See `gemm_block`: 32 rows of A, 32 columns of B, `words` a multiple of 16. The compiler does not know what the loads of
// tiles read, so it is told that all memory counts.
template <bool ADD>
inline void gemm_tiles(const float* A, int64_t stride_a, const float* B, int64_t stride_b, float* C, int64_t stride_c,
                         int words) {
  float* lower = C + 4 * stride_c;  // sixteen rows of stride_c bytes are four times as many floats
  asm volatile("" ::: "memory");
  if (ADD) {
    _tile_loadd(0, C, stride_c);
    _tile_loadd(1, C + 16, stride_c);
    _tile_loadd(2, lower, stride_c);
    _tile_loadd(3, lower + 16, stride_c);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int w = 0; w < words; w += 16) {
    const float *a = A + w, *b = B + w * stride_b / 4;
    _tile_loadd(4, a, stride_a);
    _tile_loadd(6, b, stride_b);
    _tile_loadd(7, b + 16, stride_b);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + 4 * stride_a, stride_a);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, C, stride_c);
  _tile_stored(1, C + 16, stride_c);
  _tile_stored(2, lower, stride_c);
  _tile_stored(3, lower + 16, stride_c);
  asm volatile("" ::: "memory");
}

#else

class Tiles {
 public:
  Tiles() {}
  ~Tiles() {}
};

#endif

}  // namespace fovea
