// Averages of gradients and of their squares, the inner products from which a step takes its length, and the step: each
// tensor in one pass, by itself, so that it is the same whatever else moves.

#include "vectors.h"

namespace steepest {

INLINE vf root(vf v) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX__)
  return (vf)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE__)
  return (vf)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < W; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

struct Decays {
  vf memory, gain;  // d <- memory d + gain g
  vf lasting, news; // v <- lasting v + news g^2
  vf eps;
};

// A sum in float32 over some vectors, in float64 over blocks of those.
struct Product {
  vf block = {};
  double sum = 0.0;
  void flush() {
    for (int i = 0; i < W; ++i) sum += block[i];
    block = vf{};
  }
};

constexpr int64_t BLOCK = 64 * W;

INLINE vf scaled(vf d, vf v, vf share, vf eps) { return d / (root(v) * share + eps); }

// d is the gradient itself where there is no average; the metric is 1 where there are no squares.
template <bool AVERAGE, bool SQUARES>
INLINE void entry(vf w, vf g, vf& d, vf& v, vf share, const Decays& n, Product* sums) {
  d = AVERAGE ? n.memory * d + n.gain * g : g;
  if (SQUARES) v = n.lasting * v + n.news * g * g;
  sums[0].block += g * w;
  sums[1].block += d * w;
  sums[2].block += d * (SQUARES ? scaled(d, v, share, n.eps) : d);
}

template <bool AVERAGE, bool SQUARES>
static void products(const float* w, const float* g, float* d, float* v, int64_t count, vf share, const Decays& n,
                     double* out) {
  Product sums[3];
  for (int64_t start = 0; start < count; start += BLOCK) {
    const int64_t end = std::min(start + BLOCK, count);
    int64_t i = start;
    for (; i + W <= end; i += W) {
      vf a = AVERAGE ? load(d + i) : vf{}, b = SQUARES ? load(v + i) : vf{};
      entry<AVERAGE, SQUARES>(load(w + i), load(g + i), a, b, share, n, sums);
      if (AVERAGE) store(d + i, a);
      if (SQUARES) store(v + i, b);
    }
    if (const int64_t left = end - i; left > 0) {  // 0 / eps in lanes that hold nothing
      vf a = AVERAGE ? load_part(d + i, left, 0.0f) : vf{}, b = SQUARES ? load_part(v + i, left, 0.0f) : vf{};
      entry<AVERAGE, SQUARES>(load_part(w + i, left, 0.0f), load_part(g + i, left, 0.0f), a, b, share, n, sums);
      if (AVERAGE) std::memcpy(d + i, &a, sizeof(float) * left);
      if (SQUARES) std::memcpy(v + i, &b, sizeof(float) * left);
    }
    for (Product& sum : sums) sum.flush();
  }
  for (int k = 0; k < 3; ++k) out[k] = sums[k].sum;
}

template <bool SQUARES>
static void along(float* w, const float* d, const float* v, int64_t count, vf share, vf eps, vf length) {
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const vf a = load(d + i);
    store(w + i, load(w + i) - length * (SQUARES ? scaled(a, load(v + i), share, eps) : a));
  }
  if (const int64_t left = count - i; left > 0) {
    const vf a = load_part(d + i, left, 0.0f);
    const vf b = SQUARES ? scaled(a, load_part(v + i, left, 0.0f), share, eps) : a;
    const vf moved = load_part(w + i, left, 0.0f) - length * b;
    std::memcpy(w + i, &moved, sizeof(float) * left);
  }
}

// The momentum is g itself where there is no average.
template <bool AVERAGE>
static void momentum(float* w, const float* g, float* m, int64_t count, vf memory, vf gain, vf lasting, vf length) {
  const auto way = [&](vf a, vf b) { return AVERAGE ? memory * a + gain * b : b; };
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const vf a = way(AVERAGE ? load(m + i) : vf{}, load(g + i));
    if (AVERAGE) store(m + i, a);
    store(w + i, lasting * load(w + i) - length * a);
  }
  if (const int64_t left = count - i; left > 0) {
    const vf a = way(AVERAGE ? load_part(m + i, left, 0.0f) : vf{}, load_part(g + i, left, 0.0f));
    if (AVERAGE) std::memcpy(m + i, &a, sizeof(float) * left);
    const vf moved = lasting * load_part(w + i, left, 0.0f) - length * a;
    std::memcpy(w + i, &moved, sizeof(float) * left);
  }
}

}  // namespace steepest

extern "C" {

// m <- memory m + gain g, w <- lasting w - length m for each of `tensors` tensors; m = g where the list is null.
// `scalars`: memory, gain, lasting, length.
void moments_momentum(float* const* w, const float* const* g, float* const* m, const int64_t* sizes, int64_t tensors,
                      const float* scalars) {
  using namespace steepest;
  const vf memory = fill(scalars[0]), gain = fill(scalars[1]), lasting = fill(scalars[2]), length = fill(scalars[3]);
  for (int64_t k = 0; k < tensors; ++k) {
    if (m) momentum<true>(w[k], g[k], m[k], sizes[k], memory, gain, lasting, length);
    else momentum<false>(w[k], g[k], nullptr, sizes[k], memory, gain, lasting, length);
  }
}

// For each of `tensors` tensors: averages d and v (none where the list is null) take in the gradient g, and
// out[3 k ..] gets <g, w>, <d, w>, sum d^2 / (sqrt(v) share + eps). `scalars`: memory, gain, lasting, news, eps.
void moments_products(const float* const* w, const float* const* g, float* const* d, float* const* v,
                      const int64_t* sizes, const float* shares, int64_t tensors, const float* scalars, double* out) {
  using namespace steepest;
  const Decays n = {fill(scalars[0]), fill(scalars[1]), fill(scalars[2]), fill(scalars[3]), fill(scalars[4])};
  for (int64_t k = 0; k < tensors; ++k) {
    const vf share = fill(shares[k]);
    double* own = out + 3 * k;
    if (d && v) products<true, true>(w[k], g[k], d[k], v[k], sizes[k], share, n, own);
    else if (d) products<true, false>(w[k], g[k], d[k], nullptr, sizes[k], share, n, own);
    else if (v) products<false, true>(w[k], g[k], nullptr, v[k], sizes[k], share, n, own);
    else products<false, false>(w[k], g[k], nullptr, nullptr, sizes[k], share, n, own);
  }
}

// w <- w - length d / (sqrt(v) share + eps) for each of `tensors` tensors; w - length d where there is no v.
void moments_move(float* const* w, const float* const* d, const float* const* v, const int64_t* sizes,
                  const float* shares, int64_t tensors, float eps, float length) {
  using namespace steepest;
  for (int64_t k = 0; k < tensors; ++k) {
    if (v) along<true>(w[k], d[k], v[k], sizes[k], fill(shares[k]), fill(eps), fill(length));
    else along<false>(w[k], d[k], nullptr, sizes[k], fill(shares[k]), fill(eps), fill(length));
  }
}
}
