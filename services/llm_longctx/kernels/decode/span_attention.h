// Attention of a few query rows over a span of entries, as a part of a softmax that is joined with others.
//
// Keys and values stream through once, whatever the group. Knows nothing about threads, pages or who asks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../native/gemm.h"

namespace fovea {

constexpr int TILE = 128;   // entries whose scores are held at a time

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
  Part(int G, int d) : G(G), d(d), wide(round_up(d, STEP)), scale(LOG2E / std::sqrt(float(d))) {
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

 private:
  void tile(const Problem& p, int64_t at, int n, float* most, float* total, float* out) {
    Rows keys = rows(static_cast<const T*>(p.k) + at * p.k_row, p.k_row, n);
    for (int g = 0; g < G; g++) score(keys, g, n);
    for (int g = 0; g < G; g++) {
      float by = weigh(p.log_weights ? p.log_weights + at : nullptr, &scores[g * TILE], n, most[g], total[g]);
      if (by != 1.0f)
        for (int c = 0; c < wide; c += LANES) store(out + g * wide + c, load(out + g * wide + c) * broadcast(by));
    }
    Rows values = rows(static_cast<const T*>(p.v) + at * p.v_row, p.v_row, n);
    for (int g = 0; g < G; g += 4) {
      int many = std::min(4, G - g);
      if (many == 1) mix<1>(values, n, g, out);
      if (many == 2) mix<2>(values, n, g, out);
      if (many == 3) mix<3>(values, n, g, out);
      if (many == 4) mix<4>(values, n, g, out);
    }
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

  // Scores become weights relative to the largest so far; returns what earlier ones are multiplied by.
  float weigh(const float* log_weights, float* s, int n, float& most, float& total) {
    for (int i = 0; i < n; i += LANES) store(s + i, load(s + i) * broadcast(scale));
    if (log_weights)
      for (int i = 0; i < n; i++) s[i] += log_weights[i] * LOG2E;
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

  const int G, d, wide;
  const float scale;
  std::vector<F> query;
  std::vector<T> padded;
  std::vector<float> scores;
};

}  // namespace fovea
