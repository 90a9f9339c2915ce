// Lengths of lists of tensors, weights moved along their gradients and back, each list in one call.

#include "vectors.h"

namespace steepest {

// A value that takes part in no fused operation.
INLINE vf rounded(vf v) {
#if defined(__SSE__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

constexpr int LANES = 16;

// Squares are exact in float64: none of a tiny or a huge number is lost.
static double squares(const float* x, int64_t count) {
  double lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int k = 0; k < LANES; ++k) lanes[k] += (double)x[i + k] * (double)x[i + k];
  for (; i < count; ++i) lanes[0] += (double)x[i] * (double)x[i];
  double sum = 0.0;
  for (double lane : lanes) sum += lane;
  return sum;
}

static void climb(float* w, const float* g, float* before, int64_t count, vf factor) {
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const vf a = load(w + i);
    store(before + i, a);
    store(w + i, a + rounded(factor * load(g + i)));
  }
  if (const int64_t left = count - i; left > 0) {
    const vf a = load_part(w + i, left, 0.0f), moved = a + rounded(factor * load_part(g + i, left, 0.0f));
    std::memcpy(before + i, &a, sizeof(float) * left);
    std::memcpy(w + i, &moved, sizeof(float) * left);
  }
}

}  // namespace steepest

extern "C" {

// The sum of squares of all numbers.
double displaced_squares(const float* const* x, const int64_t* sizes, int64_t tensors) {
  double sum = 0.0;
  for (int64_t k = 0; k < tensors; ++k) sum += steepest::squares(x[k], sizes[k]);
  return sum;
}

// w <- w + factor g for each tensor; what w was, into `before`, one tensor after the other.
void displaced_climb(float* const* w, const float* const* g, float* before, const int64_t* sizes, const float* factors,
                     int64_t tensors) {
  for (int64_t k = 0; k < tensors; before += sizes[k++])
    steepest::climb(w[k], g[k], before, sizes[k], steepest::fill(factors[k]));
}

// w <- what `before` holds.
void displaced_return(float* const* w, const float* before, const int64_t* sizes, int64_t tensors) {
  for (int64_t k = 0; k < tensors; before += sizes[k++]) std::memcpy(w[k], before, sizeof(float) * sizes[k]);
}
}
