// Vectors of float32 as wide as the instruction level has them: their exponentials, and sums of them whose error does not
// grow with their length.

#ifndef STEEPEST_VECTORS
#define STEEPEST_VECTORS

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace steepest {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));

INLINE vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
INLINE vf fill(float v) { return vf{} + v; }
INLINE vf load_part(const float* p, int64_t count, float rest) {
  vf v = fill(rest);
  std::memcpy(&v, p, sizeof(float) * count);
  return v;
}

// The second argument where one is NaN.
INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE__)
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

INLINE float across_max(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float a[W];
  store(a, v);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a[i] = a[i] > a[i + half] ? a[i] : a[i + half];
  return a[0];
#endif
}

INLINE float across_sum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float a[W];
  store(a, v);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  return a[0];
#endif
}

constexpr float LOG2E = 0x1.715476p+0f;
constexpr float ROUND = 0x1.8p+23f;    // adding it leaves the nearest integer in the lowest bits

// v 2^d for whole d <= 0; 0 from d = -127 on, or where v 2^d is 0.
INLINE vf scale2(vf v, vf d) {
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)v, (__m512)d);
#else
  d = larger(d, fill(-127.0f));
  return v * (vf)(((vi)(d + (ROUND + 127.0f))) << 23);
#endif
}

INLINE vf exp_polynomial(vf t) {       // |t| <= ln2 / 2, relative error 1e-7
  vf p = t * 0x1.0fa9f6p-7f + 0x1.573ffap-5f;
  p = p * t + 0x1.555a78p-3f;
  p = p * t + 0x1.fffdb8p-2f;
  p = p * t + 0x1.fffff6p-1f;
  return p * t + 1.0f;
}

// x - n ln 2 for whole |n| < 2^17 near x / ln 2: every term but the last is exact.
INLINE vf less_ln2(vf x, vf n) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  const vf t = x - n * 0x1.62E43p-1f;  // one fused operation
  return t - n * -0x1.05C61p-29f;
#else
  vf t = x - n * 0x1.6p-1f;            // 17 bits of n and 7 of ln 2 fit into float32
  t = t - n * 0x1.7p-8f;
  t = t - n * 0x1.08p-15f;
  return t - n * 0x1.FDF474p-22f;
#endif
}

// e^x for x <= 0, relative error 2e-7; 0 below 2^-126.
INLINE vf exp_below_zero(vf x) {
  x = larger(fill(-200.0f), x);        // NaN stays
  const vf n = (x * LOG2E + ROUND) - ROUND;
  return scale2(exp_polynomial(less_ln2(x, n)), n);
}

// A sum of any length: lo keeps what the additions to hi round away.
struct Total {
  vf hi = {}, lo = {};
  void scale(vf factor) { hi *= factor; lo *= factor; }
  void add(vf v) {
    const vf sum = hi + v, added = sum - hi;
    lo += (hi - (sum - added)) + (v - added);
    hi = sum;
  }
  vf value() const { return hi + (lo == lo ? lo : vf{}); }  // lo is NaN beside an infinite hi
};

}  // namespace steepest

#endif
