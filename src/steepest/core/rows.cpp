// Rows of float32 that lie one after the other: their softmax, their moments, and the mixtures that gradients are.

#include "vectors.h"

#include <limits>

namespace steepest {

constexpr int64_t SHORT = 64;          // rows up to this length are taken W at a time, a lane each
constexpr int64_t GRAIN = 1 << 15;     // values that one thread takes at a time
constexpr int64_t RUN = 32;            // vectors that are summed in plain float32
constexpr float INF = std::numeric_limits<float>::infinity();

// A number a row, or one for all of them, or none.
struct Column {
  const float* values;
  int64_t step;
  float at(int64_t row) const { return values[row * step]; }
  explicit operator bool() const { return values != nullptr; }
};

// What is kept of a row beside its softmax; `excess` may be missing.
struct Parts {
  float *top, *gap, *rest, *away, *excess;
};

// Lane by lane a where the mask is set, else b.
INLINE vf choose(vi mask, vf a, vf b) { return mask ? a : b; }

INLINE vf expm1_polynomial(vf t) {     // |t| <= ln2 / 2, relative error 1e-7
  vf p = t * (1.0f / 5040) + 1.0f / 720;
  p = p * t + 1.0f / 120;
  p = p * t + 1.0f / 24;
  p = p * t + 1.0f / 6;
  p = p * t + 0.5f;
  return p * t * t + t;
}

// e^u and, where it is wanted, the sum of e^u - 1 without the rounding of e^u near 1.
template <bool EXCESS>
INLINE vf exp_and_excess(vf u, vf& excess) {
  u = larger(fill(-200.0f), u);
  const vf n = (u * LOG2E + ROUND) - ROUND;
  const vf t = less_ln2(u, n);
  if (!EXCESS) return scale2(exp_polynomial(t), n);
  const vf part = expm1_polynomial(t), e = scale2(part + 1.0f, n);
  excess += choose(n == 0.0f, part, e - 1.0f);
  return e;
}

// W short rows, or the last few: a value of each stands in a vector, so that nothing is done across one.
template <bool WHOLE, bool EXCESS>
INLINE void short_rows(const float* z, float* p, const int64_t* target, Column scale, Column shift, Parts parts,
                       int64_t row, int64_t columns, int count) {
  vf e[SHORT];
  vf top = fill(-INF), own = {}, sum = {}, ties = {}, excess = {}, factor = fill(1.0f), moved = {};
  vi place = vi{} - 1;
  const int lanes = WHOLE ? W : count;
  for (int i = 0; i < lanes; ++i) {
    if (target) place[i] = (int32_t)target[row + i];
    if (scale) factor[i] = scale.at(row + i);
    if (shift) moved[i] = shift.at(row + i);
  }
  for (int64_t j = 0; j < columns; ++j) {
    vf v = {};
    for (int i = 0; i < lanes; ++i) v[i] = z[i * columns + j];
    if (shift) v = choose(place == (int32_t)j, v + moved, v);
    e[j] = v;
    top = larger(top, v);
  }
  for (int64_t j = 0; j < columns; ++j) {
    const vf u = (e[j] - top) * factor;
    const vi largest = u == 0.0f;
    if (target) own = choose(place == (int32_t)j, u, own);
    e[j] = exp_and_excess<EXCESS>(u, excess);
    sum += choose(largest, vf{}, e[j]);
    ties += choose(largest, fill(1.0f), vf{});
  }
  const vf rest = sum + (ties - 1.0f), inverse = 1.0f / (1.0f + rest);
  vf mine = {};
  for (int64_t j = 0; j < columns; ++j) {
    const vf v = e[j] * inverse;
    if (target) mine = choose(place == (int32_t)j, v, mine);
    for (int i = 0; i < lanes; ++i) p[i * columns + j] = v[i];
  }
  std::memcpy(parts.top + row, &top, sizeof(float) * lanes);
  std::memcpy(parts.rest + row, &rest, sizeof(float) * lanes);
  if (target) {
    const vf away = choose(own == 0.0f, rest * inverse, 1.0f - mine);
    std::memcpy(parts.gap + row, &own, sizeof(float) * lanes);
    std::memcpy(parts.away + row, &away, sizeof(float) * lanes);
  }
  if (EXCESS) std::memcpy(parts.excess + row, &excess, sizeof(float) * lanes);
}

INLINE float largest_of(const float* z, int64_t columns) {
  vf tops[4] = {fill(-INF), fill(-INF), fill(-INF), fill(-INF)};
  int64_t j = 0;
  for (; j + 4 * W <= columns; j += 4 * W)
    for (int u = 0; u < 4; ++u) tops[u] = larger(tops[u], load(z + j + u * W));
  for (; j + W <= columns; j += W) tops[0] = larger(tops[0], load(z + j));
  if (j < columns) tops[1] = larger(tops[1], load_part(z + j, columns - j, -INF));
  return across_max(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
}

template <bool EXCESS>
INLINE void long_row(const float* z, float* p, const int64_t* target, Column scale, Column shift, Parts parts,
                     int64_t row, int64_t columns) {
  const int64_t y = target ? target[row] : -1;
  const bool inside = y >= 0 && y < columns;
  const float factor = scale ? scale.at(row) : 1.0f;
  if (shift && inside) {
    std::memcpy(p, z, sizeof(float) * columns);
    p[y] += shift.at(row);
    z = p;
  }
  const float top = largest_of(z, columns), own = inside ? (z[y] - top) * factor : 0.0f;
  Total all, over;
  vf ties = {};
  const auto one = [&](vf v, vf& sum, vf& excess) {
    const vf u = (v - top) * factor, e = exp_and_excess<EXCESS>(u, excess);
    const vi largest = u == 0.0f;
    sum += choose(largest, vf{}, e);
    ties += choose(largest, fill(1.0f), vf{});
    return e;
  };
  int64_t j = 0;
  while (j + W <= columns) {
    const int64_t last = std::min(columns - W, j + (RUN - 1) * W);
    vf sum = {}, excess = {};
    for (; j <= last; j += W) store(p + j, one(load(z + j), sum, excess));
    all.add(sum);
    if (EXCESS) over.add(excess);
  }
  float beyond = 1.0f;                 // places that hold the largest value and don't count
  if (j < columns) {
    vf sum = {}, excess = {};
    const vf e = one(load_part(z + j, columns - j, top), sum, excess);
    std::memcpy(p + j, &e, sizeof(float) * (columns - j));
    all.add(sum);
    if (EXCESS) over.add(excess);
    beyond += (float)(W - (columns - j));
  }
  const float rest = across_sum(all.value()) + (across_sum(ties) - beyond), inverse = 1.0f / (1.0f + rest);
  for (j = 0; j + W <= columns; j += W) store(p + j, load(p + j) * inverse);
  for (; j < columns; ++j) p[j] *= inverse;
  parts.top[row] = top;
  parts.rest[row] = rest;
  if (target) {
    parts.gap[row] = own;
    parts.away[row] = own == 0.0f ? rest * inverse : inside ? 1.0f - p[y] : 1.0f;
  }
  if (EXCESS) parts.excess[row] = across_sum(over.value());
}

template <bool EXCESS>
INLINE void softmax_of(const float* z, float* p, const int64_t* target, Column scale, Column shift, Parts parts,
                       int64_t rows, int64_t columns, int threads) {
  if (columns <= SHORT) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
    for (int64_t i = 0; i < rows; i += W) {
      const int64_t at = i * columns;
      if (rows - i >= W) short_rows<true, EXCESS>(z + at, p + at, target, scale, shift, parts, i, columns, W);
      else short_rows<false, EXCESS>(z + at, p + at, target, scale, shift, parts, i, columns, (int)(rows - i));
    }
    return;
  }
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
  for (int64_t i = 0; i < rows; ++i)
    long_row<EXCESS>(z + i * columns, p + i * columns, target, scale, shift, parts, i, columns);
}

// W short rows, or the last few: their mean, or a centre that is given, and the squares about it.
template <bool WHOLE>
INLINE void short_moments(const float* z, const int64_t* without, Column centre, float* mean, float* squares,
                          int64_t row, int64_t columns, int count) {
  vf values[SHORT];
  vf middle = {}, sum = {};
  vi place = vi{} - 1;
  const int lanes = WHOLE ? W : count;
  for (int i = 0; i < lanes; ++i) {
    if (without) place[i] = (int32_t)without[row + i];
    if (centre) middle[i] = centre.at(row + i);
  }
  for (int64_t j = 0; j < columns; ++j) {
    vf v = {};
    for (int i = 0; i < lanes; ++i) v[i] = z[i * columns + j];
    values[j] = v;
    if (!centre) sum += v;
  }
  if (!centre) {
    middle = sum / (float)columns;
    sum = vf{};
    for (int64_t j = 0; j < columns; ++j) sum += values[j] - middle;
    middle += sum / (float)columns;    // what rounding left
    std::memcpy(mean + row, &middle, sizeof(float) * lanes);
  }
  sum = vf{};
  for (int64_t j = 0; j < columns; ++j) {
    const vf apart = choose(place == (int32_t)j, vf{}, values[j] - middle);
    sum += apart * apart;
  }
  std::memcpy(squares + row, &sum, sizeof(float) * lanes);
}

// The sum of f(v) over the values of a row.
template <typename F>
INLINE float long_sum(const float* z, int64_t columns, F f) {
  Total all;
  int64_t j = 0;
  while (j + W <= columns) {
    const int64_t last = std::min(columns - W, j + (RUN - 1) * W);
    vf sums[2] = {};
    for (; j + W <= last; j += 2 * W) {
      sums[0] += f(load(z + j));
      sums[1] += f(load(z + j + W));
    }
    for (; j <= last; j += W) sums[0] += f(load(z + j));
    all.add(sums[0] + sums[1]);
  }
  float rest = 0.0f;
  for (; j < columns; ++j) rest += f(fill(z[j]))[0];
  return across_sum(all.value()) + rest;
}

INLINE void long_moments(const float* z, const int64_t* without, Column centre, float* mean, float* squares,
                         int64_t row, int64_t columns) {
  float middle = centre ? centre.at(row) : 0.0f;
  if (!centre) {
    middle = long_sum(z, columns, [](vf v) { return v; }) / (float)columns;
    middle += long_sum(z, columns, [=](vf v) { return v - middle; }) / (float)columns;
    mean[row] = middle;
  }
  const int64_t y = without ? without[row] : columns;
  const auto square = [=](vf v) { return (v - middle) * (v - middle); };
  if (y < 0 || y >= columns) squares[row] = long_sum(z, columns, square);
  else squares[row] = long_sum(z, y, square) + long_sum(z + y + 1, columns - y - 1, square);
}

typedef float quad __attribute__((vector_size(16)));  // rows may be shorter than a vector

template <typename V, bool OWN, bool OTHER>
INLINE int64_t mix_part(float* g, float f, const float* z, float a, float c, float b, int64_t j, int64_t columns) {
  constexpr int64_t width = sizeof(V) / sizeof(float);
  for (; j + width <= columns; j += width) {
    V own, other, mixed = V{} + b;
    std::memcpy(&own, g + j, sizeof own);
    if (OTHER) {
      std::memcpy(&other, z + j, sizeof other);
      mixed = a * (other - c) + mixed;
    }
    if (OWN) mixed = f * own + mixed;
    std::memcpy(g + j, &mixed, sizeof mixed);
  }
  return j;
}

template <bool OWN, bool OTHER>
INLINE void mix_row(float* g, float f, const float* z, float a, float c, float b, int64_t columns) {
  int64_t j = mix_part<vf, OWN, OTHER>(g, f, z, a, c, b, 0, columns);
  j = mix_part<quad, OWN, OTHER>(g, f, z, a, c, b, j, columns);
  for (; j < columns; ++j) g[j] = (OWN ? f * g[j] : 0.0f) + ((OTHER ? a * (z[j] - c) : 0.0f) + b);
}

}  // namespace steepest

using namespace steepest;

// Softmax p of u = s (z + m e_y - top), top the largest of z + m e_y; NaN where torch has NaN. Of each row: top, the sum
// of e^u over all values but one largest, and, of its target y where there is one, u_y and 1 - p_y; the sum of e^u - 1.
extern "C" void softmax_rows(const float* z, float* p, float* top, float* rest, const int64_t* target, float* gap,
                             float* away, float* excess, const float* scale, int64_t scale_step, const float* shift,
                             int64_t shift_step, int64_t rows, int64_t columns, int threads) {
  const Column factor{scale, scale_step}, moved{target ? shift : nullptr, shift_step};
  const Parts parts{top, gap, rest, away, excess};
  if (excess) softmax_of<true>(z, p, target, factor, moved, parts, rows, columns, threads);
  else softmax_of<false>(z, p, target, factor, moved, parts, rows, columns, threads);
}

// The mean of each row, or a centre that is given, and the sum of squares about it, over all values but one.
extern "C" void moments_rows(const float* z, float* mean, float* squares, const int64_t* without, const float* centre,
                             int64_t centre_step, int64_t rows, int64_t columns, int threads) {
  const Column middle{centre, centre_step};
  if (columns <= SHORT) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
    for (int64_t i = 0; i < rows; i += W) {
      if (rows - i >= W) short_moments<true>(z + i * columns, without, middle, mean, squares, i, columns, W);
      else short_moments<false>(z + i * columns, without, middle, mean, squares, i, columns, (int)(rows - i));
    }
    return;
  }
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
  for (int64_t i = 0; i < rows; ++i) long_moments(z + i * columns, without, middle, mean, squares, i, columns);
}

// g = f g + a (z - c) + b, a number a row each, and what is missing is nothing; then g[y] = value.
extern "C" void mix_rows(float* g, const float* z, const int64_t* target, const float* value, const float* factor,
                         int64_t factor_step, const float* slope, int64_t slope_step, const float* centre,
                         int64_t centre_step, const float* shift, int64_t shift_step, int64_t rows, int64_t columns,
                         int threads) {
  const Column f{factor, factor_step}, a{slope, slope_step}, c{centre, centre_step}, b{shift, shift_step};
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    float* row = g + i * columns;
    const float* other = z + i * columns;
    const float own = f ? f.at(i) : 1.0f, middle = c ? c.at(i) : 0.0f, more = b ? b.at(i) : 0.0f;
    if (f && a) mix_row<true, true>(row, own, other, a.at(i), middle, more, columns);
    else if (a) mix_row<false, true>(row, own, other, a.at(i), middle, more, columns);
    else mix_row<true, false>(row, own, other, 0.0f, middle, more, columns);
    if (target && target[i] >= 0 && target[i] < columns) row[target[i]] = value[i];
  }
}
