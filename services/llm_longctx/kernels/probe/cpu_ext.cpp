// What the last queries of a prompt attend to, summed: over queries for each key, and over pairs for each distance.
//
// A task is one query head: its keys are packed once; a few queries at a time score all of them, become a softmax, and
// are added up, so that no map of queries and keys is ever held. Scores and sums are float32. Knows nothing about Python
// or torch, nor about what the sums are for.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../native/products.h"

namespace {

using namespace fovea;

constexpr int TILE = 128;

int up(int n, int to) { return (n + to - 1) / to * to; }

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
      : p(p), words(words_of<T>(p.d)), padded(up(p.N, TILE)), scale(LOG2E / std::sqrt(float(p.d))) {
    tile = size_t(up(p.d, LANES) / pair + LANES) * TILE;
    queries.resize(size_t(ROWS) * words);
    keys.resize(size_t(padded / TILE) * tile);
    scores.resize(size_t(ROWS) * padded);
    far.resize(size_t(padded) + p.b + LANES);
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
      for (int c = 0; c < words * pair; c++) put(c < p.d && r < many ? from[c] : T{}, to + c);
    }
    for (int at = 0; at < padded; at += COLUMNS)
      product<F, false>(queries.data(), words, &keys[at / TILE * tile + at % TILE], TILE, &scores[at], padded, words);
    for (int r = 0; r < many; r++) add(&scores[size_t(r) * padded], i + r);
  }

  // One query's scores become its softmax; key c lies `b - 1 - i` before the place where equal distances meet.
  void add(float* s, int i) {
    int seen = p.N - p.b + i + 1, whole = up(seen, LANES);
    for (int c = seen; c < whole; c++) s[c] = -INFINITY;
    vec top = load(s);
    for (int c = LANES; c < whole; c += LANES) top = larger(top, load(s + c));
    vec sums{}, shift = splat(-largest(top) * scale);
    for (int c = 0; c < whole; c += LANES) {
      vec weight = power(load(s + c) * splat(scale) + shift);
      sums += weight;
      store(s + c, weight);
    }
    vec by = splat(1 / sum(sums));
    float* meeting = &far[p.b - 1 - i];
    for (int c = 0; c < whole; c += LANES) {
      vec share = load(s + c) * by;
      store(&near[c], load(&near[c]) + share);
      store(meeting + c, load(meeting + c) + share);
    }
  }

  static vec power(vec x) { return sizeof(T) == 2 ? about_power_of_two(x) : power_of_two(x); }

  const Problem& p;
  const Tiles tiles;
  const int words, padded;
  const float scale;
  size_t tile;
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

extern "C" void fovea_probe(int is_bf16, const void* q, const void* k, const int64_t* strides, float* columns,
                            float* distances, const int32_t* sizes, int threads) {
  Problem p{q, k, strides[0], strides[1], strides[2], strides[3], columns, distances,
            sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  is_bf16 ? run<bf16>(p, threads) : run<float>(p, threads);
}
