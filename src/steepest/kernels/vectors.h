// Vectors of float32 as wide as the instruction level has them, and sums of them whose error does not grow with their length.

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
