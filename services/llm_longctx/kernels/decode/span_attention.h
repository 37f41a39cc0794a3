// Attention of a few query rows over a span of entries, as a part of a softmax that is joined with others.
//
// Keys and values stream through once, whatever the group. Packed entries are never widened as a whole: scales go into
// queries and weights, and zeros are added at the end; for rotated ones queries are rotated, and what was mixed is rotated
// back. Knows nothing about threads, pages or who asks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../native/gemm.h"
#include "../packed_pages/rotated_page.h"

namespace fovea {

constexpr int TILE = 128;  // entries whose scores are held at a time
constexpr int MOST = 512;  // channels of packed entries

struct Problem {
  const void *k, *v;         // [n,d], rows of d contiguous
  int64_t k_row, v_row, n;   // strides in elements
  const float* log_weights;  // [n] or null
};

// One span of one problem: its scores' largest, its sum and what it mixed, per query row.
template <typename T>
class Part {
  using F = typename Factor<T>::type;
  static constexpr int STEP = LANES * Factor<T>::pair;  // entries of a row in one vector of factors

 public:
  Part(int G, int d) : G(G), d(d), wide(round_up(d, STEP)), width(round_up(d, LANES)), scale(LOG2E / std::sqrt(float(d))) {
    query.resize(size_t(G) * wide);
    scores.resize(size_t(G) * TILE);
    padded.resize(wide == d ? 0 : size_t(TILE) * wide);
  }

  void run(const T* rows, const Problem& p, int64_t from, int64_t to, float* most, float* total, float* out) {
    for (int g = 0; g < G; g++)
      for (int c = 0; c < wide; c++) store_factor(c < d ? rows[g * d + c] : T{}, &query[g * wide + c]);
    std::fill(most, most + G, -INFINITY);
    std::fill(total, total + G, 0.0f);
    std::fill(out, out + size_t(G) * wide, 0.0f);
    for (int64_t i = from; i < to; i += TILE) tile(p, i, int(std::min<int64_t>(TILE, to - i)), most, total, out);
  }

  // Entries from … to-1 of a store of packed pages; `log_weights` as the store has them, or null.
  template <int FORMAT>
  void run_packed(const T* rows, const uint8_t* store, const float* log_weights, int64_t from, int64_t to, float* most,
                  float* total, float* out) {
    constexpr bool is_rotated = FORMAT > ROTATED;
    plain.resize(size_t(G) * width);
    for (int g = 0; g < G; g++)
      for (int c = 0; c < width; c++) plain[g * width + c] = c < d ? widen(rows[g * d + c]) : 0.0f;
    if constexpr (is_rotated) rotate_queries<FORMAT - ROTATED>(store + from / PAGE * page_bytes<FORMAT>(d));
    std::fill(most, most + G, -INFINITY);
    std::fill(total, total + G, 0.0f);
    std::fill(out, out + size_t(G) * wide, 0.0f);
    for (int64_t first = from / PAGE * PAGE; first < to; first += TILE) {
      const int n = int(std::min<int64_t>(TILE, to - first)), pages = (n + PAGE - 1) / PAGE;
      const uint8_t* page = store + first / PAGE * page_bytes<FORMAT>(d);
      with_rows([&](auto many, int g) {
        if constexpr (is_rotated)
          score_rotated<FORMAT - ROTATED, many()>(page, pages, g);
        else
          score_packed<FORMAT, many()>(page, pages, g);
      });
      for (int g = 0; g < G; g++) {
        const int hidden = int(std::max<int64_t>(from - first, 0));
        rescale(g, weigh(log_weights ? log_weights + first : nullptr, &scores[g * TILE], n, most[g], total[g], hidden),
                out);
      }
      with_rows([&](auto many, int g) {
        if constexpr (is_rotated)
          mix_rotated<FORMAT - ROTATED, many()>(page, pages, g, out);
        else
          mix_packed<FORMAT, many()>(page, pages, g, out);
      });
    }
    for (int g = 0; g < G && is_rotated; g++) {
      hadamard(out + size_t(g) * wide, d);
      for (int c = 0; c < d; c++) out[size_t(g) * wide + c] *= signs[c];
    }
  }

 private:
  // Four query rows at a time, and what is left.
  template <typename Work>
  void with_rows(Work work) {
    for (int g = 0; g < G; g += 4) {
      const int many = std::min(4, G - g);
      if (many == 1) work(std::integral_constant<int, 1>(), g);
      if (many == 2) work(std::integral_constant<int, 2>(), g);
      if (many == 3) work(std::integral_constant<int, 3>(), g);
      if (many == 4) work(std::integral_constant<int, 4>(), g);
    }
  }

  // What was mixed so far, to the measure of a larger score.
  void rescale(int g, float by, float* out) {
    if (by == 1.0f) return;
    for (int c = 0; c < wide; c += LANES) store(out + g * wide + c, load(out + g * wide + c) * broadcast(by));
  }

  template <int BITS>
  void rotate_queries(const uint8_t* page) {
    signs.resize(d);
    signs_of(RotatedPage<BITS>(page, d).head(), d, signs.data());
    for (int g = 0; g < G; g++) {
      for (int c = 0; c < d; c++) plain[g * width + c] *= signs[c];
      hadamard(&plain[g * width], d);
    }
  }

  template <int BITS, int MANY>
  void score_rotated(const uint8_t* from, int pages, int g) {
    using Pair = LevelPair<BITS, T>;
    alignas(64) typename Pair::Number turned[MANY][MOST];
    for (int r = 0; r < MANY; r++)
      for (int c = 0; c < width; c += LANES) store_as(load(&plain[size_t(g + r) * width + c]), &turned[r][c]);
    for (int p = 0; p < pages; p++, from += RotatedPage<BITS>::bytes(d)) {
      const RotatedPage<BITS> page(from, d);
      vec sums[MANY][2]{};
      for (int b = 0; b < page.blocks; b++) {
        const CodeBlock<BITS> block = page.keys(b);
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
          const Pair pair(block, i);
          for (int r = 0; r < MANY; r++) sums[r][i % 2] = pair.add_to(sums[r][i % 2], &turned[r][b * LANES + 2 * i]);
        }
      }
      for (int r = 0; r < MANY; r++)
        store(&scores[(g + r) * TILE + p * PAGE], (sums[r][0] + sums[r][1]) * page.key_scales());
    }
  }

  template <int BITS, int MANY>
  void mix_rotated(const uint8_t* from, int pages, int g, float* out) {
    const int blocks = width / LANES;
    int b = 0;
    for (; b + 4 <= blocks; b += 4) mix_blocks<BITS, MANY, 4>(from, pages, g, b, out);
    for (; b < blocks; b++) mix_blocks<BITS, MANY, 1>(from, pages, g, b, out);
  }

  template <int BITS, int MANY, int BLOCKS>
  void mix_blocks(const uint8_t* from, int pages, int g, int b, float* out) {
    using Pair = LevelPair<BITS, T>;
    alignas(64) typename Pair::Number weights[MANY][PAGE];
    vec mixed[MANY][BLOCKS];
    for (int r = 0; r < MANY; r++)
      for (int j = 0; j < BLOCKS; j++) mixed[r][j] = load(out + (g + r) * wide + (b + j) * LANES);
    for (int p = 0; p < pages; p++, from += RotatedPage<BITS>::bytes(d)) {
      const RotatedPage<BITS> page(from, d);
      const vec scales = page.value_scales();
      for (int r = 0; r < MANY; r++) store_as(load(&scores[(g + r) * TILE + p * PAGE]) * scales, weights[r]);
      for (int j = 0; j < BLOCKS; j++) {
        const CodeBlock<BITS> block = page.values(b + j);
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
          const Pair pair(block, i);
          for (int r = 0; r < MANY; r++) mixed[r][j] = pair.add_to(mixed[r][j], &weights[r][2 * i]);
        }
      }
    }
    for (int r = 0; r < MANY; r++)
      for (int j = 0; j < BLOCKS; j++) store(out + (g + r) * wide + (b + j) * LANES, mixed[r][j]);
  }

  template <int BITS, int MANY>
  void score_packed(const uint8_t* from, int pages, int g) {
    using Page = PackedPage<BITS>;
    using Pair = CodePair<BITS, T>;
    alignas(64) typename Pair::Number scaled[MANY][MOST];
    for (int p = 0; p < pages; p++, from += Page::bytes(d)) {
      const Page page(from, d);
      vec dots[MANY]{}, sums[MANY][2]{};
      for (int c = 0; c < width; c += LANES) {
        vec scales = page.key_scales(c), zeros = page.key_zeros(c);
        for (int r = 0; r < MANY; r++) {
          vec x = load(&plain[size_t(g + r) * width + c]) * scales;
          store_as(x, &scaled[r][c]);
          dots[r] += x * zeros;
        }
      }
      for (int c = 0; c < width; c += Page::STEPS) {
        const uvec codes = page.key_codes(c / Page::STEPS);
#pragma GCC unroll 4
        for (int i = 0; i < Page::STEPS / 2; i++) {
          const Pair pair(codes, i);
          for (int r = 0; r < MANY; r++) sums[r][i % 2] = pair.add_to(sums[r][i % 2], &scaled[r][c + 2 * i]);
        }
      }
      for (int r = 0; r < MANY; r++)
        store(&scores[(g + r) * TILE + p * PAGE], sums[r][0] + sums[r][1] + broadcast(horizontal_sum(dots[r])));
    }
  }

  template <int BITS, int MANY>
  void mix_packed(const uint8_t* from, int pages, int g, float* out) {
    for (int c = 0; c < width; c += VALUE_GROUP) {
      if (width - c >= VALUE_GROUP)
        mix_group<BITS, MANY, VALUE_GROUP / LANES>(from, pages, g, c, out);
      else
        for (int b = c; b < width; b += LANES) mix_group<BITS, MANY, 1>(from, pages, g, b, out);
    }
  }

  // `BLOCKS` vectors of channels of `MANY` query rows stay in registers while all pages pass.
  template <int BITS, int MANY, int BLOCKS>
  void mix_group(const uint8_t* from, int pages, int g, int c, float* out) {
    using Page = PackedPage<BITS>;
    vec mixed[MANY][BLOCKS], zeros[MANY];
    using Pair = CodePair<BITS, T>;
    alignas(64) typename Pair::Number weights[MANY][PAGE];
    for (int r = 0; r < MANY; r++) {
      zeros[r] = vec{};
      for (int j = 0; j < BLOCKS; j++) mixed[r][j] = load(out + (g + r) * wide + c + j * LANES);
    }
    for (int p = 0; p < pages; p++, from += Page::bytes(d)) {
      const Page page(from, d);
      const vec scales = page.value_scales(c / VALUE_GROUP), zero = page.value_zeros(c / VALUE_GROUP);
      for (int r = 0; r < MANY; r++) {
        vec weight = load(&scores[(g + r) * TILE + p * PAGE]) * scales;
        store_as(weight, weights[r]);
        zeros[r] += weight * zero;
      }
      for (int part = 0; part < PAGE / Page::STEPS; part++) {
        uvec codes[BLOCKS];
        for (int j = 0; j < BLOCKS; j++) codes[j] = page.value_codes(c / LANES + j, part);
#pragma GCC unroll 4
        for (int i = 0; i < Page::STEPS / 2; i++)
          for (int j = 0; j < BLOCKS; j++) {
            const Pair pair(codes[j], i);
            for (int r = 0; r < MANY; r++)
              mixed[r][j] = pair.add_to(mixed[r][j], &weights[r][part * Page::STEPS + 2 * i]);
          }
      }
    }
    for (int r = 0; r < MANY; r++) {
      const vec all = broadcast(horizontal_sum(zeros[r]));
      for (int j = 0; j < BLOCKS; j++) store(out + (g + r) * wide + c + j * LANES, mixed[r][j] + all);
    }
  }

  void tile(const Problem& p, int64_t at, int n, float* most, float* total, float* out) {
    Rows keys = rows(static_cast<const T*>(p.k) + at * p.k_row, p.k_row, n);
    for (int g = 0; g < G; g++) score(keys, g, n);
    for (int g = 0; g < G; g++)
      rescale(g, weigh(p.log_weights ? p.log_weights + at : nullptr, &scores[g * TILE], n, most[g], total[g]), out);
    Rows values = rows(static_cast<const T*>(p.v) + at * p.v_row, p.v_row, n);
    with_rows([&](auto many, int g) { mix<many()>(values, n, g, out); });
  }

  struct Rows {
    const T* begin;
    int64_t stride;
  };

  // The rows as they lie, or, where vectors don't divide them, a padded copy.
  Rows rows(const T* from, int64_t stride, int n) {
    if (wide == d) return {from, stride};
    for (int i = 0; i < n; i++) {
      std::copy(from + i * stride, from + i * stride + d, &padded[size_t(i) * wide]);
      std::fill(&padded[size_t(i) * wide] + d, &padded[size_t(i) * wide] + wide, T{});
    }
    return {padded.data(), wide};
  }

  void score(const Rows& keys, int g, int n) {
    const F* q = &query[size_t(g) * wide];
    for (int i = 0; i < n; i += LANES) {
      vec dots[LANES];
#pragma GCC unroll 16
      for (int j = 0; j < LANES; j++) {
        const T* key = keys.begin + std::min(i + j, n - 1) * keys.stride;
        vec dot{};
        for (int c = 0; c < wide; c += STEP)
          dot = multiply_add(load_factors<F>(q + c), load_factors<F>(key + c), dot, F{});
        dots[j] = dot;
      }
      store(&scores[g * TILE + i], horizontal_sums(dots));
    }
  }

  // Scores become weights relative to the largest so far, 0 for the first `hidden`; returns what earlier ones are
  // multiplied by.
  float weigh(const float* log_weights, float* s, int n, float& most, float& total, int hidden = 0) {
    for (int i = 0; i < n; i += LANES) store(s + i, load(s + i) * broadcast(scale));
    if (log_weights)
      for (int i = hidden; i < n; i++) s[i] += log_weights[i] * LOG2E;
    std::fill(s, s + hidden, -INFINITY);
    for (int i = n; i < round_up(n, LANES); i++) s[i] = -INFINITY;
    vec top = load(s);
    for (int i = LANES; i < n; i += LANES) top = maximum(top, load(s + i));
    float now = std::max(most, horizontal_max(top)), by = most == now ? 1.0f : std::exp2(most - now);
    vec sums{}, shift = broadcast(now == -INFINITY ? 0.0f : -now);
    for (int i = 0; i < n; i += LANES) {
      vec weight = exp2_vec(load(s + i) + shift);
      sums += weight;
      store(s + i, weight);
    }
    most = now, total = total * by + horizontal_sum(sums);
    return by;
  }

  template <int MANY>
  void mix(const Rows& values, int n, int g, float* out) {
    constexpr int AT_ONCE = 4;
    for (int c = 0; c < wide; c += AT_ONCE * LANES) {
      int vectors = std::min(AT_ONCE, (wide - c) / LANES);
      if (vectors == AT_ONCE)
        strip<MANY, AT_ONCE>(values, n, g, c, out);
      else
        for (int j = 0; j < vectors; j++) strip<MANY, 1>(values, n, g, c + j * LANES, out);
    }
  }

  // `VECTORS` vectors of `MANY` query rows stay in registers while all values pass.
  template <int MANY, int VECTORS>
  void strip(const Rows& values, int n, int g, int c, float* out) {
    vec mixed[MANY][VECTORS];
    for (int r = 0; r < MANY; r++)
      for (int j = 0; j < VECTORS; j++) mixed[r][j] = load(out + (g + r) * wide + c + j * LANES);
    for (int i = 0; i < n; i++) {
      const T* value = values.begin + i * values.stride + c;
      vec v[VECTORS];
      for (int j = 0; j < VECTORS; j++) v[j] = load(value + j * LANES);
      for (int r = 0; r < MANY; r++) {
        vec weight = broadcast(scores[(g + r) * TILE + i]);
        for (int j = 0; j < VECTORS; j++) mixed[r][j] += v[j] * weight;
      }
    }
    for (int r = 0; r < MANY; r++)
      for (int j = 0; j < VECTORS; j++) store(out + (g + r) * wide + c + j * LANES, mixed[r][j]);
  }

  const int G, d, wide, width;  // channels padded to vectors of factors, and to vectors of floats
  const float scale;
  std::vector<F> query;
  std::vector<T> padded;
  std::vector<float> scores;
  Floats plain, signs;  // packed entries: the query rows, and the rotation's signs
};

}  // namespace fovea
