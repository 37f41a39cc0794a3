// What the last queries of a prompt attend to, summed: over queries for each key, and over pairs for each distance.
//
// A task is one query head: its keys are packed once; a few queries at a time score all of them, become softmaxes, and
// are added up while they are near, so that no map of queries and keys is ever held. Scores and sums are float32.
// Knows nothing about Python or torch, nor about what the sums are for.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../native/gemm.h"

namespace {

using namespace fovea;

constexpr int TILE = 128;

struct Problem {
  const void *q, *k;                       // [Hq,b,d], [Hkv,N,d], rows of d contiguous
  int64_t q_head, q_row, k_head, k_row;    // strides in elements
  float *columns, *distances;              // [Hq,N] each
  int query_heads, kv_heads, b, N, d;
};

// Buffers of one thread.
template <typename T>
class Worker {
  using F = typename Factor<T>::type;
  static constexpr int pair = Factor<T>::pair, ROWS = Factor<T>::rows;

 public:
  explicit Worker(const Problem& p)
      : p(p), words(words_per_row<T>(p.d)), padded(round_up(p.N, TILE)), scale(LOG2E / std::sqrt(float(p.d))) {
    tile = size_t(round_up(p.d, LANES) / pair + LANES) * TILE;
    queries.resize(size_t(ROWS) * words);
    keys.resize(size_t(padded / TILE) * tile);
    stride = ROWS + padded + ROWS + LANES;
    scores.assign(size_t(ROWS) * stride, 0.0f);
    far.resize(size_t(padded) + p.b + ROWS + LANES);
    near.resize(padded);
  }

  void run(int head) {
    const T* k = static_cast<const T*>(p.k) + head / (p.query_heads / p.kv_heads) * p.k_head;
    for (int from = 0; from < p.N; from += TILE)
      pack_keys<T>([&](int i) { return k + (from + i) * p.k_row; }, std::min(TILE, p.N - from), p.d, words, TILE,
                   &keys[from / TILE * tile]);
    std::fill(near.begin(), near.end(), 0.0f);
    std::fill(far.begin(), far.end(), 0.0f);
    for (int i = 0; i < p.b; i += ROWS) group(head, i);
    float *columns = p.columns + int64_t(head) * p.N, *distances = p.distances + int64_t(head) * p.N;
    std::copy(near.begin(), near.begin() + p.N, columns);
    std::reverse_copy(far.begin(), far.begin() + p.N, distances);
  }

 private:
  // As many queries as a product has rows, from the i-th on; those behind the last are zeros, and are not added.
  void group(int head, int i) {
    int many = std::min(ROWS, p.b - i);
    for (int r = 0; r < ROWS; r++) {
      F* to = reinterpret_cast<F*>(&queries[size_t(r) * words]);
      const T* from = static_cast<const T*>(p.q) + head * p.q_head + (i + r) * p.q_row;
      for (int c = 0; c < words * pair; c++) store_factor(c < p.d && r < many ? from[c] : T{}, to + c);
    }
    for (int at = 0; at < padded; at += COLUMNS)
      gemm_block<F, false>(queries.data(), words, &keys[at / TILE * tile + at % TILE], TILE, row(0) + at, stride, words);
    for (int r = 0; r < many; r++) by[r] = weigh(row(r), i + r);
    add(many, i);
  }

  // The r-th query's scores; before and behind them lie zeros, as many as there are queries.
  float* row(int r) { return &scores[size_t(r) * stride + ROWS]; }

  // One query's scores become weights, 0 for what it doesn't see; returns what makes them a softmax.
  float weigh(float* s, int i) {
    int seen = p.N - p.b + i + 1, whole = round_up(seen, COLUMNS);
    for (int c = seen; c < whole; c++) s[c] = -INFINITY;
    vec sums{}, more{}, shift = broadcast(-horizontal_max(s, whole) * scale);
    for (int c = 0; c < whole; c += COLUMNS) {
      vec one = exp2_as<F>(load(s + c) * broadcast(scale) + shift);
      vec two = exp2_as<F>(load(s + c + LANES) * broadcast(scale) + shift);
      sums += one, more += two;
      store(s + c, one), store(s + c + LANES, two);
    }
    std::fill(s + whole, s + padded, 0.0f);
    return 1 / horizontal_sum(sums + more);
  }

  // Softmaxes of queries i … are summed key by key, and along the diagonals: the r-th query has key c at the distance
  // that the first one has key c - r at.
  void add(int many, int i) {
    const int end = round_up(p.N - p.b + i + many, LANES);
    for (int c = 0; c < end; c += LANES) {
      vec all = load(&near[c]);
      for (int r = 0; r < many; r++) all += load(row(r) + c) * broadcast(by[r]);
      store(&near[c], all);
    }
    float* meeting = &far[p.b - 1 - i];  // of the first query's key 0
    for (int c = 1 - many; c < end; c += LANES) {
      vec all = load(meeting + c);
      for (int r = 0; r < many; r++) all += load(row(r) + c + r) * broadcast(by[r]);
      store(meeting + c, all);
    }
  }

  const Problem& p;
  const Tiles tiles;
  const int words, padded;
  const float scale;
  size_t tile, stride;
  float by[ROWS];
  Floats queries, keys, scores, near, far;
};

template <typename T>
void run(const Problem& p, int threads) {
#pragma omp parallel num_threads(std::min(threads, p.query_heads))
  {
    Worker<T> worker(p);
#pragma omp for schedule(dynamic)
    for (int head = 0; head < p.query_heads; head++) worker.run(head);
  }
}

}  // namespace

extern "C" void fovea_last_query_scores(int is_bf16, const void* q, const void* k, const int64_t* strides,
                                        float* columns, float* distances, const int32_t* sizes, int threads) {
  Problem p{q, k, strides[0], strides[1], strides[2], strides[3], columns, distances,
            sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  is_bf16 ? run<bf16>(p, threads) : run<float>(p, threads);
}
