// One step of AdamW for many models of equal shape, in one pass over their numbers: torch's operations in their order,
// a product and a sum being one operation where torch's own kernels have that, and nowhere else.

#include "vectors.h"

namespace steepest {

// A value that takes part in no fused operation.
INLINE vf rounded(vf v) {
#if defined(__SSE__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

INLINE vf fused(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

INLINE vf root(vf v) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX__)
  return (vf)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE__)
  return (vf)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < W; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

struct Numbers {
  vf gain;        // 1 - beta_1
  vf memory;      // beta_2
  vf news;        // 1 - beta_2
  vf correction;  // (1 - beta_2^t)^(-1/2)
  vf eps;
  vf length;      // -1 / (1 - beta_1^t)
};

INLINE void move(vf& w, vf& m, vf& v, vf g, vf rate, vf shrink, const Numbers& n) {
  m = fused(n.gain, g - m, m);
  v = fused(n.news * g, g, rounded(v * n.memory));
  const vf step = m / (rounded(root(v) * n.correction) + n.eps);
  w = fused(n.length * step, rate, rounded(w * shrink));
}

static void row(float* w, float* m, float* v, const float* g, int64_t count, vf rate, vf shrink, const Numbers& n) {
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    vf a = load(w + i), b = load(m + i), c = load(v + i);
    move(a, b, c, load(g + i), rate, shrink, n);
    store(w + i, a);
    store(m + i, b);
    store(v + i, c);
  }
  if (const int64_t left = count - i; left > 0) {
    vf a = load_part(w + i, left, 0.0f), b = load_part(m + i, left, 0.0f), c = load_part(v + i, left, 0.0f);
    move(a, b, c, load_part(g + i, left, 0.0f), rate, shrink, n);
    std::memcpy(w + i, &a, sizeof(float) * left);
    std::memcpy(m + i, &b, sizeof(float) * left);
    std::memcpy(v + i, &c, sizeof(float) * left);
  }
}

}  // namespace steepest

extern "C" {

// Rows of `numbers` values in w, m, v: one a model, its parameters one after the other. Gradients: one tensor a
// parameter, `sizes` values a model. `rate` is the learning rate, `shrink` one less rate times decay, of each model.
void adamw_step(float* w, float* m, float* v, const float* const* gradients, const int64_t* sizes, const float* rate,
                const float* shrink, int64_t parameters, int64_t models, int64_t numbers, const float* scalars) {
  using namespace steepest;
  const Numbers n = {fill(scalars[0]), fill(scalars[1]), fill(scalars[2]),
                     fill(scalars[3]), fill(scalars[4]), fill(scalars[5])};
  for (int64_t model = 0; model < models; ++model) {
    int64_t at = model * numbers;
    for (int64_t p = 0; p < parameters; ++p) {
      row(w + at, m + at, v + at, gradients[p] + model * sizes[p], sizes[p], fill(rate[model]), fill(shrink[model]), n);
      at += sizes[p];
    }
  }
}
}
