// Sums of rows of one class, each divided by its length, and the gradient of what is made of them.

#include "../../core/vectors.h"

namespace steepest {

constexpr int D = W / 2;               // values of float64 in a vector
constexpr int64_t GRAIN = 1 << 15;     // values that one thread takes at a time

typedef double vd __attribute__((vector_size(4 * W)));
typedef float narrow __attribute__((vector_size(2 * W)));

INLINE float dot(const float* a, const float* b, int64_t count) {
  Total all;
  int64_t j = 0;
  while (j + W <= count) {             // at most 32 products are summed in plain float32
    const int64_t last = std::min(count - W, j + 31 * W);
    vf sums[4] = {};
    for (; j + 3 * W <= last; j += 4 * W)
      for (int u = 0; u < 4; ++u) sums[u] += load(a + j + u * W) * load(b + j + u * W);
    for (; j <= last; j += W) sums[0] += load(a + j) * load(b + j);
    all.add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  float rest = 0.0f;
  for (; j < count; ++j) rest += a[j] * b[j];
  return across_sum(all.value()) + rest;
}

}  // namespace steepest

using namespace steepest;

// sums[place] += x / |x|; one over each length, 0 up to eps; the sum of squares of all x / |x|. One thread: no bit depends
// on how many there are.
extern "C" void class_sums(const float* x, const int64_t* place, double* sums, double* squares, float* inverse,
                           const float* eps, int64_t, int64_t rows, int64_t columns, int) {
  double all = 0.0;
  vd own[2] = {};
  const auto add = [](const float* from, float scale, double* to, vd& squared) {
    narrow v;
    vd total;
    std::memcpy(&v, from, sizeof v);
    std::memcpy(&total, to, sizeof total);
    const vd unit = __builtin_convertvector(v * scale, vd);
    total += unit;
    squared += unit * unit;
    std::memcpy(to, &total, sizeof total);
  };
  for (int64_t first = 0; first < rows; first += 16) {
    const int64_t last = std::min(rows, first + 16);
    for (int64_t i = first; i < last; ++i) inverse[i] = dot(x + i * columns, x + i * columns, columns);
    for (int64_t i = first; i < last; ++i) {
      const float length = std::sqrt(inverse[i]);
      inverse[i] = length > *eps ? 1.0f / length : 0.0f;
    }
    for (int64_t i = first; i < last; ++i) {
      const float *row = x + i * columns, scale = inverse[i];
      double* sum = sums + place[i] * columns;
      int64_t j = 0;
      for (; j + 2 * D <= columns; j += 2 * D)
        for (int u = 0; u < 2; ++u) add(row + j + u * D, scale, sum + j + u * D, own[u]);
      for (; j + D <= columns; j += D) add(row + j, scale, sum + j, own[0]);
      for (; j < columns; ++j) {
        const float v = row[j] * scale;
        sum[j] += v;
        all += (double)v * v;
      }
    }
  }
  for (int u = 0; u < D; ++u) all += own[0][u] + own[1][u];
  *squares = all;
}

// The gradient in x of what has the slopes [classes, columns] in the sums: without its part along x.
extern "C" void class_slopes(const float* x, float* g, const int64_t* place, const float* slopes, const float* inverse,
                             int64_t rows, int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && rows * columns > GRAIN) schedule(static)
  for (int64_t i = 0; i < rows; ++i) {
    const float *row = x + i * columns, *slope = slopes + place[i] * columns;
    float* out = g + i * columns;
    const float scale = inverse[i], along = dot(row, slope, columns) * scale * scale;
    for (int64_t j = 0; j < columns; ++j) out[j] = scale * (slope[j] - along * row[j]);
  }
}
