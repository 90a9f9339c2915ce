// Rectified units of which a share is left out, drawn by a hash of place, step and seed: the same units for any order of
// work, on any processor.

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t GRAIN = 1 << 15;

// One of 2^32 numbers for each place; a finaliser of MurmurHash3.
inline uint32_t drawn(uint32_t place, uint32_t low, uint32_t high) {
  uint32_t h = place * 0x9E3779B1u + low;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= (h >> 13) ^ high;
  h *= 0xC2B2AE35u;
  return h ^ (h >> 16);
}

}  // namespace

// y = max(x, 0) * factor where the number of the place is at least `least`, else 0, in place, for each model.
extern "C" void rectified_dropout(float* x, const uint32_t* low, const uint32_t* high, uint32_t least, float factor,
                                  int64_t models, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && models * count > GRAIN) schedule(static)
  for (int64_t m = 0; m < models; ++m) {
    float* values = x + m * count;
    const uint32_t a = low[m], b = high[m];
    for (int64_t i = 0; i < count; ++i) {
      const float v = values[i] > 0.0f ? values[i] * factor : 0.0f;
      values[i] = drawn((uint32_t)i, a, b) >= least ? v : 0.0f;
    }
  }
}

// g = g * factor where y is above 0, else 0, in place.
extern "C" void rectified_dropout_slope(float* g, const float* y, float factor, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && count > GRAIN) schedule(static)
  for (int64_t i = 0; i < count; ++i) g[i] = y[i] > 0.0f ? g[i] * factor : 0.0f;
}
