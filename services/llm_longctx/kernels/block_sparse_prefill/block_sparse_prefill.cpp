// Block-sparse causal attention of many queries: one pass over tiles of kept keys with an online softmax.
//
// A task is one row of blocks of one head of the mask: all its queries (of one query head, or of the whole group) against
// the key blocks kept for it. Neighbouring or not, kept keys are packed into tiles of up to 128, so that small key blocks
// cost no more than large ones. Scores and sums are float32. Knows nothing about Python or torch.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../native/gemm.h"

namespace {

using namespace fovea;

constexpr int TILE = 256;

struct Problem {
  const void *q, *k, *v;                            // [Hq,T,d], [Hkv,N,d], rows of d contiguous
  int64_t q_head, q_row, k_head, k_row, v_head, v_row;  // strides in elements
  void* out;                                        // [Hq,T,d] contiguous
  float* lse;                                       // [Hq,T]
  const int32_t *row_ptr, *cols;                    // see BlockCsr
  int heads, rows, query_heads, kv_heads, T, N, d, block, key_block, first;
  int sink, window;  // where window > 0, a query sees the first `sink` keys and the last `window` up to its own
};

// Buffers of one thread, and the task it works on.
template <typename T>
class Worker {
  using F = typename Factor<T>::type;
  static constexpr int pair = Factor<T>::pair, ROWS = Factor<T>::rows;

 public:
  explicit Worker(const Problem& p)
      : p(p), wide(round_up(p.d, COLUMNS)), words(words_per_row<T>(p.d)), scale(LOG2E / std::sqrt(float(p.d))) {
    int share = p.query_heads / p.heads, rows = share * round_up(std::min(p.block, p.T), ROWS);
    q.resize(size_t(rows) * words);
    out.resize(size_t(rows) * wide);
    most.resize(rows);
    total.resize(size_t(rows) * LANES);
    keys.resize(size_t(round_up(p.d, LANES) / pair + LANES) * TILE);
    values.resize(size_t(TILE) / pair * wide);
    scores.resize(ROWS * TILE);
    shares.resize(ROWS * TILE / pair);
  }

  void run(int head, int row) {
    int offset = p.N - p.T, at = (p.first + row) * p.block;
    begin = std::max(at, offset), end = std::min(at + p.block, p.N);
    if (begin >= end) return;
    share = p.query_heads / p.heads, height = round_up(end - begin, ROWS);
    kv = head * share / (p.query_heads / p.kv_heads);
    open(head * share, begin - offset);
    const int32_t* ends = p.row_ptr + int64_t(head) * (p.rows + 1) + row;
    filled = 0;
    for (int c = ends[0]; c < ends[1]; c++) {
      int from = p.cols[c] * p.key_block, to = std::min({from + p.key_block, end, p.N});
      while (from < to) {
        int n = std::min(to - from, TILE - filled);
        for (int i = 0; i < n; i++) position[filled + i] = from + i;
        from += n, filled += n;
        if (filled == TILE) attend();
      }
    }
    if (filled) attend();
    close(head * share, begin - offset);
  }

 private:
  // Packs the task's queries, each head's padded to whole groups of rows, and empties its sums.
  void open(int head, int t) {
    for (int s = 0; s < share; s++)
      for (int i = 0; i < height; i++) {
        F* to = reinterpret_cast<F*>(q.data() + (int64_t(s) * height + i) * words);
        const T* from = static_cast<const T*>(p.q) + (head + s) * p.q_head + (t + i) * p.q_row;
        const int many = i < end - begin ? p.d : 0;
        if constexpr (sizeof(F) == sizeof(T))
          std::copy_n(reinterpret_cast<const F*>(from), many, to);
        else
          for (int c = 0; c < many; c++) store_factor(from[c], to + c);
        std::fill(to + many, to + words * pair, F{});
      }
    std::fill(most.begin(), most.end(), -INFINITY);
    std::fill(total.begin(), total.end(), 0.0f);
    std::fill(out.begin(), out.end(), 0.0f);
  }

  // All queries of the task against the tile.
  void attend() {
    pack_keys<T>([this](int i) { return key(i); }, filled, p.d, words, TILE, keys.data());
    pack_values();
    for (int s = 0; s < share; s++)
      for (int i = 0; i < height; i += ROWS) group(s * height + i, begin + i);
    filled = 0;
  }

  const T* key(int i) const { return static_cast<const T*>(p.k) + kv * p.k_head + position[i] * p.k_row; }
  const T* value(int i) const { return static_cast<const T*>(p.v) + kv * p.v_head + position[i] * p.v_row; }

  // values[key or pair of keys][wide]: rows as they are, or two rows zipped; nothing behind the last.
  void pack_values() {
    const int whole = p.d / LANES * LANES;
    for (int i = 0; i < round_up(filled, COLUMNS); i += pair) {
      float* words = values.data() + int64_t(i) / pair * wide;
      F* to = reinterpret_cast<F*>(words);
      const bool both = i + pair <= filled;
      const T *one = value(std::min(i, filled - 1)), *two = value(std::min(i + 1, filled - 1));
      for (int c = 0; both && c < whole; c += LANES) store(words + c, interleave<pair>(one + c, two + c));
      for (int c = both ? whole : 0; c < wide; c++)
        for (int j = 0; j < pair; j++)
          store_factor(i + j < filled && c < p.d ? (j ? two : one)[c] : T{}, to + c * pair + j);
    }
  }

  // As many queries as a product has rows, the first at position `at`.
  void group(int row, int at) {
    int last = std::min(at + ROWS, end) - 1;
    int seen = visible(last);
    if (!seen) return;
    int columns = round_up(seen, COLUMNS);
    for (int c = 0; c < columns; c += COLUMNS)
      gemm_block<F, false>(q.data() + int64_t(row) * words, words, keys.data() + c, TILE, scores.data() + c, TILE,
                           words);
    float* mixed = out.data() + int64_t(row) * wide;
    for (int i = 0; i < ROWS; i++) weigh(row + i, at + i, i, columns, mixed + i * wide);
    for (int c = 0; c < wide; c += COLUMNS)
      gemm_block<F, true>(shares.data(), TILE / pair, values.data() + c, wide, mixed + c, wide, columns / pair);
  }

  // How many of the tile's keys lie at or before `at`.
  int visible(int at) const {
    return at >= position[filled - 1] ? filled : int(std::upper_bound(position, position + filled, at) - position);
  }

  // One query's scores become weights relative to its largest so far; what it has mixed is brought to that measure.
  void weigh(int row, int at, int i, int columns, float* mixed) {
    float* s = scores.data() + i * TILE;
    int seen = visible(at);
    for (int c = seen; c < columns; c++) s[c] = -INFINITY;
    if (p.window > 0) {
      int from = int(std::lower_bound(position, position + seen, p.sink) - position);
      int to = int(std::upper_bound(position, position + seen, at - p.window) - position);
      for (int c = from; c < to; c++) s[c] = -INFINITY;
    }
    float before = most[row], now = std::max(before, horizontal_max(s, columns) * scale);
    if (now != before) {
      most[row] = now;
      float by = std::exp2(before - now);
      store(&total[row * LANES], load(&total[row * LANES]) * broadcast(by));
      for (int c = 0; c < wide; c += LANES) store(mixed + c, load(mixed + c) * broadcast(by));
    }
    vec sums = load(&total[row * LANES]), more{}, shift = broadcast(now == -INFINITY ? 0.0f : -now);
    F* weights = reinterpret_cast<F*>(shares.data()) + i * TILE;
    for (int c = 0; c < columns; c += COLUMNS) {
      vec one = exp2_as<F>(load(s + c) * broadcast(scale) + shift);
      vec two = exp2_as<F>(load(s + c + LANES) * broadcast(scale) + shift);
      sums += one, more += two;
      store_as(one, weights + c), store_as(two, weights + c + LANES);
    }
    store(&total[row * LANES], sums + more);
  }

  void close(int head, int t) {
    for (int s = 0; s < share; s++)
      for (int i = 0; i < end - begin; i++) {
        int row = s * height + i;
        float all = horizontal_sum(load(&total[row * LANES])), by = all > 0 ? 1 / all : 0.0f;
        int64_t at = int64_t(head + s) * p.T + t + i;
        p.lse[at] = all > 0 ? (most[row] + std::log2(all)) * LN2 : -INFINITY;
        const float* from = &out[int64_t(row) * wide];
        T* to = static_cast<T*>(p.out) + at * p.d;
        int c = 0;
        for (; c + LANES <= p.d; c += LANES) store_as(load(from + c) * broadcast(by), to + c);
        for (; c < p.d; c++) narrow(from[c] * by, to + c);
      }
  }

  const Problem& p;
  const Tiles tiles;
  const int wide, words;
  const float scale;
  int begin = 0, end = 0, share = 0, height = 0, kv = 0, filled = 0;
  int32_t position[TILE];
  Floats q, out, most, total, keys, values, scores, shares;
};

template <typename T>
void run(const Problem& p, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Worker<T> worker(p);
    // The last rows see most: they go first, so that no thread is left with one at the end.
#pragma omp for schedule(dynamic) collapse(2)
    for (int row = p.rows - 1; row >= 0; row--)
      for (int head = 0; head < p.heads; head++) worker.run(head, row);
  }
}

}  // namespace

extern "C" void fovea_block_sparse_prefill(
    int is_bf16, const void* q, const void* k, const void* v, const int64_t* strides, void* out, float* lse,
    const int32_t* row_ptr, const int32_t* cols, const int32_t* sizes, int threads) {
  Problem p{q, k, v, strides[0], strides[1], strides[2], strides[3], strides[4], strides[5], out, lse, row_ptr, cols,
            sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8], sizes[9],
            sizes[10], sizes[11]};
  is_bf16 ? run<bf16>(p, threads) : run<float>(p, threads);
}
