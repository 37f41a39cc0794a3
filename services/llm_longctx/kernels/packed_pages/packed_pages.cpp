// Rounds pages of entries to 8 or 4 bits, and widens them again. Knows nothing about attention.
#include "packed_pages.h"

namespace {

using namespace fovea;

struct Rounding {
  uint8_t scale;
  int8_t zero;
  float by, offset;  // entry / scale - zero
};

// The smallest scale of eight bits that covers the range and reaches its lower end.
template <int BITS>
Rounding round_group(float low, float high) {
  const float least = std::max({(high - low) / float((1 << BITS) - 1), low / -128.0f, low / 127.0f});
  int32_t bits;
  std::memcpy(&bits, &least, 4);
  const int32_t above = bits - (107 << 23);
  Rounding found;
  found.scale = uint8_t(std::clamp(above <= 0 ? 0 : (above + (1 << 20) - 1) >> 20, 0, 255));
  found.by = scale_of(found.scale);
  found.offset = std::clamp(std::nearbyint(low / found.by), -128.0f, 127.0f);
  found.zero = int8_t(found.offset);
  return found;
}

template <int BITS>
uint32_t code_of(float x, const Rounding& r) {
  return uint32_t(std::clamp(std::nearbyint(x / r.by - r.offset), 0.0f, float((1 << BITS) - 1)));
}

template <int BITS>
void put(uint8_t* vector, int lane, int step, uint32_t code) {
  uint32_t word;
  std::memcpy(&word, vector + 4 * lane, 4);
  word |= code << PackedPage<BITS>::shift(step);
  std::memcpy(vector + 4 * lane, &word, 4);
}

template <int BITS, typename T>
void pack(const T* keys, const T* values, int d, uint8_t* to) {
  using Page = PackedPage<BITS>;
  constexpr int STEPS = Page::STEPS;
  std::memset(to, 0, size_t(Page::bytes(d)));
  const Page page(to, d);
  for (int c = 0; c < d; c++) {
    float low = INFINITY, high = -INFINITY;
    for (int i = 0; i < PAGE; i++) low = std::min(low, widen(keys[i * d + c])), high = std::max(high, widen(keys[i * d + c]));
    const Rounding r = round_group<BITS>(low, high);
    to[page.key_scales_at() + c] = r.scale, to[page.key_zeros_at() + c] = uint8_t(r.zero);
    for (int i = 0; i < PAGE; i++)
      put<BITS>(to + 64 * (c / STEPS), i, c % STEPS, code_of<BITS>(widen(keys[i * d + c]), r));
  }
  for (int i = 0; i < PAGE; i++)
    for (int begin = 0, group = 0; begin < d; begin += VALUE_GROUP, group++) {
      const int end = std::min(begin + VALUE_GROUP, d);
      const T* value = values + i * d;
      float low = INFINITY, high = -INFINITY;
      for (int c = begin; c < end; c++) low = std::min(low, widen(value[c])), high = std::max(high, widen(value[c]));
      const Rounding r = round_group<BITS>(low, high);
      to[page.value_scales_at(group) + i] = r.scale, to[page.value_zeros_at(group) + i] = uint8_t(r.zero);
      for (int c = begin; c < end; c++) {
        uint8_t* vector = to + page.code_bytes() + 64 * (c / LANES * (PAGE / STEPS) + i / STEPS);
        put<BITS>(vector, c % LANES, i % STEPS, code_of<BITS>(widen(value[c]), r));
      }
    }
}

template <int BITS, typename T>
void unpack(const uint8_t* from, int d, T* keys, T* values) {
  using Page = PackedPage<BITS>;
  constexpr int STEPS = Page::STEPS;
  const Page page(from, d);
  alignas(64) float rows[LANES][LANES], turned[LANES][LANES];
  const uint32_t* lines[LANES];
  for (int j = 0; j < LANES; j++) lines[j] = reinterpret_cast<const uint32_t*>(rows[j]);
  auto put_row = [&](const float* x, int c, T* to) {
    if (c + LANES <= d) return store_as(load(x), to + c);
    for (int j = c; j < d; j++) narrow(x[j - c], to + j);
  };
  for (int c = 0; c < d; c += LANES) {
    vec scales = page.key_scales(c), zeros = page.key_zeros(c);
    for (int j = 0; j < LANES; j++) {  // lanes are entries, and shall be channels
      vec x = Page::code(page.key_codes((c + j) / STEPS), (c + j) % STEPS);
      store(rows[j], (x + broadcast(zeros[j])) * broadcast(scales[j]));
    }
    transpose(lines, reinterpret_cast<uint32_t*>(turned[0]), LANES);
    for (int i = 0; i < PAGE; i++) put_row(turned[i], c, keys + i * d);
    const int group = c / VALUE_GROUP;
    scales = page.value_scales(group), zeros = page.value_zeros(group);
    for (int i = 0; i < PAGE; i++) {
      vec x = Page::code(page.value_codes(c / LANES, i / STEPS), i % STEPS);
      store(rows[i], (x + broadcast(zeros[i])) * broadcast(scales[i]));
      put_row(rows[i], c, values + i * d);
    }
  }
}

template <int BITS, typename T>
void pack_all(const T* keys, const T* values, const int64_t* source, uint8_t* store, const int64_t* page, int count,
              int d, int threads) {
#pragma omp parallel for num_threads(threads) if (count > 15)
  for (int i = 0; i < count; i++)
    pack<BITS>(keys + source[i] * d, values + source[i] * d, d, store + page[i] * PackedPage<BITS>::bytes(d));
}

template <int BITS, typename T>
void unpack_all(const uint8_t* store, const int64_t* page, int count, int d, T* keys, T* values, int threads) {
#pragma omp parallel for num_threads(threads) if (count > 15)
  for (int i = 0; i < count; i++) {
    const int64_t at = int64_t(i) * PAGE * d;
    unpack<BITS>(store + page[i] * PackedPage<BITS>::bytes(d), d, keys + at, values + at);
  }
}

}  // namespace

// Entries source[i] … source[i] + 15 of [entries,d] become page page[i].
extern "C" void fovea_pack_pages(int is_bf16, int bits, const void* keys, const void* values, const int64_t* source,
                                 uint8_t* store, const int64_t* page, int count, int d, int threads) {
  auto run = [&](auto k, auto v) {
    bits == 4 ? pack_all<4>(k, v, source, store, page, count, d, threads)
              : pack_all<8>(k, v, source, store, page, count, d, threads);
  };
  is_bf16 ? run(static_cast<const bf16*>(keys), static_cast<const bf16*>(values))
          : run(static_cast<const float*>(keys), static_cast<const float*>(values));
}

// Page page[i] becomes entries 16·i … of [16·count,d].
extern "C" void fovea_unpack_pages(int is_bf16, int bits, const uint8_t* store, const int64_t* page, int count, int d,
                                   void* keys, void* values, int threads) {
  auto run = [&](auto k, auto v) {
    bits == 4 ? unpack_all<4>(store, page, count, d, k, v, threads)
              : unpack_all<8>(store, page, count, d, k, v, threads);
  };
  is_bf16 ? run(static_cast<bf16*>(keys), static_cast<bf16*>(values))
          : run(static_cast<float*>(keys), static_cast<float*>(values));
}
