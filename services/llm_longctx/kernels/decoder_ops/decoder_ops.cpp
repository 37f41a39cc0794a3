// What a layer does between attentions: products of a few rows with matrices, norms, rotations and gates, each one pass.
//
// While decoding, a matrix is read once for up to four rows and the time is that of its memory; the order of additions
// does not depend on how many rows there are, so a row's result does not either. Sums are float32, inputs and outputs of
// one type. Knows nothing about Python, torch or models.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../native/row_products.h"

namespace {

using namespace fovea;

constexpr int64_t GRAIN = 1 << 15;  // entries that are worth a thread of their own

struct Matrix {
  const void *weight, *bias;  // [rows,K] contiguous; [rows] or null
  void* out;                  // [B,rows]
  int64_t rows;
};

template <typename X, typename T>
void norm(const X* x, const Norm<T>& how, T* out, int64_t rows, int width, int threads) {
  int busy = int(std::min<int64_t>(threads, std::max<int64_t>(rows * width / GRAIN, 1)));
#pragma omp parallel for num_threads(busy) schedule(static) if (busy > 1)
  for (int64_t r = 0; r < rows; r++) how.apply(x + r * width, out + r * width, width);
}

// What a product reads: rows of x as they are, or normed into a buffer.
template <typename T>
const T* input(const T* x, int B, int K, const Norm<T>& how, std::vector<T>& buffer) {
  if (!how.weight) return x;
  buffer.resize(size_t(B) * K);
  norm(x, how, buffer.data(), B, K, 1);
  return buffer.data();
}

#if defined(__AMX_BF16__)
// More rows of x than `Products` is for: 32 rows of a matrix at a time are multiplied, as they lie, with x packed once.
class TiledProducts {
  static constexpr int ROWS = Factor<bf16>::rows;

 public:
  TiledProducts(const bf16* x, int B, int K, const Norm<bf16>& how)
      : B(B), K(K), wide((B + COLUMNS - 1) / COLUMNS * COLUMNS), words(words_per_row<bf16>(K)) {
    std::vector<bf16> normed;
    x = input(x, B, K, how, normed);
    packed.resize(size_t(words + LANES) * wide);
    pack_keys<bf16>([&](int b) { return x + int64_t(b) * K; }, B, K, words, wide, packed.data());
  }

  // Results of rows `at` … `at`+31 of a matrix for all rows of x: [32][wide] floats, with the bias.
  void strip(const Matrix& m, int64_t at, float* to) const {
    const float* rows = reinterpret_cast<const float*>(static_cast<const bf16*>(m.weight) + at * K);
    for (int b = 0; b < wide; b += COLUMNS)
      gemm_block<bf16, false>(rows, K / 2, packed.data() + b, wide, to + b, wide, words);
    if (m.bias)
      for (int i = 0; i < ROWS; i++)
        for (int b = 0; b < B; b++) to[i * wide + b] += widen(static_cast<const bf16*>(m.bias)[at + i]);
  }

  // The strip's columns become rows of the output.
  void write(const float* strip, const Matrix& m, int64_t at) const {
    alignas(64) float turned[LANES][LANES];
    for (int i = 0; i < ROWS; i += LANES)
      for (int b = 0; b < B; b += LANES) {
        const uint32_t* from[LANES];
        for (int j = 0; j < LANES; j++) from[j] = reinterpret_cast<const uint32_t*>(strip + (i + j) * wide + b);
        transpose(from, reinterpret_cast<uint32_t*>(turned), LANES);
        for (int n = 0; n < std::min(LANES, B - b); n++)
          store_as(load(turned[n]), static_cast<bf16*>(m.out) + (b + n) * m.rows + at + i);
      }
  }

  const int B, K, wide, words;

 private:
  Floats packed;
};

void tiled(const bf16* x, const Matrix* matrices, int count, int B, int K, const Norm<bf16>& how, bool gated,
           int threads) {
  TiledProducts work(x, B, K, how);
  constexpr int ROWS = Factor<bf16>::rows;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Tiles tiles;
    Floats found(size_t(ROWS) * work.wide), opened(gated ? found.size() : 0);
    for (int m = 0; m < (gated ? 1 : count); m++) {
#pragma omp for schedule(static) nowait
      for (int64_t at = 0; at < matrices[m].rows; at += ROWS) {
        work.strip(matrices[m], at, found.data());
        if (gated) {
          work.strip(matrices[1], at, opened.data());
          for (size_t i = 0; i < found.size(); i += LANES)
            store(&found[i], silu(load(&found[i])) * load(&opened[i]));
        }
        work.write(found.data(), matrices[m], at);
      }
    }
  }
}
#endif

template <typename T>
void products(const T* x, const Matrix* matrices, int count, int B, int K, const Norm<T>& how, bool gated, bool is_wide,
              int threads) {
  std::vector<T> normed;
  const Products<T> work(input(x, B, K, how, normed), B, K);
  // Strips of 16 rows, numbered through all matrices; a gate and what it opens are read together.
  const int through = gated ? 1 : count;
  std::vector<int64_t> first(through + 1);
  for (int m = 0; m < through; m++) first[m + 1] = first[m] + (matrices[m].rows + LANES - 1) / LANES;
  const int64_t strips = first[through];
  int busy = int(std::min<int64_t>(threads, std::max<int64_t>(strips * LANES * K / GRAIN, 1)));
#pragma omp parallel num_threads(busy) if (busy > 1)
  {
    Floats found(size_t(LANES) * B), opened(gated ? size_t(LANES) * B : 0);
#pragma omp for schedule(static)
    for (int64_t s = 0; s < strips; s++) {
      int m = int(std::upper_bound(first.begin(), first.end(), s) - first.begin()) - 1;
      const Matrix& to = matrices[m];
      int64_t at = (s - first[m]) * LANES;
      int many = int(std::min<int64_t>(LANES, to.rows - at));
      work.strip(static_cast<const T*>(to.weight), static_cast<const T*>(to.bias), at, many, found.data());
      if (gated) {
        work.strip(static_cast<const T*>(matrices[1].weight), static_cast<const T*>(matrices[1].bias), at, many,
                   opened.data());
        for (int i = 0; i < LANES * B; i += LANES) store(&found[i], silu(load(&found[i])) * load(&opened[i]));
      }
      for (int b = 0; b < B; b++)
        for (int i = 0; i < many; i++) {
          const int64_t to_entry = b * to.rows + at + i;
          if (is_wide)
            static_cast<float*>(to.out)[to_entry] = found[b * LANES + i];
          else
            narrow(found[b * LANES + i], static_cast<T*>(to.out) + to_entry);
        }
    }
  }
}

// Heads x [tokens,heads,d] turned: x · cos + (x with its halves swapped) · sin, tables [tokens,d].
template <typename T>
void rotate(const T* x, const T* cos, const T* sin, T* out, int64_t tokens, int heads, int d, int threads) {
  const int half = d / 2, whole = half / LANES * LANES;
  int busy = int(std::min<int64_t>(threads, std::max<int64_t>(tokens * heads * d / GRAIN, 1)));
#pragma omp parallel for num_threads(busy) schedule(static) if (busy > 1)
  for (int64_t t = 0; t < tokens; t++)
    for (int h = 0; h < heads; h++) {
      const T *low = x + (t * heads + h) * d, *high = low + half, *c = cos + t * d, *s = sin + t * d;
      T* to = out + (t * heads + h) * d;
      for (int i = 0; i < whole; i += LANES) {
        vec a = load(low + i), b = load(high + i);
        store_as(a * load(c + i) + b * load(s + i), to + i);
        store_as(b * load(c + half + i) + a * load(s + half + i), to + half + i);
      }
      for (int i = whole; i < half; i++) {
        float a = widen(low[i]), b = widen(high[i]);
        narrow(a * widen(c[i]) + b * widen(s[i]), to + i);
        narrow(b * widen(c[half + i]) + a * widen(s[half + i]), to + half + i);
      }
    }
}

template <typename T>
void gate(const T* closed, const T* opened, T* out, int64_t n, int threads) {
  const int64_t whole = n / LANES * LANES;
  int busy = int(std::min<int64_t>(threads, std::max<int64_t>(n / GRAIN, 1)));
#pragma omp parallel for num_threads(busy) schedule(static) if (busy > 1)
  for (int64_t i = 0; i < whole; i += LANES) store_as(silu(load(closed + i)) * load(opened + i), out + i);
  for (int64_t i = whole; i < n; i++) {
    float x = widen(closed[i]);
    narrow(x / (1.0f + std::exp(-x)) * widen(opened[i]), out + i);
  }
}

}  // namespace

// `matrices`: per matrix weight, bias, out and rows, as 64-bit words. With `gated` there are two: a gate, and what it
// opens; silu of the first times the second goes to the first's out.
// `norm`: weight of a norm that x passes first, or null. `wide`: outputs are float32 whatever x is, up to 16 rows of it.
extern "C" void fovea_multiply(int is_bf16, const void* x, const int64_t* matrices, int count, int B, int K,
                               const void* norm, float eps, float offset, int gated, int wide, int threads) {
  std::vector<Matrix> parsed(count);
  for (int m = 0; m < count; m++) {
    const int64_t* p = matrices + 4 * m;
    parsed[m] = {reinterpret_cast<const void*>(p[0]), reinterpret_cast<const void*>(p[1]),
                 reinterpret_cast<void*>(p[2]), p[3]};
  }
#if defined(__AMX_BF16__)
  const bool whole = K % 32 == 0 && std::all_of(parsed.begin(), parsed.end(), [](auto& m) { return m.rows % 32 == 0; });
  if (is_bf16 && B > LANES && whole)
    return tiled(static_cast<const bf16*>(x), parsed.data(), count, B, K,
                 Norm<bf16>{static_cast<const bf16*>(norm), eps, offset}, gated, threads);
#endif
  if (is_bf16)
    products(static_cast<const bf16*>(x), parsed.data(), count, B, K,
             Norm<bf16>{static_cast<const bf16*>(norm), eps, offset}, gated, wide, threads);
  else
    products(static_cast<const float*>(x), parsed.data(), count, B, K,
             Norm<float>{static_cast<const float*>(norm), eps, offset}, gated, wide, threads);
}

// `is_bf16`: what weight and out are. `is_wide`: x is float32 all the same.
extern "C" void fovea_norm(int is_bf16, int is_wide, const void* x, const void* weight, void* out, int64_t rows,
                           int width, float eps, float offset, int threads) {
  auto by = [&](auto* x, auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    norm(x, Norm<T>{static_cast<const T*>(weight), eps, offset}, to, rows, width, threads);
  };
  if (is_bf16 && is_wide)
    by(static_cast<const float*>(x), static_cast<bf16*>(out));
  else if (is_bf16)
    by(static_cast<const bf16*>(x), static_cast<bf16*>(out));
  else
    by(static_cast<const float*>(x), static_cast<float*>(out));
}

extern "C" void fovea_rotate(int is_bf16, const void* q, const void* k, const void* cos, const void* sin, void* q_out,
                             void* k_out, int64_t tokens, int q_heads, int k_heads, int d, int threads) {
  auto both = [&](auto* kind) {
    using T = std::remove_pointer_t<decltype(kind)>;
    auto turn = [&](const void* x, void* out, int heads) {
      rotate(static_cast<const T*>(x), static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<T*>(out),
             tokens, heads, d, threads);
    };
    turn(q, q_out, q_heads);
    turn(k, k_out, k_heads);
  };
  if (is_bf16)
    both(static_cast<bf16*>(nullptr));
  else
    both(static_cast<float*>(nullptr));
}

extern "C" void fovea_gate(int is_bf16, const void* closed, const void* opened, void* out, int64_t n, int threads) {
  if (is_bf16)
    gate(static_cast<const bf16*>(closed), static_cast<const bf16*>(opened), static_cast<bf16*>(out), n, threads);
  else
    gate(static_cast<const float*>(closed), static_cast<const float*>(opened), static_cast<float*>(out), n, threads);
}
