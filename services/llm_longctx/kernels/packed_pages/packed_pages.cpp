// Rounds pages of entries to few bits, rotated or as they are, and widens them again. Knows nothing about attention.
#include "packed_pages.h"
#include "rotated_page.h"

#include <vector>

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

// Sixteen entries of d channels as d vectors of sixteen entries, or back. What fills up the last block is zero.
template <typename T>
void take_channels(const T* rows, int d, vec* to) {
  alignas(64) float block[LANES][LANES];
  const uint32_t* lines[LANES];
  for (int i = 0; i < LANES; i++) lines[i] = reinterpret_cast<const uint32_t*>(block[i]);
  for (int c = 0; c < d; c += LANES) {
    for (int i = 0; i < PAGE; i++)
      for (int j = 0; j < LANES; j++) block[i][j] = c + j < d ? widen(rows[i * d + c + j]) : 0.0f;
    transpose(lines, reinterpret_cast<uint32_t*>(to + c), LANES);
  }
}

template <typename T>
void put_channels(const vec* from, int d, T* rows) {
  alignas(64) float block[LANES][LANES];
  const uint32_t* lines[LANES];
  for (int c = 0; c < d; c += LANES) {
    for (int j = 0; j < LANES; j++) lines[j] = reinterpret_cast<const uint32_t*>(from + c + j);
    transpose(lines, reinterpret_cast<uint32_t*>(block[0]), LANES);
    for (int i = 0; i < PAGE; i++)
      for (int j = 0; j < std::min(LANES, d - c); j++) narrow(block[i][j], rows + i * d + c + j);
  }
}

using Vectors = std::vector<vec, Lined<vec>>;

// Rounds sixteen entries, a lane each: codes instead of channels, and their scales.
template <int BITS, typename T>
void round_rotated(const T* rows, int d, const float* signs, Vectors& x, uvec* codes, uint16_t* scales) {
  take_channels(rows, d, x.data());
  vec squares{}, rounded{};
  for (int c = 0; c < d; c++) squares += x[c] * x[c], x[c] = x[c] * broadcast(signs[c]);
  hadamard(x.data(), d);
  vec norm, by;
  for (int i = 0; i < PAGE; i++) norm[i] = std::sqrt(squares[i]), by[i] = std::sqrt(float(d)) / std::max(norm[i], 1e-30f);
  for (int c = 0; c < d; c++) {
    codes[c] = nearest_level<BITS>(x[c] * by);
    const vec level = level_of<BITS>(codes[c]);
    rounded += level * level;
  }
  for (int i = 0; i < PAGE; i++) scales[i] = to_half(std::min(norm[i] / std::sqrt(rounded[i]), 65504.0f));
}

template <int BITS, typename T>
void pack_rotated(const T* keys, const T* values, int d, int32_t head, uint8_t* to) {
  std::memset(to, 0, size_t(RotatedPage<BITS>::bytes(d)));
  const RotatedPage<BITS> page(to, d);
  const int width = round_up(d, LANES);
  Vectors x(width);
  std::vector<uvec, Lined<uvec>> codes(width);
  std::vector<float> signs(d);
  signs_of(uint32_t(head), d, signs.data());
  uint16_t scales[2][PAGE];
  round_rotated<BITS>(keys, d, signs.data(), x, codes.data(), scales[0]);
  for (int block = 0; block < page.blocks; block++) CodeBlock<BITS>::put(to, block, page.blocks, &codes[block * LANES]);
  round_rotated<BITS>(values, d, signs.data(), x, codes.data(), scales[1]);
  uvec turned[LANES];
  const uint32_t* lines[LANES];
  for (int block = 0; block < page.blocks; block++) {
    for (int j = 0; j < LANES; j++) lines[j] = reinterpret_cast<const uint32_t*>(&codes[block * LANES + j]);
    transpose(lines, reinterpret_cast<uint32_t*>(turned), LANES);
    CodeBlock<BITS>::put(to + page.code_bytes(), block, page.blocks, turned);
  }
  for (int i = 0; i < 2 * PAGE; i++) scales[i / PAGE][i % PAGE] |= uint16_t((uint32_t(head) >> i & 1) << 15);
  std::memcpy(to + page.scales_at(0), scales, sizeof scales);
}

template <int BITS, typename T>
void unpack_rotated(const uint8_t* from, int d, T* keys, T* values) {
  const RotatedPage<BITS> page(from, d);
  Vectors x(round_up(d, LANES));
  std::vector<float> signs(d);
  signs_of(page.head(), d, signs.data());
  uvec turned[LANES], codes[LANES];
  const uint32_t* lines[LANES];
  for (int j = 0; j < LANES; j++) lines[j] = reinterpret_cast<const uint32_t*>(&codes[j]);
  for (int side = 0; side < 2; side++) {
    const vec scales = side ? page.value_scales() : page.key_scales();
    for (int b = 0; b < page.blocks; b++) {
      const CodeBlock<BITS> block = side ? page.values(b) : page.keys(b);
      for (int i = 0; i < LANES; i++) codes[i] = block.code(i);
      if (side) transpose(lines, reinterpret_cast<uint32_t*>(turned), LANES);
      for (int i = 0; i < LANES; i++) x[b * LANES + i] = level_of<BITS>(side ? turned[i] : codes[i]) * scales;
    }
    hadamard(x.data(), d);
    for (int c = 0; c < d; c++) x[c] = x[c] * broadcast(signs[c]);
    put_channels(x.data(), d, side ? values : keys);
  }
}

template <int FORMAT, typename T>
void pack_all(const T* keys, const T* values, const int64_t* source, uint8_t* store, const int64_t* page,
              const int64_t* heads, int count, int d, int threads) {
#pragma omp parallel for num_threads(threads) if (count > 15)
  for (int i = 0; i < count; i++) {
    const T *k = keys + source[i] * d, *v = values + source[i] * d;
    uint8_t* to = store + page[i] * page_bytes<FORMAT>(d);
    if constexpr (FORMAT > ROTATED)
      pack_rotated<FORMAT - ROTATED>(k, v, d, int32_t(heads[i]), to);
    else
      pack<FORMAT>(k, v, d, to);
  }
}

template <int FORMAT, typename T>
void unpack_all(const uint8_t* store, const int64_t* page, int count, int d, T* keys, T* values, int threads) {
#pragma omp parallel for num_threads(threads) if (count > 15)
  for (int i = 0; i < count; i++) {
    const int64_t at = int64_t(i) * PAGE * d;
    const uint8_t* from = store + page[i] * page_bytes<FORMAT>(d);
    if constexpr (FORMAT > ROTATED)
      unpack_rotated<FORMAT - ROTATED>(from, d, keys + at, values + at);
    else
      unpack<FORMAT>(from, d, keys + at, values + at);
  }
}

}  // namespace

// Entries source[i] … source[i] + 15 of [entries,d] become page page[i], of head heads[i] of the model.
extern "C" void fovea_pack_pages(int is_bf16, int format, const void* keys, const void* values, const int64_t* source,
                                 uint8_t* store, const int64_t* page, const int64_t* heads, int count, int d,
                                 int threads) {
  with_format(format, [&](auto form) {
    if (is_bf16)
      pack_all<form()>(static_cast<const bf16*>(keys), static_cast<const bf16*>(values), source, store, page, heads,
                       count, d, threads);
    else
      pack_all<form()>(static_cast<const float*>(keys), static_cast<const float*>(values), source, store, page, heads,
                       count, d, threads);
  });
}

// Page page[i] becomes entries 16·i … of [16·count,d].
extern "C" void fovea_unpack_pages(int is_bf16, int format, const uint8_t* store, const int64_t* page, int count, int d,
                                   void* keys, void* values, int threads) {
  with_format(format, [&](auto form) {
    if (is_bf16)
      unpack_all<form()>(store, page, count, d, static_cast<bf16*>(keys), static_cast<bf16*>(values), threads);
    else
      unpack_all<form()>(store, page, count, d, static_cast<float*>(keys), static_cast<float*>(values), threads);
  });
}
