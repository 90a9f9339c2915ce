// A step of a learned optimizer over tensors of float32: features of each entry into a network of layers 39, 4, 4, 2.
// Two passes over a tensor: averages and sums of squares of the features, then the features again and the network.

#include "../../core/vectors.h"

namespace steepest {

constexpr int FEATURES = 28, HIDDEN = 4, KINDS = 3;

INLINE vf at_most(vf v, vf high) {  // NaN stays
#if defined(__AVX512F__)
  return (vf)_mm512_min_ps((__m512)high, (__m512)v);
#elif defined(__AVX__)
  return (vf)_mm256_min_ps((__m256)high, (__m256)v);
#elif defined(__SSE__)
  return (vf)_mm_min_ps((__m128)high, (__m128)v);
#else
  return v > high ? high : v;
#endif
}

// 1 / sqrt(v) for v >= 1e-9: an estimate and a step of Newton's method (two for the coarse ones), relative error 2e-7.
INLINE vf inverse_root(vf v) {
  v = at_most(v, fill(3e38f));
  const vf half = v * 0.5f;
#if defined(__AVX512F__)
  vf y = (vf)_mm512_rsqrt14_ps((__m512)v);
#elif defined(__AVX__)
  vf y = (vf)_mm256_rsqrt_ps((__m256)v);
  y = y * (1.5f - half * y * y);
#elif defined(__SSE__)
  vf y = (vf)_mm_rsqrt_ps((__m128)v);
  y = y * (1.5f - half * y * y);
#else
  vf y;
  for (int i = 0; i < W; ++i) y[i] = 1.0f / std::sqrt(v[i]);
#endif
  return y * (1.5f - half * y * y);
}

INLINE vf cut_inverse_root(vf v) { return inverse_root(larger(fill(1e-9f), v)); }

INLINE vf positive(vf v) { return larger(fill(0.0f), v); }  // NaN stays

INLINE vf exponential(vf x) {
  const vf small = exp_below_zero(at_most(x, -x));  // e^-|x|
#if defined(__AVX512F__)
  return (vf)_mm512_mask_div_ps((__m512)small, _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GT_OQ),
                                _mm512_set1_ps(1.0f), (__m512)small);
#else
  vf out = small;
  for (int i = 0; i < W; ++i) if (x[i] > 0.0f) out[i] = 1.0f / small[i];
  return out;
#endif
}

struct Learned {
  const float* first;         // [28, 4]
  const float* second;        // [4, 4], then its 4 biases
  const float* third;         // [4, 2], then its 2 biases
  const float* decays;        // of m (3), v (1), s (3)
  float rate;                 // times 0.001
};

// Where the values of one entry lie that its row and its column share: 3 each of the average, its root, its share.
struct Shared {
  const float* at;            // [9, count]
  int64_t count, step;        // step 0: one value for all entries of the last dimension
  inline __attribute__((always_inline)) vf read(int k, int64_t base, int64_t i, int64_t left) const {
    const float* own = at + k * count + base;
    if (!step) return fill(*own);
    return left >= W ? load(own + i) : load_part(own + i, left, 1.0f);
  }
};

INLINE vf take(const float* p, int64_t left) { return left >= W ? load(p) : load_part(p, left, 0.0f); }
INLINE void give(float* p, vf v, int64_t left) {
  if (left >= W) store(p, v);
  else std::memcpy(p, &v, sizeof(float) * left);
}

// Features of entries whose averages are m, v and s.
INLINE void of_vector(vf* f, vf g, vf p, const vf* m, vf v, const vf* s) {
  const vf root = inverse_root(v + 1e-6f);
  f[0] = g, f[1] = p, f[5] = v, f[9] = root;
  for (int k = 0; k < KINDS; ++k) {
    const vf near = inverse_root(s[k] + 1e-8f);
    f[2 + k] = m[k], f[6 + k] = m[k] * root;
    f[10 + k] = g * cut_inverse_root(s[k] + 1e-9f);
    f[13 + k] = f[16 + k] = s[k];
    f[19 + k] = f[22 + k] = near;
    f[25 + k] = m[k] * inverse_root(s[k] + 1e-6f);
  }
}

INLINE void of_matrix(vf* f, vf g, vf p, const vf* m, vf v, const vf* row, const vf* col) {
  const vf root = inverse_root(v + 1e-6f);
  f[0] = g, f[1] = p, f[5] = v, f[9] = root;
  for (int k = 0; k < KINDS; ++k) {
    const vf both = row[6 + k] * col[6 + k];
    f[2 + k] = m[k], f[6 + k] = m[k] * root;
    f[10 + k] = g * both;
    f[13 + k] = row[k], f[16 + k] = col[k];
    f[19 + k] = row[3 + k], f[22 + k] = col[3 + k];
    f[25 + k] = m[k] * both;
  }
}

INLINE vf network(const vf* f, const float* first, const float* bias, const Learned& n) {
  vf even[HIDDEN], odd[HIDDEN] = {}, next[HIDDEN];
  for (int j = 0; j < HIDDEN; ++j) even[j] = fill(bias[j]);
  for (int i = 0; i < FEATURES; i += 2)
    for (int j = 0; j < HIDDEN; ++j) {
      even[j] += first[i * HIDDEN + j] * f[i];
      odd[j] += first[(i + 1) * HIDDEN + j] * f[i + 1];
    }
  for (int j = 0; j < HIDDEN; ++j) even[j] = positive(even[j] + odd[j]);
  for (int j = 0; j < HIDDEN; ++j) {
    next[j] = fill(n.second[HIDDEN * HIDDEN + j]);
    for (int i = 0; i < HIDDEN; ++i) next[j] += n.second[i * HIDDEN + j] * even[i];
    next[j] = positive(next[j]);
  }
  vf a = fill(n.third[2 * HIDDEN]), b = fill(n.third[2 * HIDDEN + 1]);
  for (int i = 0; i < HIDDEN; ++i) a += n.third[2 * i] * next[i], b += n.third[2 * i + 1] * next[i];
  return n.rate * a * exponential(b * 0.001f);
}

// One tensor: `lines` of `count` entries, with rows and columns where `row` is not null.
struct Tensor {
  float* p;
  const float* g;
  float *m, *v, *s;
  int64_t lines, count;
  const float *row, *col;            // [9, rows], [9, columns]
  int64_t rows, columns, row_step, col_step;
  const int64_t *row_at, *col_at;    // of each line its first place
};

template <bool MATRIX, bool FIRST>
INLINE void at(const Tensor& t, int64_t line, int64_t i, const Learned& n, vf* f) {
  const int64_t all = t.lines * t.count, left = t.count - i, place = line * t.count + i;
  const vf g = take(t.g + place, left);
  vf m[KINDS], s[KINDS], v = take(t.v + place, left);
  for (int k = 0; k < KINDS; ++k) {
    m[k] = take(t.m + k * all + place, left);
    if (!MATRIX) s[k] = take(t.s + k * all + place, left);
  }
  if (FIRST) {
    const float* d = n.decays;
    const vf square = g * g;
    for (int k = 0; k < KINDS; ++k) give(t.m + k * all + place, m[k] = d[k] * m[k] + (1.0f - d[k]) * g, left);
    give(t.v + place, v = d[3] * v + (1.0f - d[3]) * square, left);
    if (!MATRIX)
      for (int k = 0; k < KINDS; ++k)
        give(t.s + k * all + place, s[k] = d[4 + k] * s[k] + (1.0f - d[4 + k]) * (square + 1e-30f), left);
  }
  const vf p = take(t.p + place, left);
  if (MATRIX) {
    const Shared rows = {t.row, t.rows, t.row_step}, cols = {t.col, t.columns, t.col_step};
    vf row[9], col[9];
    for (int k = 0; k < 9; ++k) {
      row[k] = rows.read(k, t.row_at[line], i, left);
      col[k] = cols.read(k, t.col_at[line], i, left);
    }
    of_matrix(f, g, p, m, v, row, col);
  } else {
    of_vector(f, g, p, m, v, s);
  }
}

template <bool MATRIX>
static void step(const Tensor& t, const float* bias, const Learned& n) {
  double sums[FEATURES] = {};
  vf blocks[FEATURES] = {}, f[FEATURES];
  int waiting = 0;
  const auto flush = [&] {
    for (int k = 0; k < FEATURES; ++k) {
      for (int i = 0; i < W; ++i) sums[k] += blocks[k][i];
      blocks[k] = vf{};
    }
    waiting = 0;
  };
  for (int64_t line = 0; line < t.lines; ++line)
    for (int64_t i = 0; i < t.count; i += W) {
      at<MATRIX, true>(t, line, i, n, f);
      if (const int64_t left = t.count - i; left >= W) {
        for (int k = 0; k < FEATURES; ++k) blocks[k] += f[k] * f[k];
      } else {
        for (int k = 0; k < FEATURES; ++k)
          for (int64_t lane = 0; lane < left; ++lane) blocks[k][lane] += f[k][lane] * f[k][lane];
      }
      if (++waiting == 64) flush();
    }
  flush();
  float first[FEATURES * HIDDEN];
  for (int k = 0; k < FEATURES; ++k) {
    const float scale = (float)(1.0 / std::sqrt(1e-5 + sums[k] / (double)(t.lines * t.count)));
    for (int j = 0; j < HIDDEN; ++j) first[k * HIDDEN + j] = n.first[k * HIDDEN + j] * scale;
  }
  for (int64_t line = 0; line < t.lines; ++line)
    for (int64_t i = 0; i < t.count; i += W) {
      at<MATRIX, false>(t, line, i, n, f);
      float* p = t.p + line * t.count + i;
      give(p, f[1] - network(f, first, bias, n), t.count - i);
    }
}

}  // namespace steepest

extern "C" {

// Vectors: p, g [count], m [3, count], v [count], s [3, count] each; 4 biases of the first layer for each tensor.
void learned_vectors(float* const* p, const float* const* g, float* const* m, float* const* v, float* const* s,
                     const int64_t* sizes, const float* biases, int64_t tensors, const float* first, const float* second,
                     const float* third, const float* decays, float rate) {
  using namespace steepest;
  const Learned n = {first, second, third, decays, rate};
  for (int64_t k = 0; k < tensors; ++k) {
    const Tensor t = {p[k], g[k], m[k], v[k], s[k], 1, sizes[k]};
    step<false>(t, biases + HIDDEN * k, n);
  }
}

// A tensor of `lines` times `count` entries, the last dimension having `count`; `row` and `col` hold what was made of
// the averages over one dimension each, whose values for a line begin at `row_at`, `col_at` and go on by the steps.
void learned_matrix(float* p, const float* g, float* m, float* v, int64_t lines, int64_t count, const float* row,
                    const float* col, int64_t rows, int64_t columns, int64_t row_step, int64_t col_step,
                    const int64_t* row_at, const int64_t* col_at, const float* bias, const float* first,
                    const float* second, const float* third, const float* decays, float rate) {
  using namespace steepest;
  const Learned n = {first, second, third, decays, rate};
  const Tensor t = {p, g, m, v, nullptr, lines, count, row, col, rows, columns, row_step, col_step, row_at, col_at};
  step<true>(t, bias, n);
}
}
