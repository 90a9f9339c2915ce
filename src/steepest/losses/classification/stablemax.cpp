// Cross-entropy of StableMax of rows of float32, computed in float64.

#include "../../core/vectors.h"

#include <vector>

namespace steepest {

constexpr int D = W / 2;               // values of float64 in a vector
constexpr int64_t PART = 1 << 11;      // values that are held at a time, or one row

typedef double vd __attribute__((vector_size(4 * W)));
typedef float narrow __attribute__((vector_size(2 * W)));

INLINE void widen(const float* p, vd& v) {
  narrow own;
  std::memcpy(&own, p, sizeof own);
  v = __builtin_convertvector(own, vd);
}
INLINE void widen(const float* p, double& v) { v = *p; }

// 1 / (1 + |x|) and s(x), which is 1 + x, below 0 the other.
template <typename V>
INLINE void parts(const float* x, double* inverse, double* s) {
  V v;
  widen(x, v);
  const V up = 1.0 + (v < 0.0 ? -v : v), down = 1.0 / up, own = v < 0.0 ? down : up;
  std::memcpy(inverse, &down, sizeof down);
  std::memcpy(s, &own, sizeof own);
}

INLINE double sum(const double* s, int64_t count) {
  vd sums[2] = {};
  int64_t j = 0;
  for (; j + 2 * D <= count; j += 2 * D)
    for (int u = 0; u < 2; ++u) {
      vd v;
      std::memcpy(&v, s + j + u * D, sizeof v);
      sums[u] += v;
    }
  const vd both = sums[0] + sums[1];
  double all = 0.0;
  for (int i = 0; i < D; ++i) all += both[i];
  for (; j < count; ++j) all += s[j];
  return all;
}

// g = s a / (1 + |x|)
INLINE void slopes(const double* s, const double* inverse, double a, float* g, int64_t count) {
  int64_t j = 0;
  for (; j + D <= count; j += D) {
    vd v, r;
    std::memcpy(&v, s + j, sizeof v);
    std::memcpy(&r, inverse + j, sizeof r);
    const narrow own = __builtin_convertvector(v * (r * a), narrow);
    std::memcpy(g + j, &own, sizeof own);
  }
  for (; j < count; ++j) g[j] = (float)(s[j] * (inverse[j] * a));
}

}  // namespace steepest

using namespace steepest;

// Of each row the sum of s over the other columns, s of the target, and the gradient.
extern "C" void stablemax_rows(const float* x, float* g, const int64_t* target, double* others, double* own,
                               int64_t rows, int64_t columns, int threads) {
  const int64_t together = std::max<int64_t>(1, PART / columns), parts_of = (rows + together - 1) / together;
#pragma omp parallel num_threads(threads) if (threads > 1 && parts_of > 8)
  {
    std::vector<double> inverse(together * columns), s(together * columns);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts_of; ++part) {
      const int64_t first = part * together, count = std::min(together, rows - first) * columns;
      const float* z = x + first * columns;
      int64_t j = 0;
      for (; j + D <= count; j += D) parts<vd>(z + j, &inverse[j], &s[j]);
      for (; j < count; ++j) parts<double>(z + j, &inverse[j], &s[j]);
      for (int64_t at = 0, i = first; at < count; at += columns, ++i) {
        const int64_t y = target[i];
        const double mine = s[at + y];
        s[at + y] = 0.0;
        const double rest = sum(&s[at], columns), scale = 1.0 / (mine + rest);
        slopes(&s[at], &inverse[at], scale, g + i * columns, columns);
        g[i * columns + y] = (float)(-rest * scale * inverse[at + y]);
        others[i] = rest;
        own[i] = mine;
      }
    }
  }
}
