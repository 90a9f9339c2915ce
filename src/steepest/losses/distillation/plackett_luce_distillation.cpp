// Sequential choices over rows of float32: losses and gradients of weighted Plackett-Luce orders.

#include "../../core/vectors.h"

#include <vector>

namespace steepest {

constexpr float WILDEST = 70.0f;       // from this spread on a row's exponentials don't fit into float32
constexpr int64_t RUN = 32;            // vectors that are summed in plain float32
constexpr int64_t GRAIN = 1 << 13;     // values that one thread takes at a time
constexpr uint32_t UNWRITTEN = 0x7fc0badeu;  // a NaN that no arithmetic gives

enum Status { FINE = 0, WILD = 1, NEGATIVE = 2, NO_ORDER = 3 };

INLINE vf smaller(vf a, vf b) { return -larger(-a, -b); }

// log(1 + x) for x >= 0, relative error 2e-7.
INLINE vf log1p_above_zero(vf x) {
  const vf y = x + 1.0f;
  const vi power = ((vi)y - 0x3f3504f3) >> 23;
  const vi near = x < 0x1.a82798p-2f;  // up to sqrt 2 nothing is lost by the sum
  const vf f = near ? x : (vf)((vi)y - (power << 23)) - 1.0f;
  const vf n = near ? vf{} : __builtin_convertvector(power, vf);
  const vf z = f * f;
  vf p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  return (f + (z * (f * p - 0.5f) + n * -2.12194440e-4f)) + n * 0.693359375f;
}

// A row in its order lies in lanes: lane i holds the places i L .. (i + 1) L - 1, so that sums run down the vectors and
// meet once.
struct Row {
  const int64_t columns, length;
  std::vector<float> held;
  float *e, *w, *x;                    // e^(s - top), weights, sums; on bounds of vectors
  explicit Row(int64_t columns)
      : columns(columns), length((columns + W - 1) / W), held((3 * length + 1) * W) {
    constexpr uintptr_t bytes = sizeof(vf);
    e = (float*)(((uintptr_t)held.data() + bytes - 1) / bytes * bytes);
    w = e + length * W;
    x = w + length * W;
  }

  void gather(const float* __restrict s, const float* __restrict weights, const int32_t* __restrict order) {
    for (int64_t i = 0; i < W; ++i) {
      const int64_t first = std::min(i * length, columns), last = std::min(first + length, columns);
      float *own = e + i, *other = w + i;
      int64_t j = 0;
#pragma GCC unroll 8
      for (int64_t k = first; k < last; ++k, ++j) {
        own[j * W] = s[order[k]];
        other[j * W] = weights[k];
      }
      for (; j < length; ++j) own[j * W] = -INFINITY, other[j * W] = 0.0f;
    }
  }
};

// The sums of all lanes after (or before) each.
INLINE vf carried(vf totals, bool after) {
  float own[W], sums[W];
  store(own, totals);
  float sum = 0.0f;
  for (int i = 0; i < W; ++i) {
    const int lane = after ? W - 1 - i : i;
    sums[lane] = sum;
    sum += own[lane];
  }
  return load(sums);
}

// The largest value less the smallest; infinite where one is not finite.
INLINE float spread(const float* s, int64_t columns, float& top) {
  vf high[2] = {fill(s[0]), fill(s[0])}, low[2] = {high[0], high[0]};
  vi strange[2] = {};
  const auto one = [&](vf v, int u) {
    high[u] = larger(v, high[u]);
    low[u] = smaller(v, low[u]);
    strange[u] |= ((vi)v & 0x7f800000) == 0x7f800000;
  };
  int64_t j = 0;
  for (; j + 2 * W <= columns; j += 2 * W)
    for (int u = 0; u < 2; ++u) one(load(s + j + u * W), u);
  for (; j < columns; j += W) one(j + W <= columns ? load(s + j) : load_part(s + j, columns - j, s[0]), 0);
  strange[0] |= strange[1];
  for (int i = 0; i < W; ++i)
    if (strange[0][i]) return INFINITY;
  top = across_max(larger(high[0], high[1]));
  return top + across_max(-smaller(low[0], low[1]));
}

INLINE bool any_negative(const float* values, int64_t count) {
  int32_t negative = 0;
  for (int64_t k = 0; k < count; ++k) negative |= values[k] < 0.0f;
  return negative;
}

INLINE Status one_row(Row& row, const float* s, const float* weights, float* g, float* loss, const int32_t* order,
                      int64_t target) {
  uint32_t most = 0;
  for (int64_t k = 0; k < row.columns; ++k) most = std::max(most, (uint32_t)order[k]);
  if (most >= (uint64_t)row.columns || order[0] != target) return NO_ORDER;
  if (any_negative(weights, row.columns)) return NEGATIVE;
  row.gather(s, weights, order);
  float *e = row.e, *w = row.w, *x = row.x;
  const int64_t end = row.length * W;
  float top = 0.0f;
  const bool tame = spread(s, row.columns, top) < WILDEST;

  // from the last choice to the first: x, the sum over what is chosen later
  if (tame) {
    vf base = {}, sum = {};
    int64_t count = 0;
    for (int64_t j = end - W; j >= 0; j -= W) {
      const vf mine = exp_below_zero(load(e + j) - top);
      store(e + j, mine);
      store(x + j, base + sum);
      sum += mine;
      if (++count == RUN) base += sum, sum = vf{}, count = 0;
    }
    const vf later = carried(base + sum, true);

    // from the first to the last: what a choice adds to those after it, and its own loss
    vf before = {}, losses = {};
    base = vf{}, count = 0;
    for (int64_t j = 0; j < end; j += W) {
      const vf others = load(x + j) + later, mine = load(e + j), weight = load(w + j);
      const vf all = larger(fill(1e-37f), others + mine), share = weight / all;
      losses += weight * log1p_above_zero(others / larger(fill(1e-37f), mine));
      store(x + j, base + before);
      store(w + j, share * others);
      before += share;
      if (++count == RUN) base += before, before = vf{}, count = 0;
    }
    *loss = across_sum(losses);
    const vf earlier = carried(base + before, false);
    for (int64_t j = 0; j < end; j += W) store(e + j, load(e + j) * (load(x + j) + earlier) - load(w + j));
  }

  float unwritten;
  std::memcpy(&unwritten, &UNWRITTEN, sizeof unwritten);
  std::fill(g, g + row.columns, unwritten);
  for (int64_t i = 0; i < W; ++i) {
    const int64_t first = std::min(i * row.length, row.columns), last = std::min(first + row.length, row.columns);
    const float* value = e + i;
#pragma GCC unroll 8
    for (int64_t k = first; k < last; ++k, value += W) g[order[k]] = *value;
  }
  int32_t missing = 0;
  for (int64_t k = 0; k < row.columns; ++k) {
    uint32_t bits;
    std::memcpy(&bits, g + k, sizeof bits);
    missing |= bits == UNWRITTEN;
  }
  return missing ? NO_ORDER : tame ? FINE : WILD;
}

constexpr int64_t FEW = 48;            // up to so many classes are sorted by insertion

// Places in a falling order of scores: equal scores, and those that are not finite, keep the order of their numbers.
struct Sorter {
  std::vector<uint64_t> now, next;     // a key that rises as the score falls, and the class
  explicit Sorter(int64_t columns) : now(columns), next(columns) {}

  static uint32_t key(float score) {
    if (!(score <= 3.4028235e38f)) score = score != score ? 0.0f : 3.4028235e38f;
    score += 0.0f;                     // no negative zero
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : ~bits ^ 0x80000000u;
  }

  void insertion(int64_t count) {
    for (int64_t i = 1; i < count; ++i) {
      const uint64_t own = now[i];
      int64_t j = i;
      for (; j > 0 && now[j - 1] > own; --j) now[j] = now[j - 1];
      now[j] = own;
    }
  }

  void radix(int64_t count) {
    int32_t counts[4][256] = {};
    for (int64_t i = 0; i < count; ++i)
      for (int byte = 0; byte < 4; ++byte) ++counts[byte][now[i] >> (32 + 8 * byte) & 255];
    for (int byte = 0; byte < 4; ++byte) {
      int32_t place = 0;
      for (int32_t& own : counts[byte]) place += own, own = place - own;
      for (int64_t i = 0; i < count; ++i) next[counts[byte][now[i] >> (32 + 8 * byte) & 255]++] = now[i];
      now.swap(next);
    }
  }

  void row(const float* scores, int64_t columns, int64_t target, int32_t* order) {
    int64_t count = 0;
    for (int64_t k = 0; k < columns; ++k)
      if (k != target) now[count++] = (uint64_t)key(scores[k]) << 32 | (uint64_t)k;
    count <= FEW ? insertion(count) : radix(count);
    order[0] = (int32_t)target;
    for (int64_t k = 0; k < count; ++k) order[k + 1] = (int32_t)now[k];
  }
};

}  // namespace steepest

using namespace steepest;

// The target, then the other columns by falling scores; and the shares p in that order.
extern "C" void order_rows(const float* scores, const float* p, float* w, const int64_t* target, int32_t* order,
                           int64_t rows, int64_t columns, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * columns > GRAIN)
  {
    Sorter sorter(columns);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * columns;
      sorter.row(scores + at, columns, target[i], order + at);
      for (int64_t k = 0; k < columns; ++k) w[at + k] = p[at + order[at + k]];
    }
  }
}

// Of each row of scores: the sum over its choices of w_k (log sum_{l >= k} e^s - s), and the gradient; and whether the
// row is too wild for float32, has a negative weight, or an order that is none or doesn't begin with the target.
extern "C" void choice_rows(const float* s, const float* w, float* g, float* loss, float* status, const int32_t* order,
                            const int64_t* target, int64_t rows, int64_t columns, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * columns > GRAIN)
  {
    Row row(columns);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * columns;
      loss[i] = 0.0f;
      status[i] = (float)one_row(row, s + at, w + at, g + at, loss + i, order + at, target[i]);
    }
  }
}
