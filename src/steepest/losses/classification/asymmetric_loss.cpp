// The part of the asymmetric loss of one label that all other classes have, and its gradient, of rows of float32.

#include "../../core/vectors.h"

#include <vector>

namespace steepest {

constexpr int64_t SHORT = 64;          // rows up to this length are taken W at a time, a lane each
constexpr int64_t GRAIN = 1 << 15;     // values that one thread takes at a time

// p^gamma; by squaring for the usual exponents.
template <int GAMMA>
INLINE vf power(vf p, vf log_p, float gamma) {
  if (GAMMA == 0) return fill(1.0f);
  if (GAMMA == 1) return p;
  if (GAMMA == 2) return p * p;
  if (GAMMA == 4) return p * p * (p * p);
  return exp_below_zero(gamma * log_p);
}

struct Row {
  const float* x;
  float* g;                            // holds p, gets the gradient
  int64_t y;
  float log_p, slope, away;            // of the target: log p, the slope in it, 1 - p
};

template <int GAMMA>
INLINE float long_row(Row row, float gamma, float share, int64_t columns, float* slopes) {
  const float shift = row.x[row.y] - row.log_p, own = row.g[row.y];
  Total costs, sums;
  const auto one = [&](int64_t j, int64_t count) {
    const vf p = count < W ? load_part(row.g + j, count, 0.0f) : load(row.g + j);
    const vf log_p = (count < W ? load_part(row.x + j, count, shift) : load(row.x + j)) - shift;
    vf weight = power<GAMMA>(p, log_p, gamma);
    for (int i = 0; count < W && i < W; ++i) weight[i] = i < count ? weight[i] : 0.0f;
    if (row.y >= j && row.y < j + W) weight[row.y - j] = 0.0f;
    const vf slope = -share * weight * (gamma * log_p + 1.0f);
    costs.add(weight * log_p);
    sums.add(slope);
    store(slopes + j, slope);
  };
  int64_t j = 0;
  for (; j + W <= columns; j += W) one(j, W);
  if (j < columns) one(j, columns - j);
  const float others = across_sum(sums.value()), all = others + row.slope;
  for (j = 0; j + W <= columns; j += W) store(row.g + j, load(slopes + j) - all * load(row.g + j));
  for (; j < columns; ++j) row.g[j] = slopes[j] - all * row.g[j];
  row.g[row.y] = row.slope * row.away - others * own;
  return across_sum(costs.value());
}

template <int GAMMA, bool WHOLE>
INLINE void short_rows(const float* x, float* g, const int64_t* target, const float* log_p, const float* slope,
                       const float* away, float* costs, float gamma, float share, int64_t columns, int count) {
  vf p[SHORT], slopes[SHORT];
  vf shift = {}, own = {}, turn = {}, far = {}, cost = {}, others = {};
  vi place = vi{} - 1;
  const int lanes = WHOLE ? W : count;
  for (int i = 0; i < lanes; ++i) {
    place[i] = (int32_t)target[i];
    shift[i] = x[i * columns + target[i]] - log_p[i];
    turn[i] = slope[i];
    far[i] = away[i];
  }
  for (int64_t j = 0; j < columns; ++j) {
    vf v = {}, z = {};
    for (int i = 0; i < lanes; ++i) v[i] = g[i * columns + j];
    for (int i = 0; i < lanes; ++i) z[i] = x[i * columns + j];
    p[j] = v;
    const vi mine = place == (int32_t)j;
    const vf log = z - shift, weight = mine ? vf{} : power<GAMMA>(v, log, gamma);
    own = mine ? v : own;
    cost += weight * log;
    slopes[j] = -share * weight * (gamma * log + 1.0f);
    others += slopes[j];
  }
  const vf all = others + turn, at_target = turn * far - others * own;
  for (int64_t j = 0; j < columns; ++j) {
    const vf v = place == (int32_t)j ? at_target : slopes[j] - all * p[j];
    for (int i = 0; i < lanes; ++i) g[i * columns + j] = v[i];
  }
  std::memcpy(costs, &cost, sizeof(float) * lanes);
}

template <int GAMMA>
INLINE void all_rows(const float* x, float* g, const int64_t* target, const float* log_p, const float* slope,
                     const float* away, float* costs, float gamma, float share, int64_t rows, int64_t columns,
                     int threads) {
  if (columns <= SHORT) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
    for (int64_t i = 0; i < rows; i += W) {
      const int64_t at = i * columns;
      if (rows - i >= W)
        short_rows<GAMMA, true>(x + at, g + at, target + i, log_p + i, slope + i, away + i, costs + i, gamma, share,
                                columns, W);
      else
        short_rows<GAMMA, false>(x + at, g + at, target + i, log_p + i, slope + i, away + i, costs + i, gamma, share,
                                 columns, (int)(rows - i));
    }
    return;
  }
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * columns > GRAIN)
  {
    std::vector<float> slopes(columns + W);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      const Row row{x + i * columns, g + i * columns, target[i], log_p[i], slope[i], away[i]};
      costs[i] = long_row<GAMMA>(row, gamma, share, columns, slopes.data());
    }
  }
}

}  // namespace steepest

using namespace steepest;

// Of each row the sum of p^gamma log p over the other classes, and, in the place of p, the gradient of
// -share times it plus a part whose slope in log p_y is given.
extern "C" void asymmetric_rows(const float* x, float* g, const int64_t* target, const float* log_p,
                                const float* slope, const float* away, float* costs, const float* gamma, int64_t,
                                const float* share, int64_t, int64_t rows, int64_t columns, int threads) {
  const auto with = *gamma == 0.0f   ? all_rows<0>
                    : *gamma == 1.0f ? all_rows<1>
                    : *gamma == 2.0f ? all_rows<2>
                    : *gamma == 4.0f ? all_rows<4>
                                     : all_rows<-1>;
  with(x, g, target, log_p, slope, away, costs, *gamma, *share, rows, columns, threads);
}
