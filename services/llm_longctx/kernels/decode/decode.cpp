// Ragged decode: R problems of a few query rows each, over entries, whole or packed, that lie anywhere and are read once.
//
// Long problems are cut into spans, so that threads share them; each span leaves a part of the softmax, and the parts of
// a problem are joined at the end. Decode is bound by memory: keys and values stream through once, whatever the group.
// Knows nothing about Python, torch or pages.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "span_attention.h"

namespace {

using namespace fovea;

constexpr int SPAN = 1024;  // entries of a task

struct Task {
  int problem;
  int64_t from, to;
};

// Problem r has entries begin(r) … end(r)-1; `work` attends over a span of them.
template <typename T, typename Begin, typename End, typename Work>
void run(Begin begin, End end, Work work, int R, int G, int d, T* out, float* lse, int threads) {
  std::vector<Task> tasks;
  std::vector<int> first(R + 1);
  for (int r = 0; r < R; r++) {
    first[r] = int(tasks.size());
    // Spans end with a page, and where a problem lies does not change how it is cut.
    for (int64_t at = begin(r) / PAGE * PAGE; at < end(r); at += SPAN)
      tasks.push_back({r, std::max(at, begin(r)), std::min<int64_t>(at + SPAN, end(r))});
  }
  first[R] = int(tasks.size());
  const int wide = round_up(d, LANES * Factor<T>::pair);
  std::vector<float> most(tasks.size() * G), total(tasks.size() * G), mixed(tasks.size() * G * wide);
  int busy = std::min<int>(threads, int(tasks.size()));
#pragma omp parallel num_threads(busy) if (busy > 1)
  {
    Part<T> part(G, d);
#pragma omp for schedule(dynamic)
    for (size_t t = 0; t < tasks.size(); t++) {
      work(part, tasks[t], &most[t * G], &total[t * G], &mixed[t * G * wide]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int g = 0; g < G; g++) {
      float top = -INFINITY, all = 0;
      for (int t = first[r]; t < first[r + 1]; t++) top = std::max(top, most[t * G + g]);
      std::vector<float> joined(wide);
      for (int t = first[r]; t < first[r + 1] && top != -INFINITY; t++) {
        float by = std::exp2(most[t * G + g] - top);
        all += by * total[t * G + g];
        for (int c = 0; c < d; c++) joined[c] += by * mixed[(size_t(t) * G + g) * wide + c];
      }
      lse[r * G + g] = all > 0 ? (top + std::log2(all)) * LN2 : -INFINITY;
      for (int c = 0; c < d; c++) narrow(all > 0 ? joined[c] / all : 0.0f, out + (int64_t(r) * G + g) * d + c);
    }
}

template <typename T>
void run_whole(const T* q, const Problem* problems, int R, int G, int d, T* out, float* lse, int threads) {
  auto work = [&](Part<T>& part, const Task& task, float* most, float* total, float* mixed) {
    part.run(q + int64_t(task.problem) * G * d, problems[task.problem], task.from, task.to, most, total, mixed);
  };
  run([](int) { return int64_t(0); }, [&](int r) { return problems[r].n; }, work, R, G, d, out, lse, threads);
}

template <int FORMAT, typename T>
void run_packed(const T* q, const uint8_t* store, const float* log_weights, const int64_t* start, const int64_t* n,
                const uint8_t* weighted, int R, int G, int d, T* out, float* lse, int threads) {
  auto work = [&](Part<T>& part, const Task& task, float* most, float* total, float* mixed) {
    const int r = task.problem;
    part.template run_packed<FORMAT>(q + int64_t(r) * G * d, store, weighted[r] ? log_weights : nullptr, task.from,
                                   task.to, most, total, mixed);
  };
  run([&](int r) { return start[r]; }, [&](int r) { return start[r] + n[r]; }, work, R, G, d, out, lse, threads);
}

}  // namespace

// `problems`: per problem k, v, stride of k, stride of v, n and log_weights, as 64-bit words.
extern "C" void fovea_decode(int is_bf16, const void* q, const int64_t* problems, const int32_t* sizes, void* out,
                             float* lse, int threads) {
  const int R = sizes[0], G = sizes[1], d = sizes[2];
  std::vector<Problem> parsed(R);
  for (int r = 0; r < R; r++) {
    const int64_t* p = problems + 6 * r;
    parsed[r] = {reinterpret_cast<const void*>(p[0]), reinterpret_cast<const void*>(p[1]), p[2], p[3], p[4],
                 reinterpret_cast<const float*>(p[5])};
  }
  if (is_bf16)
    run_whole(static_cast<const bf16*>(q), parsed.data(), R, G, d, static_cast<bf16*>(out), lse, threads);
  else
    run_whole(static_cast<const float*>(q), parsed.data(), R, G, d, static_cast<float*>(out), lse, threads);
}

// Problem r reads entries start[r] … start[r]+n[r]-1 of a store of packed pages, whose log-weights count where weighted[r].
extern "C" void fovea_decode_packed(int is_bf16, int format, const void* q, const uint8_t* store,
                                    const float* log_weights, const int64_t* start, const int64_t* n,
                                    const uint8_t* weighted, const int32_t* sizes, void* out, float* lse,
                                    int threads) {
  const int R = sizes[0], G = sizes[1], d = sizes[2];
  auto go = [&](auto from, auto to) {
    with_format(format, [&](auto form) {
      run_packed<form()>(from, store, log_weights, start, n, weighted, R, G, d, to, lse, threads);
    });
  };
  is_bf16 ? go(static_cast<const bf16*>(q), static_cast<bf16*>(out))
          : go(static_cast<const float*>(q), static_cast<float*>(out));
}
