// The threads behind `Job::run`: started when first needed, asleep while there is nothing to do.
#include "thread_pool.h"

#include <condition_variable>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fovea {

namespace {

constexpr int SPINS = 4000;  // looks before a waiting thread lets others run
constexpr auto AWAKE = std::chrono::microseconds(1500);  // longer than what lies between two steps

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

class ThreadPool {
 public:
  // Never destroyed: its threads may outlive everything else.
  static ThreadPool& shared() {
    static ThreadPool* pool = new ThreadPool;
    return *pool;
  }

  // Offers a job to the threads; false where another job has them.
  bool offer(Job* job, int threads) {
    if (threads < 2 || !busy.try_lock()) return false;
    {
      std::lock_guard<std::mutex> hold(mutex);
      while (int(workers.size()) < threads - 1) {
        int at = int(workers.size()) + 1;
        workers.emplace_back([this, at] { serve(at); });
        workers.back().detach();
      }
      job->visitors.fetch_add(1);
      current = job;
      number.fetch_add(1, std::memory_order_release);
    }
    if (sleeping.load() > 0) wake.notify_all();
    return true;
  }

  void withdraw(Job* job) {
    {
      std::lock_guard<std::mutex> hold(mutex);
      current = nullptr;
    }
    job->visitors.fetch_sub(1);
    busy.unlock();
  }

 private:
  void serve(int thread) {
    uint32_t seen = 0;
    for (;;) {
      auto since = std::chrono::steady_clock::now();
      for (int spins = 0; number.load(std::memory_order_acquire) == seen; spins++) {
        pause_briefly();
        if (spins % SPINS != SPINS - 1) continue;
        std::this_thread::yield();
        if (std::chrono::steady_clock::now() - since > AWAKE) sleep(seen);
      }
      Job* job = enter(seen);
      if (!job) continue;
      if (thread < job->threads.load()) job->work(job->running.load(), thread);
      job->visitors.fetch_sub(1);
    }
  }

  Job* enter(uint32_t& seen) {
    std::lock_guard<std::mutex> hold(mutex);
    seen = number.load();
    if (current) current->visitors.fetch_add(1);
    return current;
  }

  void sleep(uint32_t seen) {
    std::unique_lock<std::mutex> hold(mutex);
    sleeping.fetch_add(1);
    wake.wait(hold, [&] { return number.load() != seen; });
    sleeping.fetch_sub(1);
  }

  std::mutex busy, mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  Job* current = nullptr;
  std::atomic<uint32_t> number{0};
  std::atomic<int> sleeping{0};
};

Job::~Job() {
  while (visitors.load()) std::this_thread::yield();
}

void Job::run(int begin, int end, int wanted) {
  uint32_t number = running.load() + 1;
  for (int phase = begin; phase < end; phase++) {
    claims[phase].value.store(tagged(number, 0));
    dones[phase].value.store(tagged(number, 0));
  }
  first.store(begin), last.store(end), threads.store(wanted);
  running.store(number);  // last: a thread that comes late reads it first, and takes no chunk under an old number
  ThreadPool& pool = ThreadPool::shared();
  bool offered = pool.offer(this, wanted);
  work(number, 0);
  if (offered) pool.withdraw(this);
}

void Job::work(uint32_t number, int thread) {
  const int end = last.load();
  for (int phase = first.load(); phase < end; phase++) {
    bool is_first = true;
    for (int chunk; (chunk = claim(phase, number)) >= 0; is_first = false) {
      compute(phase, chunk, thread, is_first);
      dones[phase].value.fetch_add(1, std::memory_order_release);
    }
    if (!wait(phase, number)) return;
  }
}

// The next chunk; -1 where all are taken, or the run is over.
int Job::claim(int phase, uint32_t number) {
  uint64_t now = claims[phase].value.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t count = counts[phase].load();
    if (now >> 32 != number || count >> 32 != number || now >= count) return -1;
    if (claims[phase].value.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) return int(uint32_t(now));
  }
}

// Until all chunks of a phase are done; false where the run is over.
bool Job::wait(int phase, uint32_t number) const {
  for (int spins = 0;; spins++) {
    uint64_t now = dones[phase].value.load(std::memory_order_acquire);
    if (now >> 32 != number) return false;
    if (now >= counts[phase].load()) return true;
    pause_briefly();
    if (spins % SPINS == SPINS - 1) std::this_thread::yield();
  }
}

}  // namespace fovea
