// A Llama-like decoder as its kernels see it: sizes, where its matrices lie and in which format.
#pragma once

#include <cstdint>
#include <vector>

namespace fovea {

enum Format : int64_t { PLAIN = 0, EIGHT_BITS = 8, FOUR_BITS = 4 };  // PLAIN: the decoder's own type, row by row

struct Weights {
  Format format;
  const void *data, *bias;  // strips or [rows,columns]; [rows] or null
  int64_t rows, columns;
};

// What an adapter adds to the product with one matrix: up (down x), in float32.
struct LowRank {
  int64_t rank;           // 0: nothing
  const float *down, *up;  // [rank,columns]; strips of 16 rows [strips,rank,16], filled up with zeros
};

struct Layer {
  Weights q, k, v, o, gate, up, down;
  const void *attention_norm, *mlp_norm, *q_norm, *k_norm, *after_attention, *after_mlp;  // null where there is none
  bool is_local;
};

struct Decoder {
  // In the order in which they come in.
  int64_t is_bf16, vocab, width, layers, heads, kv_heads, head_dim, hidden, is_gelu;
  double eps, norm_offset, embed_scale, query_factor;

  const void *embedding, *final_norm;
  const float *theta, *local_theta;  // angle per position of each pair [head_dim/2]
  Weights head;
  std::vector<Layer> layer;

  Decoder(const int64_t* facts, const double* numbers, const int64_t* words) {
    int64_t* sizes[] = {&is_bf16, &vocab, &width, &layers, &heads, &kv_heads, &head_dim, &hidden, &is_gelu};
    for (int64_t* size : sizes) *size = *facts++;
    eps = numbers[0], norm_offset = numbers[1], embed_scale = numbers[2], query_factor = numbers[3];
    embedding = at(words), final_norm = at(words);
    theta = static_cast<const float*>(at(words)), local_theta = static_cast<const float*>(at(words));
    head = weights(words, vocab, width);
    const int64_t inner = heads * head_dim, outer = kv_heads * head_dim;
    for (int64_t l = 0; l < layers; l++) {
      Layer one;
      one.q = weights(words, inner, width), one.k = weights(words, outer, width), one.v = weights(words, outer, width);
      one.o = weights(words, width, inner);
      one.gate = weights(words, hidden, width), one.up = weights(words, hidden, width);
      one.down = weights(words, width, hidden);
      const void** norms[] = {&one.attention_norm, &one.mlp_norm,        &one.q_norm,
                              &one.k_norm,         &one.after_attention, &one.after_mlp};
      for (const void** norm : norms) *norm = at(words);
      one.is_local = *words++ != 0;
      layer.push_back(one);
    }
  }

 private:
  static const void* at(const int64_t*& words) { return reinterpret_cast<const void*>(*words++); }
  static Weights weights(const int64_t*& words, int64_t rows, int64_t columns) {
    Format format = Format(*words++);
    const void *data = at(words), *bias = at(words);
    return {format, data, bias, rows, columns};
  }
};

}  // namespace fovea
