// A step of Lanczos's method after its product, in one call: of short vectors the calls of operations cost the most.

#include "vectors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace steepest {

constexpr int64_t BLOCK = 2048;  // of a vector, that stays in the nearest cache while rows pass

// The products of a vector with rows: float32 over a block, whose sums are float64.
static void shares_of(const float* x, const float* rows, int64_t count, int64_t n, double* shares) {
  std::fill(shares, shares + count, 0.0);
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t size = std::min(BLOCK, n - begin);
    const float* block = x + begin;
    for (int64_t k = 0; k < count; ++k) {
      const float* row = rows + k * n + begin;
      vf a = {}, b = {}, c = {}, d = {};
      int64_t i = 0;
      for (; i + 4 * W <= size; i += 4 * W) {
        a += load(block + i) * load(row + i);
        b += load(block + i + W) * load(row + i + W);
        c += load(block + i + 2 * W) * load(row + i + 2 * W);
        d += load(block + i + 3 * W) * load(row + i + 3 * W);
      }
      for (; i + W <= size; i += W) a += load(block + i) * load(row + i);
      if (const int64_t left = size - i; left > 0)
        b += load_part(block + i, left, 0.0f) * load_part(row + i, left, 0.0f);
      shares[k] += (double)across_sum((a + b) + (c + d));
    }
  }
}

// x <- x - sum of share row; the sum of its squares in float64.
static double take_away(float* x, const float* rows, int64_t count, int64_t n, const double* shares) {
  double squares = 0.0;
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t size = std::min(BLOCK, n - begin);
    float* block = x + begin;
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
      const float* row = rows + k * n + begin;
      const float s[4] = {(float)shares[k], (float)shares[k + 1], (float)shares[k + 2], (float)shares[k + 3]};
      int64_t i = 0;
      for (; i + W <= size; i += W) {
        const vf p = s[0] * load(row + i) + s[1] * load(row + n + i);
        store(block + i, load(block + i) - (p + (s[2] * load(row + 2 * n + i) + s[3] * load(row + 3 * n + i))));
      }
      for (; i < size; ++i)
        block[i] -= (s[0] * row[i] + s[1] * row[n + i]) + (s[2] * row[2 * n + i] + s[3] * row[3 * n + i]);
    }
    for (; k < count; ++k) {
      const float* row = rows + k * n + begin;
      const float s = (float)shares[k];
      for (int64_t i = 0; i < size; ++i) block[i] -= s * row[i];
    }
    double lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= size; i += 8)
      for (int lane = 0; lane < 8; ++lane) lanes[lane] += (double)block[i + lane] * (double)block[i + lane];
    for (; i < size; ++i) lanes[0] += (double)block[i] * (double)block[i];
    for (double lane : lanes) squares += lane;
  }
  return squares;
}

constexpr int64_t SEGMENT = 32768;  // longer vectors have products that are float32 over blocks

static double dot(const float* a, const float* b, int64_t n) {
  double lanes[16] = {}, sum = 0.0;
  if (n > SEGMENT) {
    shares_of(a, b, 1, n, &sum);
    return sum;
  }
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int lane = 0; lane < 16; ++lane) lanes[lane] += (double)a[i + lane] * (double)b[i + lane];
  for (; i < n; ++i) lanes[0] += (double)a[i] * (double)b[i];
  for (double lane : lanes) sum += lane;
  return sum;
}

// image - a own - b older, and the sum of its squares: float32 over a block, whose sums are float64.
static double three_terms(const float* image, const float* own, const float* older, float a, float b, float* rest,
                          int64_t n) {
  double squares = 0.0;
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    const int64_t end = begin + std::min(BLOCK, n - begin);
    vf sums = {}, others = {};
    int64_t i = begin;
    for (; i + 2 * W <= end; i += 2 * W) {
      const vf x = load(image + i) - (a * load(own + i) + b * load(older + i));
      const vf y = load(image + i + W) - (a * load(own + i + W) + b * load(older + i + W));
      store(rest + i, x);
      store(rest + i + W, y);
      sums += x * x;
      others += y * y;
    }
    float left = 0.0f;
    for (; i < end; ++i) {
      rest[i] = image[i] - (a * own[i] + b * older[i]);
      left += rest[i] * rest[i];
    }
    squares += (double)across_sum(sums + others) + (double)left;
  }
  return squares;
}

// What of x is orthogonal to all rows, in its place, and its length: again while most of it vanishes.
static double orthogonal(float* x, const float* rows, int64_t count, int64_t n, double* shares) {
  double length = 0.0;
  for (int turn = 0; turn < 3; ++turn) {
    shares_of(x, rows, count, n, shares);
    length = std::sqrt(take_away(x, rows, count, n, shares));
    double along = 0.0;
    for (int64_t k = 0; k < count; ++k) along += shares[k] * shares[k];
    if (!(length < 0.5 * std::sqrt(along))) break;
  }
  return length;
}

constexpr double UNIT = 0x1p-24;             // of rounding in float32
constexpr double NOISE = 2.0 * UNIT;         // of a product, as a share of the largest entry; of networks it is about one unit
constexpr double HALF = 0x1p-13;             // half the root of the unit

// Simon's recurrence: the products of the next vector, of what `length` is left, with those of the basis, from those
// of the last two, `now` and `before`. The largest of them.
static double estimate(const double* alphas, const double* betas, const double* now, const double* before,
                       int64_t last, double length, double noise, double* next) {
  double largest = next[last] = noise / length;
  for (int64_t k = 0; k < last; ++k) {
    double sum = betas[k] * now[k + 1] + (alphas[k] - alphas[last]) * now[k] - betas[last - 1] * before[k];
    if (k > 0) sum += betas[k - 1] * now[k - 1];
    next[k] = (sum + (sum < 0 ? -noise : noise)) / length;
    largest = std::max(largest, std::fabs(next[k]));
  }
  return largest;
}

}  // namespace steepest

extern "C" {

// Ask for large pages of memory that nothing was written to: a basis is long, and each vector of it new.
void lanczos_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096, begin = ((uintptr_t)memory + page - 1) / page * page;
  const uintptr_t end = ((uintptr_t)memory + bytes) / page * page;
  if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#endif
}

// A step from an image, the product with the last of `count` rows. What of it is orthogonal to the rows goes behind them,
// divided by its length, unless that is no more than `rounding` of the largest of `size` and alpha.
//
// `numbers` is for this function alone, zeros at the first step: alpha, length, whether the
// next step has to be made orthogonal; then five times `room` numbers, more than there will be rows.
//
// With `half` a vector is made orthogonal to the last two alone while the recurrence says that its products with the
// others stay below the root of rounding, so that the tridiagonal matrix is what it would be, up to rounding. Where they
// don't, this vector and the next are made orthogonal to all.
void lanczos_step(const float* image, float* rows, int64_t count, int64_t n, double size, double rounding, int64_t half,
                  int64_t room, double* numbers) {
  using namespace steepest;
  const int64_t last = count - 1;
  const float* own = rows + last * n;
  float* rest = rows + count * n;
  double *shares = numbers + 3, *alphas = shares + room, *betas = alphas + room, *now = betas + room,
         *before = now + room;
  const double alpha = dot(image, own, n);
  double length;
  if (!half) {
    std::memcpy(rest, image, sizeof(float) * n);
    length = orthogonal(rest, rows, count, n, shares);
  } else {
    alphas[last] = alpha;
    now[last] = 1.0;
    const float a = (float)alpha, b = last ? (float)betas[last - 1] : 0.0f;
    const float* older = last ? own - n : own;
    length = std::sqrt(three_terms(image, own, older, a, b, rest, n));
    const double noise = NOISE * std::max(std::max(size, std::fabs(alpha)), length);
    const bool lost = !(estimate(alphas, betas, now, before, last, length, noise, shares) < HALF);
    if (lost || numbers[2] != 0.0) {
      length = orthogonal(rest, rows, count, n, shares);
      std::fill(shares, shares + count, noise / length);
      numbers[2] = lost && numbers[2] == 0.0;
    }
    betas[last] = length;
    std::memcpy(before, now, sizeof(double) * count);
    std::memcpy(now, shares, sizeof(double) * count);
  }
  if (length > rounding * std::max(size, std::fabs(alpha))) {
    const float inverse = (float)(1.0 / length);
    if (std::isnormal(inverse))
      for (int64_t j = 0; j < n; ++j) rest[j] *= inverse;
    else
      for (int64_t j = 0; j < n; ++j) rest[j] = (float)(rest[j] / length);
  }
  numbers[0] = alpha;
  numbers[1] = length;
}
}
