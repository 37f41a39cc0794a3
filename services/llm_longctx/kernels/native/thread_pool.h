// Threads that work through the phases of a job together, each phase cut into chunks.
//
// A phase is over when its chunks are done, not when every thread has arrived: a thread that the system does not run
// holds up nobody, unless it has taken a chunk. Waiting threads spin, and let others run after a while. Knows nothing
// about what is computed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace fovea {

class Job {
 public:
  explicit Job(int phases) : claims(new Count[phases]), dones(new Count[phases]), counts(new std::atomic<uint64_t>[phases]) {}
  virtual ~Job();
  Job(const Job&) = delete;

  // Says how many chunks a phase of the next run has. Tagged: a late thread of the last run may still look for chunks.
  void cut(int phase, int chunks) { counts[phase].store(tagged(running.load() + 1, chunks)); }
  // Computes one chunk. `first` says that it is this thread's first of the phase.
  virtual void compute(int phase, int chunk, int thread, bool first) = 0;

  // Runs phases `begin` … `end`-1 on at most `threads` threads, the caller's included.
  void run(int begin, int end, int threads);

 private:
  friend class ThreadPool;
  struct alignas(64) Count {
    std::atomic<uint64_t> value{0};  // the run's number in the upper half, a count in the lower
  };

  static uint64_t tagged(uint32_t number, uint32_t count) { return uint64_t(number) << 32 | count; }
  void work(uint32_t number, int thread);
  int claim(int phase, uint32_t number);
  bool wait(int phase, uint32_t number) const;

  std::unique_ptr<Count[]> claims, dones;
  std::unique_ptr<std::atomic<uint64_t>[]> counts;
  std::atomic<uint32_t> running{0};  // number of the last run
  std::atomic<int> first{0}, last{0}, threads{1}, visitors{0};
};

}  // namespace fovea
