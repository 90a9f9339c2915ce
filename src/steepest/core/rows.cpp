// Softmax, and what its gradient needs, of rows of float32 that lie one after the other.

#include "vectors.h"

#include <limits>

namespace steepest {

constexpr int64_t SHORT = 64;          // rows up to this length are taken W at a time, a lane each
constexpr int64_t GRAIN = 1 << 15;     // values that one thread takes at a time
constexpr int64_t RUN = 32;            // vectors that are summed in plain float32
constexpr float INF = std::numeric_limits<float>::infinity();

// W short rows, or the last few: a value of each stands in a vector, so that nothing is done across one.
template <bool WHOLE>
INLINE void short_rows(const float* z, float* p, float* top, float* total, int64_t columns, int count) {
  vf e[SHORT];
  vf most = fill(-INF), sum = {};
  const int lanes = WHOLE ? W : count;
  for (int64_t j = 0; j < columns; ++j) {
    vf v = {};
    for (int i = 0; i < lanes; ++i) v[i] = z[i * columns + j];
    e[j] = v;
    most = larger(most, v);
  }
  for (int64_t j = 0; j < columns; ++j) {
    e[j] = exp_below_zero(e[j] - most);
    sum += e[j];
  }
  for (int64_t j = 0; j < columns; ++j) {
    const vf v = e[j] / sum;
    for (int i = 0; i < lanes; ++i) p[i * columns + j] = v[i];
  }
  std::memcpy(top, &most, sizeof(float) * lanes);
  std::memcpy(total, &sum, sizeof(float) * lanes);
}

INLINE vf load_most(const float* p, int64_t left) { return left >= W ? load(p) : load_part(p, left, -INF); }
INLINE void store_most(float* p, vf v, int64_t left) { std::memcpy(p, &v, sizeof(float) * (left < W ? left : W)); }

INLINE void long_row(const float* z, float* p, float* top, float* total, int64_t columns) {
  vf tops[4] = {fill(-INF), fill(-INF), fill(-INF), fill(-INF)};
  int64_t j = 0;
  for (; j + 4 * W <= columns; j += 4 * W)
    for (int u = 0; u < 4; ++u) tops[u] = larger(tops[u], load(z + j + u * W));
  for (; j < columns; j += W) tops[0] = larger(tops[0], load_most(z + j, columns - j));
  const float most = across_max(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
  Total all;
  for (j = 0; j < columns;) {
    const int64_t stop = std::min(columns, j + RUN * W);
    vf sum = {};
    for (; j < stop; j += W) {
      const vf v = exp_below_zero(load_most(z + j, columns - j) - most);
      store_most(p + j, v, columns - j);
      sum += v;
    }
    all.add(sum);
  }
  *total = across_sum(all.value());
  *top = most;
  for (j = 0; j < columns; j += W) store_most(p + j, load_most(p + j, columns - j) / *total, columns - j);
}

}  // namespace steepest

using namespace steepest;

// Softmax p, the largest value of each row and the sum of e^(z - top); NaN where torch has NaN.
extern "C" void softmax_rows(const float* z, float* p, float* top, float* total, int64_t rows, int64_t columns,
                             int threads) {
  if (columns <= SHORT) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
    for (int64_t i = 0; i < rows; i += W) {
      const int64_t at = i * columns;
      if (rows - i >= W) short_rows<true>(z + at, p + at, top + i, total + i, columns, W);
      else short_rows<false>(z + at, p + at, top + i, total + i, columns, (int)(rows - i));
    }
    return;
  }
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
  for (int64_t i = 0; i < rows; ++i) long_row(z + i * columns, p + i * columns, top + i, total + i, columns);
}

// g[i] *= factor[i], then g[i, target[i]] += value[i].
extern "C" void scale_rows(float* g, const float* factor, const float* value, const int64_t* target, int64_t rows,
                           int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    float* row = g + i * columns;
    for (int64_t j = 0; j < columns; ++j) row[j] *= factor[i];
    if (target[i] >= 0 && target[i] < columns) row[target[i]] += value[i];
  }
}
