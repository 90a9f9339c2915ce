// Softmax in two passes over memory, for rows of float32 that lie one after the other.
//
// e^x is kept as a pair (m, n), e^x = m 2^n, so that no maximum is needed first: pass 1 sums pairs, pass 2 writes. Values
// beyond +-65536 lose bits of n: a row whose maximum lies there takes the slow way, which subtracts the maximum.
// A long row is summed in blocks of fixed size, merged in order: the number of threads changes no bit.

#include "../core/vectors.h"

#include <limits>
#include <vector>

namespace steepest {

constexpr int U = 4;                   // vectors that share one exponent in a step of pass 1
constexpr int64_t RUN = 8 * U * W;     // values that are summed in plain float32
constexpr int64_t BLOCK = 1 << 16;     // values of a long row that one thread takes at a time
constexpr int64_t GRAIN = 1 << 15;     // values of short rows that one thread takes at a time

constexpr float FLOOR = -65536.0f;     // also what -inf becomes: nothing beside any row that is not shifted
constexpr float LIMIT = 90000.0f;      // of |n|; beyond it the row is shifted
constexpr float NAN_ = std::numeric_limits<float>::quiet_NaN();
constexpr float INF = std::numeric_limits<float>::infinity();

struct Pair { vf m, n; };

INLINE Pair extexp(vf x) {
  x = larger(fill(FLOOR), x);
  const vf n = (x * LOG2E + ROUND) - ROUND;
  return {exp_polynomial(less_ln2(x, n)), n};
}

struct Sum { double m; double n; };

INLINE Sum merge(Sum a, Sum b) {
  const double n = a.n > b.n ? a.n : b.n;
  return {a.m * std::exp2(a.n - n) + b.m * std::exp2(b.n - n), n};
}

INLINE vf joined(const vf (&sums)[U]) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

// Lanes of the sum over at most RUN values, as multiples of 2^top; top grows to the largest exponent met.
template <bool SHIFTED> INLINE vf sum_run(const float* x, int64_t count, float shift, vf& top) {
  vf sums[U] = {};
  int64_t i = 0;
  for (; i + U * W <= count; i += U * W) {
    Pair e[U];
    vf now = top;
    for (int u = 0; u < U; ++u) {
      const vf v = load(x + i + u * W);
      e[u] = extexp(SHIFTED ? v - shift : v);
      now = larger(now, e[u].n);
    }
    const vf factor = scale2(fill(1.0f), top - now);
    for (int u = 0; u < U; ++u) sums[u] = sums[u] * factor + scale2(e[u].m, e[u].n - now);
    top = now;
  }
  for (; i < count; i += W) {
    const vf v = count - i >= W ? load(x + i) : load_part(x + i, count - i, -INF);
    const Pair e = extexp(SHIFTED ? v - shift : v);
    const vf now = larger(top, e.n);
    const vf factor = scale2(fill(1.0f), top - now);
    for (int u = 0; u < U; ++u) sums[u] = sums[u] * factor;
    sums[0] += scale2(e.m, e.n - now);
    top = now;
  }
  return joined(sums);
}

// Pass 1 over at most BLOCK values.
template <bool SHIFTED> INLINE Sum sum_block(const float* x, int64_t count, float shift) {
  vf top = fill(-INF);
  vf sum = sum_run<SHIFTED>(x, std::min(count, RUN), shift, top);
  if (count > RUN) {
    Total total{sum};
    for (int64_t i = RUN; i < count; i += RUN) {
      const vf before = top;
      sum = sum_run<SHIFTED>(x + i, std::min(count - i, RUN), shift, top);
      total.scale(scale2(fill(1.0f), before - top));
      total.add(sum);
    }
    sum = total.value();
  }
  const float most = across_max(top);
  return {across_sum(scale2(sum, top - most)), most};
}

struct Row { float m, n, shift; };     // sum of e^x = m 2^n e^shift
INLINE bool proper(const Row& row) { return row.m > 0.0f && row.m < INF; }

template <bool SHIFTED> static Sum sum_row(const float* x, int64_t count, float shift, int threads) {
  if (count <= BLOCK) return sum_block<SHIFTED>(x, count, shift);
  const int64_t blocks = (count + BLOCK - 1) / BLOCK;
  std::vector<Sum> parts(blocks);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t start = b * BLOCK, left = count - start;
    parts[b] = sum_block<SHIFTED>(x + start, left < BLOCK ? left : BLOCK, shift);
  }
  Sum all = parts[0];
  for (int64_t b = 1; b < blocks; ++b) all = merge(all, parts[b]);
  return all;
}

static Row shifted_row(const float* x, int64_t count, int threads) {
  float top = -INF;
  for (int64_t i = 0; i < count; ++i) {
    if (x[i] != x[i]) return {NAN_, 0.0f, 0.0f};
    top = x[i] > top ? x[i] : top;
  }
  if (top == INF) return {INF, 0.0f, 0.0f};
  if (top == -INF) return {0.0f, -INF, 0.0f};
  const Sum all = sum_row<true>(x, count, top, threads);
  return {(float)all.m, (float)all.n, top};
}

INLINE Row row_of(const float* x, int64_t count, int threads) {
  const Sum all = sum_row<false>(x, count, 0.0f, threads);
  if (!(all.n > -LIMIT && all.n < LIMIT && all.m == all.m)) return shifted_row(x, count, threads);
  return {(float)all.m, (float)all.n, 0.0f};
}

struct Weights {                       // pass 2: factor e^(x - shift) 2^-n
  float factor, n, shift;
  INLINE Weights make(const Row& row, float factor) { return {factor, row.n, row.shift}; }
  template <bool SHIFTED> vf at(vf x) const {
    const Pair e = extexp(SHIFTED ? x - shift : x);
    return scale2(e.m * factor, e.n - n);
  }
};

struct Logs {                          // pass 2 of log-softmax: x - shift - n ln 2 - log m, never above 0
  float log_m, base, rest, shift;      // base + rest = n ln 2
  INLINE Logs make(const Row& row) {
    const double exponent = row.n * 0.6931471805599453;
    const float base = (float)exponent;
    return {(float)std::log((double)row.m), base, (float)(exponent - base), row.shift};
  }
  template <bool SHIFTED> vf at(vf x) const {
    const vf t = ((SHIFTED ? x - shift : x) - base) - rest;
    return vf{} - larger(vf{}, log_m - t);
  }
};

template <bool SHIFTED, class Form>
INLINE void write_span(const float* x, float* y, int64_t count, const Form form) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(y + i, form.template at<SHIFTED>(load(x + i)));
  if (i < count) {
    const vf v = form.template at<SHIFTED>(load_part(x + i, count - i, 0.0f));
    std::memcpy(y + i, &v, sizeof(float) * (count - i));
  }
}

template <class Work> INLINE void over_blocks(int64_t count, int threads, const Work& work) {
  if (count <= BLOCK) return work(0, count);
  const int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t start = b * BLOCK, left = count - start;
    work(start, left < BLOCK ? left : BLOCK);
  }
}

// Short rows go to the threads whole, so many at a time that waking a thread is worth it; in a long one the threads share
// the blocks.
template <class Work> INLINE void over_rows(int64_t rows, int64_t count, int threads, const Work& work) {
  if (count > BLOCK) {
    for (int64_t r = 0; r < rows; ++r) work(r, threads);
    return;
  }
  const int64_t share = count < GRAIN ? GRAIN / count : 1;
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows > share) schedule(dynamic, share)
  for (int64_t r = 0; r < rows; ++r) work(r, 1);
}

template <class Form>
INLINE void write_row(const float* x, float* y, int64_t count, int threads, const Row& row, const Form& form) {
  over_blocks(count, threads, [&](int64_t start, int64_t length) {
    if (!proper(row))
      for (int64_t i = 0; i < length; ++i) y[start + i] = NAN_;
    else if (row.shift != 0.0f)
      write_span<true>(x + start, y + start, length, form);
    else
      write_span<false>(x + start, y + start, length, form);
  });
}

// A row of at most V vectors keeps its pairs in registers; false where it must be shifted.
template <int V> INLINE bool softmax_short(const float* x, float* y, int64_t count) {
  Pair e[V];
  const int64_t last = count - (V - 1) * W;
  vf top = fill(-INF), sum = {};
  for (int v = 0; v < V; ++v) {
    e[v] = extexp(v < V - 1 || last == W ? load(x + v * W) : load_part(x + v * W, last, -INF));
    top = larger(top, e[v].n);
  }
  const float most = across_max(top);
  for (int v = 0; v < V; ++v) sum += e[v].m = scale2(e[v].m, e[v].n - most);
  const float total = across_sum(sum);
  if (!(most > -LIMIT && most < LIMIT && total == total)) return false;
  for (int v = 0; v < V - 1; ++v) store(y + v * W, e[v].m * (1.0f / total));
  const vf end = e[V - 1].m * (1.0f / total);
  std::memcpy(y + (V - 1) * W, &end, sizeof(float) * last);
  return true;
}

INLINE bool softmax_short(const float* x, float* y, int64_t count) {
  switch ((count + W - 1) / W) {
    case 1: return softmax_short<1>(x, y, count);
    case 2: return softmax_short<2>(x, y, count);
    case 3: return softmax_short<3>(x, y, count);
    case 4: return softmax_short<4>(x, y, count);
    case 5: return softmax_short<5>(x, y, count);
    case 6: return softmax_short<6>(x, y, count);
    case 7: return softmax_short<7>(x, y, count);
    case 8: return softmax_short<8>(x, y, count);
    default: return false;
  }
}

// dx = value(y, dy, total), total = sum of term(y, dy) over the row.
template <class Kind> struct Backward {
  const float *y, *dy;
  float* dx;

  vf run(const float* a, const float* b, int64_t length) const {
    vf sums[U] = {};
    int64_t i = 0;
    for (; i + U * W <= length; i += U * W)
      for (int u = 0; u < U; ++u) sums[u] += Kind::term(load(a + i + u * W), load(b + i + u * W));
    for (; i + W <= length; i += W) sums[0] += Kind::term(load(a + i), load(b + i));
    if (i < length) sums[1] += Kind::term(load_part(a + i, length - i, 0.0f), load_part(b + i, length - i, 0.0f));
    return joined(sums);
  }

  double part(int64_t start, int64_t length) const {
    const float *a = y + start, *b = dy + start;
    if (length <= RUN) return across_sum(run(a, b, length));
    Total total;
    for (int64_t i = 0; i < length; i += RUN) total.add(run(a + i, b + i, std::min(length - i, RUN)));
    return across_sum(total.value());
  }

  void write(int64_t start, int64_t length, float total) const {
    const float *a = y + start, *b = dy + start;
    float* out = dx + start;           // a store could change a member, not a local
    int64_t i = 0;
    for (; i + W <= length; i += W) store(out + i, Kind::value(load(a + i), load(b + i), total));
    if (i == length) return;
    const int64_t left = length - i;
    const vf v = Kind::value(load_part(a + i, left, 0.0f), load_part(b + i, left, 0.0f), total);
    std::memcpy(out + i, &v, sizeof(float) * left);
  }

  void row(int64_t count, int threads) const {
    double total = 0.0;
    if (count <= BLOCK) {
      total = part(0, count);
    } else {
      std::vector<double> parts((count + BLOCK - 1) / BLOCK);
      over_blocks(count, threads, [&](int64_t start, int64_t length) { parts[start / BLOCK] = part(start, length); });
      for (const double each : parts) total += each;
    }
    over_blocks(count, threads, [&](int64_t start, int64_t length) { write(start, length, (float)total); });
  }
};

struct OfSoftmax {
  INLINE vf term(vf y, vf dy) { return y * dy; }
  INLINE vf value(vf y, vf dy, float total) { return y * (dy - total); }
};

struct OfLogSoftmax {
  INLINE vf term(vf, vf dy) { return dy; }
  INLINE vf value(vf y, vf dy, float total) {
    const Pair e = extexp(y);
    return dy - scale2(e.m, e.n) * total;
  }
};

}  // namespace steepest

extern "C" {

using namespace steepest;

void softmax_forward(const float* x, float* y, int64_t rows, int64_t count, int threads) {
  over_rows(rows, count, threads, [&](int64_t r, int inner) {
    if (softmax_short(x + r * count, y + r * count, count)) return;
    const Row row = row_of(x + r * count, count, inner);
    write_row(x + r * count, y + r * count, count, inner, row, Weights::make(row, 1.0f / row.m));
  });
}

void log_softmax_forward(const float* x, float* y, int64_t rows, int64_t count, int threads) {
  over_rows(rows, count, threads, [&](int64_t r, int inner) {
    const Row row = row_of(x + r * count, count, inner);
    write_row(x + r * count, y + r * count, count, inner, row, Logs::make(row));
  });
}

// sums: [rows, 3], m and n and shift of each row.
void softmax_sums(const float* x, float* sums, int64_t rows, int64_t count, int threads) {
  over_rows(rows, count, threads, [&](int64_t r, int inner) {
    const Row row = row_of(x + r * count, count, inner);
    std::memcpy(sums + 3 * r, &row, sizeof row);
  });
}

// y = factor e^(x - shift) 2^-n, one factor a row.
void softmax_weights(const float* x, const float* sums, const float* factor, float* y, int64_t rows, int64_t count,
                     int threads) {
  over_rows(rows, count, threads, [&](int64_t r, int inner) {
    Row row;
    std::memcpy(&row, sums + 3 * r, sizeof row);
    write_row(x + r * count, y + r * count, count, inner, row, Weights::make(row, factor[r]));
  });
}

void softmax_backward(const float* y, const float* dy, float* dx, int64_t rows, int64_t count, int threads) {
  over_rows(rows, count, threads, [&](int64_t r, int inner) {
    Backward<OfSoftmax>{y + r * count, dy + r * count, dx + r * count}.row(count, inner);
  });
}

void log_softmax_backward(const float* y, const float* dy, float* dx, int64_t rows, int64_t count, int threads) {
  over_rows(rows, count, threads, [&](int64_t r, int inner) {
    Backward<OfLogSoftmax>{y + r * count, dy + r * count, dx + r * count}.row(count, inner);
  });
}

}  // extern "C"
