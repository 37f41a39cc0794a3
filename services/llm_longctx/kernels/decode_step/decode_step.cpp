// A decode step of a batch in one call: embedding, all layers with attention over runs of entries, and logits.
//
// A layer is eight phases that threads work through together (see `Job`). The residual stream and everything between the
// matrices are float32, whatever the decoder's type. A caller who attends itself runs the step in pieces, up to a layer's
// rotated q, k, v and on from its mixed values; one who looks inside reads and writes the residual stream between pieces.
// Vectors are added to rows of the residual stream where a phase has ended, in the serial phase that comes last before it.
// A row may have an adapter, whose low-rank products in float32 are added to its strips; other rows stay as they are.
// Knows nothing about Python, torch or who owns pages.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../decode/span_attention.h"
#include "../native/thread_pool.h"
#include "matrix_rows.h"

namespace {

using namespace fovea;

constexpr int SPAN = 256;            // entries of a task of attention
constexpr int CHUNKS_PER_THREAD = 6;  // of a matrix: so many that nobody waits long for the last

enum Phase { PROJECT, ROTATE, ATTEND, OUTPUT, AFTER_ATTENTION, GATE, DOWN, AFTER_MLP, PHASES };

enum Place { Q, K, V, O, GATE_ROWS, UP_ROWS, DOWN_ROWS, PLACES };  // of a layer's matrices in an adapter's table

// A vector [D] that is added to one row before a phase that follows a serial one: PROJECT, GATE or the logits.
struct Addition {
  int64_t phase, row;
  const float* vector;
};

// What a step reads and writes, in the order in which it comes in.
struct Batch {
  int64_t rows;
  const int64_t *tokens, *positions;  // [B]
  const int64_t* slots;               // [L,B·G], where the new entries go
  int64_t parts;
  const int64_t *starts, *counts;  // [parts,L,B·G]: runs of entries that are read
  const uint8_t *weighted, *bits;  // [parts,L,B·G]: whether log-weights count; [parts,B·G]: 0 for whole entries, a format
  void *keys, *values;             // [entries,d]
  const float* log_weights;        // [entries]
  const uint8_t* packed[4];        // stores of packed pages, in the order of `place_of`
  const float* packed_log_weights[4];
  float* logits;                   // [B,V]
  int64_t num_additions;
  const Addition* additions;       // in the order in which they are added
  const LowRank* const* adapters;  // [B], each a table [layers,PLACES] or null; null where no row has one
  int64_t most_rank;               // of all of them
  void *q, *k, *v;                 // [B,H,d], [B,G,d]: for callers that attend themselves; else null
  const void* mixed;               // [B,H,d]: what they found
};

// Where a format of packed pages lies among the stores; `layout.py` has the same order.
constexpr int place_of(int format) { return format == 8 ? 0 : format == 4 ? 1 : format == ROTATED + 4 ? 2 : 3; }

template <typename T>
class Step : public Job {
 public:
  explicit Step(const Decoder& decoder)
      : Job(int(decoder.layers) * PHASES + 1),
        net(decoder),
        D(int(net.width)),
        H(int(net.heads)),
        G(int(net.kv_heads)),
        d(int(net.head_dim)),
        F(int(net.hidden)),
        wide(round_up(d, LANES * Factor<T>::pair)) {}

  void step(const Batch& given, int begin, int end, int threads) {
    std::lock_guard<std::mutex> hold(mutex);
    batch = given, B = int(batch.rows);
    if (int(scratch.size()) < threads) scratch.resize(threads);
    while (int(parts.size()) < threads) parts.emplace_back(H / G, d);
    if (begin < 0) this->begin(), begin = 0;
    cut_phases(begin, end, threads);
    if (begin < end) run(begin, end, threads);
  }

  // What callers that look inside read and write between two pieces: [B,D], and of a layer's q, k, v [B,(H+2G)·d].
  float* residual() { return x.data(); }
  float* projections() { return projected.data(); }

 protected:
  void compute(int phase, int chunk, int thread, bool first) override {
    Scratch& mine = scratch[thread];
    const int l = phase / PHASES;
    if (l == net.layers) return head(chunk, mine, first);
    const Layer& layer = net.layer[l];
    switch (phase % PHASES) {
      case PROJECT: return project(layer, l, chunk, mine, first);
      case ROTATE: return rotate(layer, l, chunk, mine);
      case ATTEND: return attend(l, chunk, parts[thread]);
      case OUTPUT: return output(layer, l, chunk, mine, first);
      case AFTER_ATTENTION: return end_half(layer.after_attention, phase, mine);
      case GATE: return gate(layer, l, chunk, mine, first);
      case DOWN: return down(layer, l, chunk, mine, first);
      case AFTER_MLP: return end_half(layer.after_mlp, phase, mine);
    }
  }

 private:
  struct Scratch {
    std::vector<float> input;
    MatrixRows<T> rows;
    Floats strip, other, low;
  };
  struct Task {
    int row;
    int64_t begin;
    int n;
    bool weighted;
    uint8_t bits;
  };

  // What is known before the first layer.
  void begin() {
    x.resize(size_t(B) * D), added.resize(size_t(B) * D);
    projected.resize(size_t(B) * (H + 2 * G) * d), hidden.resize(size_t(B) * F), queries.resize(size_t(B) * H * d);
    for (int b = 0; b < B; b++) {
      const T* from = static_cast<const T*>(net.embedding) + batch.tokens[b] * D;
      for (int c = 0; c < D; c++) x[size_t(b) * D + c] = widen(from[c]) * float(net.embed_scale);
    }
    add_vectors(0);
    turn(net.theta, cos_sin[0]);
    if (net.local_theta) turn(net.local_theta, cos_sin[1]);
    if (!batch.q) plan_attention();
  }

  void turn(const float* theta, std::vector<float>& to) {
    const int half = d / 2;
    to.resize(size_t(B) * d);
    for (int b = 0; b < B; b++)
      for (int i = 0; i < half; i++) {
        float angle = float(batch.positions[b]) * theta[i];
        to[size_t(b) * d + i] = std::cos(angle), to[size_t(b) * d + half + i] = std::sin(angle);
      }
  }

  // Tasks of all layers, and where those of each row begin.
  void plan_attention() {
    const int R = B * G, L = int(net.layers);
    tasks.clear(), first_task.clear();
    size_t most = 0;
    for (int l = 0; l < L; l++) {
      size_t before = tasks.size();
      for (int r = 0; r < R; r++) {
        first_task.push_back(int(tasks.size()));
        for (int64_t p = 0; p < batch.parts; p++) {
          const int64_t at = (p * L + l) * R + r, begin = batch.starts[at], end = begin + batch.counts[at];
          const uint8_t bits = batch.bits[p * R + r];
          for (int64_t i = bits ? begin / PAGE * PAGE : begin; i < end; i += SPAN) {  // spans end with a page
            const int64_t from = std::max(i, begin), to = std::min<int64_t>(i + SPAN, end);
            tasks.push_back({r, from, int(to - from), batch.weighted[at] != 0, bits});
          }
        }
      }
      most = std::max(most, tasks.size() - before);
    }
    first_task.push_back(int(tasks.size()));
    const int rows = H / G;
    largest.resize(most * rows), totals.resize(most * rows), mixes.resize(most * rows * wide);
  }

  void cut_phases(int begin, int end, int threads) {
    const int L = int(net.layers);
    chunks_wanted = threads * CHUNKS_PER_THREAD;
    for (int phase = begin; phase < end; phase++) {
      const int l = phase / PHASES;
      if (l == L) {
        cut(phase, chunks_of(strips_of(net.head)));
        continue;
      }
      const Layer& layer = net.layer[l];
      switch (phase % PHASES) {
        case PROJECT: cut(phase, chunks_of(projected_strips(layer))); break;
        case ROTATE: cut(phase, B); break;
        case ATTEND: cut(phase, batch.q ? 0 : first_task[(l + 1) * B * G] - first_task[l * B * G]); break;
        case OUTPUT: cut(phase, chunks_of(strips_of(layer.o))); break;
        case AFTER_ATTENTION: cut(phase, layer.after_attention || has_vectors(phase + 1)); break;
        case GATE: cut(phase, chunks_of(strips_of(layer.gate))); break;
        case DOWN: cut(phase, chunks_of(strips_of(layer.down))); break;
        case AFTER_MLP: cut(phase, layer.after_mlp || has_vectors(phase + 1)); break;
      }
    }
  }

  int chunks_of(int64_t strips) const { return int(std::min<int64_t>(strips, chunks_wanted)); }
  static int64_t projected_strips(const Layer& l) { return strips_of(l.q) + strips_of(l.k) + strips_of(l.v); }

  template <typename Work>
  void for_strips(int64_t strips, int chunk, Work work) const {
    const int64_t chunks = chunks_of(strips);
    for (int64_t s = strips * chunk / chunks; s < strips * (chunk + 1) / chunks; s++) work(s);
  }

  void norm(const float* from, const void* weight, float* to, int n) const {
    Norm<T>{static_cast<const T*>(weight), float(net.eps), float(net.norm_offset)}.apply(from, to, n);
  }

  void take_normed(const void* weight, Scratch& mine) const {
    mine.input.resize(size_t(B) * D);
    for (int b = 0; b < B; b++) norm(&x[size_t(b) * D], weight, &mine.input[size_t(b) * D], D);
    take(mine.input.data(), D, mine);
  }

  const LowRank* adapter(int l, int place, int b) const {
    const LowRank* table = batch.adapters ? batch.adapters[b] : nullptr;
    return table && table[l * PLACES + place].rank ? table + l * PLACES + place : nullptr;
  }

  // Rows [B,columns] times the lower halves of their adapters, for `count` places from `place` on.
  void take_low(int l, int place, int count, const float* from, int columns, Scratch& mine) const {
    if (!batch.adapters) return;
    mine.low.resize(size_t(count) * B * batch.most_rank);
    const int whole = columns / LANES * LANES;
    for (int i = 0; i < count; i++)
      for (int b = 0; b < B; b++) {
        const LowRank* one = adapter(l, place + i, b);
        const float* row = from + size_t(b) * columns;
        for (int64_t r = 0; one && r < one->rank; r++) {
          const float* down = one->down + r * columns;
          vec sums{};
          for (int c = 0; c < whole; c += LANES) sums += load(row + c) * load(down + c);
          float total = horizontal_sum(sums);
          for (int c = whole; c < columns; c++) total += row[c] * down[c];
          mine.low[(size_t(i) * B + b) * batch.most_rank + r] = total;
        }
      }
  }

  // Adds what adapters make of the i-th place's lower products to a strip [B][16] of its matrix.
  void add_low(int l, int place, int i, int64_t strip, const Scratch& mine, float* to) const {
    for (int b = 0; batch.adapters && b < B; b++) {
      const LowRank* one = adapter(l, place + i, b);
      if (!one) continue;
      const float *low = &mine.low[(size_t(i) * B + b) * batch.most_rank], *up = one->up + strip * one->rank * STRIP;
      vec sums{};
      for (int64_t r = 0; r < one->rank; r++) sums += load(up + r * STRIP) * broadcast(low[r]);
      store(to + b * STRIP, load(to + b * STRIP) + sums);
    }
  }

  void take(const float* from, int columns, Scratch& mine) const {
    mine.strip.resize(size_t(STRIP) * B), mine.other.resize(size_t(STRIP) * B);
    mine.rows.assign(from, B, columns);
  }

  void project(const Layer& layer, int l, int chunk, Scratch& mine, bool first) {
    if (first) take_normed(layer.attention_norm, mine), take_low(l, Q, 3, mine.input.data(), D, mine);
    const Weights* matrices[] = {&layer.q, &layer.k, &layer.v};
    const int64_t all = (H + 2 * G) * d;
    for_strips(projected_strips(layer), chunk, [&](int64_t s) {
      int64_t column = 0;
      int m = 0;
      for (; s >= strips_of(*matrices[m]); m++) s -= strips_of(*matrices[m]), column += matrices[m]->rows;
      int many = mine.rows.multiply(*matrices[m], s, mine.strip.data());
      add_low(l, Q, m, s, mine, mine.strip.data());
      for (int b = 0; b < B; b++)
        std::copy_n(&mine.strip[b * STRIP], many, &projected[b * all + column + s * STRIP]);
    });
  }

  // One row's heads: a norm each where the family has one, turned, and put where attention finds them.
  void rotate(const Layer& layer, int l, int b, Scratch& mine) {
    const int heads = H + 2 * G;
    mine.input.resize(d);
    for (int h = 0; h < heads; h++) {
      float* head = &projected[(size_t(b) * heads + h) * d];
      const void* weight = h < H ? layer.q_norm : h < H + G ? layer.k_norm : nullptr;
      if (weight) {
        norm(head, weight, mine.input.data(), d);
        std::copy(mine.input.begin(), mine.input.begin() + d, head);
      }
      if (h < H + G) turn_head(head, &cos_sin[layer.is_local][size_t(b) * d]);
      if (h < H)
        for (int c = 0; c < d; c++) head[c] *= float(net.query_factor);
      T* to = place(l, b, h);
      for (int c = 0; c < d; c++) narrow(head[c], to + c);
    }
  }

  void turn_head(float* head, const float* cos) const {
    const int half = d / 2;
    const float* sin = cos + half;
    for (int i = 0; i < half; i++) {
      float low = head[i], high = head[half + i];
      head[i] = low * cos[i] - high * sin[i], head[half + i] = high * cos[i] + low * sin[i];
    }
  }

  T* place(int l, int b, int h) {
    if (h < H) return (batch.q ? static_cast<T*>(batch.q) : queries.data()) + (size_t(b) * H + h) * d;
    const int g = (h - H) % G;
    const bool is_key = h < H + G;
    if (batch.q) return static_cast<T*>(is_key ? batch.k : batch.v) + (size_t(b) * G + g) * d;
    return static_cast<T*>(is_key ? batch.keys : batch.values) + batch.slots[(int64_t(l) * B + b) * G + g] * d;
  }

  void attend(int l, int chunk, Part<T>& part) {
    const int rows = H / G;
    const Task& task = tasks[first_task[l * B * G] + chunk];
    const T* query = &queries[size_t(task.row) * rows * d];
    float *most = &largest[size_t(chunk) * rows], *total = &totals[size_t(chunk) * rows];
    float* mixed = &mixes[size_t(chunk) * rows * wide];
    const int64_t end = task.begin + task.n;
    if (task.bits)
      with_format(task.bits, [&](auto form) {
        const int at = place_of(form());
        part.template run_packed<form()>(query, batch.packed[at], task.weighted ? batch.packed_log_weights[at] : nullptr,
                                         task.begin, end, most, total, mixed);
      });
    else
      part.run(query,
               {static_cast<const T*>(batch.keys) + task.begin * d, static_cast<const T*>(batch.values) + task.begin * d,
                d, d, task.n, task.weighted ? batch.log_weights + task.begin : nullptr},
               0, task.n, most, total, mixed);
  }

  // Joins the parts of every row's softmax: [B,H·d].
  void join(int l, float* to) const {
    const int rows = H / G, begin = first_task[l * B * G];
    for (int r = 0; r < B * G; r++) {
      const int from = first_task[l * B * G + r] - begin, end = first_task[l * B * G + r + 1] - begin;
      for (int j = 0; j < rows; j++) {
        float top = -INFINITY, all = 0, *out = to + (size_t(r) * rows + j) * d;
        for (int t = from; t < end; t++) top = std::max(top, largest[t * rows + j]);
        std::fill(out, out + d, 0.0f);
        for (int t = from; t < end && top != -INFINITY; t++) {
          const float by = std::exp2(largest[t * rows + j] - top);
          all += by * totals[t * rows + j];
          const float* mix = &mixes[(size_t(t) * rows + j) * wide];
          for (int c = 0; c < d; c++) out[c] += by * mix[c];
        }
        for (int c = 0; c < d && all > 0; c++) out[c] /= all;
      }
    }
  }

  void output(const Layer& layer, int l, int chunk, Scratch& mine, bool first) {
    if (first) {
      mine.input.resize(size_t(B) * H * d);
      if (batch.mixed)
        for (size_t i = 0; i < mine.input.size(); i++) mine.input[i] = widen(static_cast<const T*>(batch.mixed)[i]);
      else
        join(l, mine.input.data());
      take(mine.input.data(), H * d, mine);
      take_low(l, O, 1, mine.input.data(), H * d, mine);
    }
    add(layer.o, l, O, chunk, mine, layer.after_attention != nullptr);
  }

  void gate(const Layer& layer, int l, int chunk, Scratch& mine, bool first) {
    if (first) take_normed(layer.mlp_norm, mine), take_low(l, GATE_ROWS, 2, mine.input.data(), D, mine);
    for_strips(strips_of(layer.gate), chunk, [&](int64_t s) {
      int many = mine.rows.multiply(layer.gate, s, mine.strip.data());
      mine.rows.multiply(layer.up, s, mine.other.data());
      add_low(l, GATE_ROWS, 0, s, mine, mine.strip.data());
      add_low(l, GATE_ROWS, 1, s, mine, mine.other.data());
      for (int b = 0; b < B; b++) {
        float* closed = &mine.strip[b * STRIP];
        const vec opening = net.is_gelu ? gelu(load(closed)) : silu(load(closed));
        store(closed, opening * load(&mine.other[b * STRIP]));
        std::copy_n(closed, many, &hidden[size_t(b) * F + s * STRIP]);
      }
    });
  }

  void down(const Layer& layer, int l, int chunk, Scratch& mine, bool first) {
    if (first) take(hidden.data(), F, mine), take_low(l, DOWN_ROWS, 1, hidden.data(), F, mine);
    add(layer.down, l, DOWN_ROWS, chunk, mine, layer.after_mlp != nullptr);
  }

  // To the residual stream, or aside where a norm comes before.
  void add(const Weights& m, int l, int place, int chunk, Scratch& mine, bool is_aside) {
    for_strips(strips_of(m), chunk, [&](int64_t s) {
      int many = mine.rows.multiply(m, s, mine.strip.data());
      add_low(l, place, 0, s, mine, mine.strip.data());
      for (int b = 0; b < B; b++)
        for (int i = 0; i < many; i++) {
          const size_t at = size_t(b) * D + s * STRIP + i;
          if (is_aside)
            added[at] = mine.strip[b * STRIP + i];
          else
            x[at] += mine.strip[b * STRIP + i];
        }
    });
  }

  // The serial end of attention or MLP: what was put aside for a norm, and vectors.
  void end_half(const void* weight, int phase, Scratch& mine) {
    if (weight) add_normed(weight, mine);
    add_vectors(phase + 1);
  }

  bool has_vectors(int phase) const {
    const Addition* end = batch.additions + batch.num_additions;
    return std::any_of(batch.additions, end, [&](const Addition& one) { return one.phase == phase; });
  }

  void add_vectors(int phase) {
    for (int64_t i = 0; i < batch.num_additions; i++) {
      const Addition& one = batch.additions[i];
      for (int c = 0; c < D && one.phase == phase; c++) x[size_t(one.row) * D + c] += one.vector[c];
    }
  }

  void add_normed(const void* weight, Scratch& mine) {
    mine.input.resize(D);
    for (int b = 0; b < B; b++) {
      norm(&added[size_t(b) * D], weight, mine.input.data(), D);
      for (int c = 0; c < D; c++) x[size_t(b) * D + c] += mine.input[c];
    }
  }

  void head(int chunk, Scratch& mine, bool first) {
    if (first) take_normed(net.final_norm, mine);
    for_strips(strips_of(net.head), chunk, [&](int64_t s) {
      int many = mine.rows.multiply(net.head, s, mine.strip.data());
      for (int b = 0; b < B; b++)
        std::copy_n(&mine.strip[b * STRIP], many, batch.logits + b * net.vocab + s * STRIP);
    });
  }

  const Decoder net;
  const int D, H, G, d, F, wide;
  std::mutex mutex;
  Batch batch{};
  int B = 0, chunks_wanted = 1;
  Floats x, added, projected, hidden, largest, totals, mixes;
  std::vector<T> queries;
  std::vector<float> cos_sin[2];  // global and local layers: cos [B,d/2] and sin [B,d/2], row by row
  std::vector<Task> tasks;
  std::vector<int> first_task;
  std::vector<Scratch> scratch;
  std::vector<Part<T>> parts;
};

template <typename T>
void step(void* model, const Batch& batch, int begin, int end, int threads) {
  static_cast<Step<T>*>(static_cast<Job*>(model))->step(batch, begin, end, threads);
}

}  // namespace

// A decoder, ready for steps; what the words point at must outlive it. In the order of `Decoder`.
extern "C" void* fovea_decoder_new(const int64_t* facts, const double* numbers, const int64_t* words) {
  Decoder decoder(facts, numbers, words);
  return decoder.is_bf16 ? static_cast<Job*>(new Step<bf16>(decoder)) : static_cast<Job*>(new Step<float>(decoder));
}

extern "C" void fovea_decoder_delete(void* model) { delete static_cast<Job*>(model); }

// The buffers of `residual` and `projections`, valid until the next step begins.
extern "C" void fovea_decoder_buffers(int is_bf16, void* model, float** out) {
  if (is_bf16) {
    auto* step = static_cast<Step<bf16>*>(static_cast<Job*>(model));
    out[0] = step->residual(), out[1] = step->projections();
  } else {
    auto* step = static_cast<Step<float>*>(static_cast<Job*>(model));
    out[0] = step->residual(), out[1] = step->projections();
  }
}

// Phases `begin` … `end`-1 of a step; `words` in the order of `Batch`. A layer has eight phases, the logits are one. The
// first piece of a step begins at -1.
extern "C" void fovea_decode_step(int is_bf16, void* model, const int64_t* words, int begin, int end, int threads) {
  auto at = [&](int i) { return reinterpret_cast<void*>(words[i]); };
  Batch batch{words[0],
              static_cast<const int64_t*>(at(1)),
              static_cast<const int64_t*>(at(2)),
              static_cast<const int64_t*>(at(3)),
              words[4],
              static_cast<const int64_t*>(at(5)),
              static_cast<const int64_t*>(at(6)),
              static_cast<const uint8_t*>(at(7)),
              static_cast<const uint8_t*>(at(8)),
              at(9),
              at(10),
              static_cast<const float*>(at(11)),
              {},
              {},
              static_cast<float*>(at(20)),
              words[21],
              static_cast<const Addition*>(at(22)),
              static_cast<const LowRank* const*>(at(23)),
              words[24],
              at(25),
              at(26),
              at(27),
              at(28)};
  for (int i = 0; i < 4; i++) {
    batch.packed[i] = static_cast<const uint8_t*>(at(12 + i));
    batch.packed_log_weights[i] = static_cast<const float*>(at(16 + i));
  }
  if (is_bf16)
    step<bf16>(model, batch, begin, end, threads);
  else
    step<float>(model, batch, begin, end, threads);
}
