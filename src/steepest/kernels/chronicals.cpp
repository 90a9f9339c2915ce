// RMSNorm, SwiGLU and the rotation over rows of float32 or bfloat16, computed in float32, one pass over memory each way.
//
// Rows have neighbouring elements in a row and any stride between rows. Sums over rows are made in a fixed number of
// chunks that are merged in order: the number of threads changes no bit.

#include "../core/vectors.h"

#include <vector>

namespace {

using namespace steepest;

constexpr int64_t RUN = 16 * W;         // values of a row that are summed in plain float32
constexpr int64_t GROUP = 16;           // rows likewise

typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

struct bf16 { uint16_t bits; };

INLINE vf widen(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
INLINE vh narrow(vf v) {                // to nearest, ties to even; NaN stays NaN
  const vu bits = (vu)v;
  const vu near = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector((vu)(v == v ? (vi)near : (vi)((bits >> 16) | 0x40u)), vh);
}

INLINE vf load(const float* p, int64_t n) {
  vf v = {};
  if (n >= W) std::memcpy(&v, p, sizeof v); else std::memcpy(&v, p, sizeof(float) * n);
  return v;
}
INLINE vf load(const bf16* p, int64_t n) {
  vh h = {};
  if (n >= W) std::memcpy(&h, p, sizeof h); else std::memcpy(&h, p, sizeof(bf16) * n);
  return widen(h);
}
INLINE void store(float* p, vf v, int64_t n) {
  if (n >= W) std::memcpy(p, &v, sizeof v); else std::memcpy(p, &v, sizeof(float) * n);
}
INLINE void store(bf16* p, vf v, int64_t n) {
  const vh h = narrow(v);
  if (n >= W) std::memcpy(p, &h, sizeof h); else std::memcpy(p, &h, sizeof(bf16) * n);
}

INLINE float load(float v) { return v; }
INLINE float load(bf16 v) {
  const uint32_t bits = (uint32_t)v.bits << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
INLINE void store(float* p, float v) { *p = v; }
INLINE void store(bf16* p, float v) { p->bits = narrow(vf{} + v)[0]; }

// The sum over a row of term(i, n), the vector of its n values from the i-th on, of which W count at most.
template <class Term> INLINE float sum_over(int64_t d, const Term& term) {
  Total total;
  for (int64_t i = 0; i < d;) {
    const int64_t stop = std::min(d, i + RUN);
    vf one = {}, two = {};
    for (; i + 2 * W <= stop; i += 2 * W) {
      one += term(i, W);
      two += term(i + W, W);
    }
    for (; i < stop; i += W) one += term(i, d - i);
    total.add(one + two);
  }
  return across_sum(total.value());
}

// 1 / (1 + e^-g), to about 2 units in the last place; 0 where it is below float32.
INLINE vf sigmoid(vf g) {
  vf x = -g;
  x = x > 88.0f ? vf{} + 88.0f : x;     // NaN goes through
  x = x < -88.0f ? vf{} - 88.0f : x;
  const vf rounded = x * 0x1.715476p+0f + 0x1.8p+23f;  // the nearest integer is in the lowest bits
  const vf n = rounded - 0x1.8p+23f;
  vf t = x - n * 0x1.62E4p-1f;          // exact: 17 bits of ln 2 and 7 of n
  t = t - n * 0x1.7F7D1Cp-20f;
  vf p = t * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * t + 8.3334519073e-3f;
  p = p * t + 4.1665795894e-2f;
  p = p * t + 1.6666665459e-1f;
  p = p * t + 5.0000001201e-1f;
  p = p * (t * t) + t + 1.0f;
  const vi power = ((vi)rounded - 0x4b400000 + 127) << 23;
  const vf s = 1.0f / (1.0f + p * (vf)power);
  return g < -88.0f ? vf{} : s;
}

template <class T>
void rms_forward(const T* x, const float* w, T* y, float* r, int64_t stride, int64_t rows, int64_t d, float eps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * d > 32768)
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = x + row * stride;
    const float squares = sum_over(d, [&](int64_t i, int64_t n) { const vf a = load(from + i, n); return a * a; });
    const float scale = 1.0f / std::sqrt(squares / d + eps);
    r[row] = scale;
    T* to = y + row * d;
    int64_t i = 0;
    for (; i + W <= d; i += W) store(to + i, load(from + i, W) * scale * load(w + i, W), W);
    if (i < d) store(to + i, load(from + i, d - i) * scale * load(w + i, d - i), d - i);
  }
}

// dx and, added to dw, the rows' sum.
template <class T>
INLINE void rms_backward_row(const T* x, const float* w, float scale, const T* dy, T* dx, float* dw, int64_t d) {
  const float dot = sum_over(d, [&](int64_t i, int64_t n) { return load(x + i, n) * load(w + i, n) * load(dy + i, n); });
  const float pull = dot / d * scale * scale;
  for (int64_t i = 0; i < d; i += W) {
    const int64_t n = d - i;
    const vf v = load(x + i, n), g = load(dy + i, n);
    store(dw + i, load(dw + i, n) + g * v * scale, n);
    store(dx + i, (load(w + i, n) * g - v * pull) * scale, n);
  }
}

// dw: [chunks, d] of zeros; each chunk of rows adds into its own, group by group.
template <class T>
void rms_backward(const T* x, const float* w, const float* r, const T* dy, T* dx, float* dw, int64_t stride, int64_t dy_stride,
                  int64_t rows, int64_t d, int64_t chunks, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * d > 32768)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
    float* own = dw + chunk * d;
    const bool single = end - first <= GROUP;
    std::vector<float> group(single ? 0 : d), rest(single ? 0 : d);
    for (int64_t row = first; row < end;) {
      float* sums = single ? own : group.data();
      for (const int64_t stop = std::min(end, row + GROUP); row < stop; ++row)
        rms_backward_row(x + row * stride, w, r[row], dy + row * dy_stride, dx + row * d, sums, d);
      for (int64_t i = 0; i < d && !single; i += W) {
        Total total{load(own + i, d - i), load(rest.data() + i, d - i)};
        total.add(load(sums + i, d - i));
        store(own + i, total.hi, d - i);
        store(rest.data() + i, total.lo, d - i);
        store(sums + i, vf{}, d - i);
      }
    }
    for (int64_t i = 0; i < d && !single; i += W)
      store(own + i, Total{load(own + i, d - i), load(rest.data() + i, d - i)}.value(), d - i);
  }
}

template <class T>
void swiglu_forward(const T* g, const T* u, T* y, int64_t g_stride, int64_t u_stride, int64_t rows, int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * d > 32768)
  for (int64_t row = 0; row < rows; ++row) {
    const T *a = g + row * g_stride, *b = u + row * u_stride;
    T* to = y + row * d;
    for (int64_t i = 0; i < d; i += W) {
      const vf v = load(a + i, d - i);
      store(to + i, v * sigmoid(v) * load(b + i, d - i), d - i);
    }
  }
}

template <class T>
void swiglu_backward(const T* g, const T* u, const T* dy, T* dg, T* du, int64_t g_stride, int64_t u_stride, int64_t dy_stride,
                     int64_t rows, int64_t d, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * d > 32768)
  for (int64_t row = 0; row < rows; ++row) {
    const T *a = g + row * g_stride, *b = u + row * u_stride, *c = dy + row * dy_stride;
    for (int64_t i = 0; i < d; i += W) {
      const int64_t n = d - i;
      const vf v = load(a + i, n), f = load(c + i, n), s = sigmoid(v);
      store(dg + row * d + i, f * load(b + i, n) * s * (1.0f + v * (1.0f - s)), n);
      store(du + row * d + i, f * v * s, n);
    }
  }
}

// x: [batch, heads, time, 2 half] by strides, y likewise; the table [1 or batch, time, half] by its stride.
template <class T>
void rotate(const T* x, T* y, const float* cos, const float* sin, const int64_t* xs, const int64_t* ys, int64_t table,
            int64_t batch, int64_t heads, int64_t time, int64_t half, float sign, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * heads * time * half > 16384)
  for (int64_t row = 0; row < batch * heads * time; ++row) {
    // neighbours in memory first: heads inside time where that is how they lie
    const bool inner = xs[1] < xs[2];
    const int64_t b = row / (heads * time), rest = row % (heads * time);
    const int64_t h = inner ? rest % heads : rest / time, t = inner ? rest / heads : rest % time;
    const T* from = x + b * xs[0] + h * xs[1] + t * xs[2];
    T* to = y + b * ys[0] + h * ys[1] + t * ys[2];
    const float *c = cos + b * table + t * half, *s = sin + b * table + t * half;
    int64_t i = 0;
    for (; i + W <= half; i += W) {
      const vf p = load(from + i, W), q = load(from + half + i, W), cs = load(c + i, W), sn = load(s + i, W) * sign;
      store(to + i, p * cs - q * sn, W);
      store(to + half + i, q * cs + p * sn, W);
    }
    for (; i < half; ++i) {              // heads are short: one by one is faster than a copy of part of a vector
      const float p = load(from[i]), q = load(from[half + i]), sn = s[i] * sign;
      store(to + i, p * c[i] - q * sn);
      store(to + half + i, q * c[i] + p * sn);
    }
  }
}

}  // namespace

#define FUNCTIONS(NAME, T)                                                                                                    \
  extern "C" void rms_forward_##NAME(const void* x, const void* w, void* y, void* r, int64_t stride, int64_t rows, int64_t d, \
                                     double eps, int threads) {                                                               \
    rms_forward((const T*)x, (const float*)w, (T*)y, (float*)r, stride, rows, d, (float)eps, threads);                        \
  }                                                                                                                           \
  extern "C" void rms_backward_##NAME(const void* x, const void* w, const void* r, const void* dy, void* dx, void* dw,        \
                                      int64_t stride, int64_t dy_stride, int64_t rows, int64_t d, int64_t chunks,             \
                                      int threads) {                                                                          \
    rms_backward((const T*)x, (const float*)w, (const float*)r, (const T*)dy, (T*)dx, (float*)dw, stride, dy_stride, rows,    \
                 d, chunks, threads);                                                                                         \
  }                                                                                                                           \
  extern "C" void swiglu_forward_##NAME(const void* g, const void* u, void* y, int64_t gs, int64_t us, int64_t rows,          \
                                        int64_t d, int threads) {                                                             \
    swiglu_forward((const T*)g, (const T*)u, (T*)y, gs, us, rows, d, threads);                                                \
  }                                                                                                                           \
  extern "C" void swiglu_backward_##NAME(const void* g, const void* u, const void* dy, void* dg, void* du, int64_t gs,        \
                                         int64_t us, int64_t ds, int64_t rows, int64_t d, int threads) {                      \
    swiglu_backward((const T*)g, (const T*)u, (const T*)dy, (T*)dg, (T*)du, gs, us, ds, rows, d, threads);                    \
  }                                                                                                                           \
  extern "C" void rotate_##NAME(const void* x, void* y, const void* cos, const void* sin, const void* xs, const void* ys,     \
                                int64_t table, int64_t batch, int64_t heads, int64_t time, int64_t half, double sign,         \
                                int threads) {                                                                                \
    rotate((const T*)x, (T*)y, (const float*)cos, (const float*)sin, (const int64_t*)xs, (const int64_t*)ys, table, batch,    \
           heads, time, half, (float)sign, threads);                                                                          \
  }

FUNCTIONS(float32, float)
FUNCTIONS(bfloat16, bf16)
