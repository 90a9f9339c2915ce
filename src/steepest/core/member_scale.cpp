// Inputs that several members scale each in its own way: the gradients of the scales and of the inputs, in one pass.

#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t GRAIN = 1 << 15;

}  // namespace

// For each model, of g [members, rows, width]: scale' [members, width] = sum over rows of g x, and, where wanted,
// x' [rows, width] = sum over members of g scale.
extern "C" void member_scale_backward(const float* g, const float* x, const float* scale, float* of_scale, float* of_x,
                                      int64_t models, int64_t members, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && models * members * rows * width > GRAIN) \
    schedule(static)
  for (int64_t m = 0; m < models; ++m) {
    const float* inputs = x + m * rows * width;
    float* below = of_x ? of_x + m * rows * width : nullptr;
    if (below) std::memset(below, 0, sizeof(float) * rows * width);
    std::memset(of_scale + m * members * width, 0, sizeof(float) * members * width);
    for (int64_t k = 0; k < members; ++k) {
      const float* own = scale + (m * members + k) * width;
      float* sum = of_scale + (m * members + k) * width;
      for (int64_t i = 0; i < rows; ++i) {
        const float* slope = g + ((m * members + k) * rows + i) * width;
        const float* row = inputs + i * width;
        if (below) {
          float* to = below + i * width;
          for (int64_t d = 0; d < width; ++d) {
            sum[d] += slope[d] * row[d];
            to[d] += slope[d] * own[d];
          }
        } else {
          for (int64_t d = 0; d < width; ++d) sum[d] += slope[d] * row[d];
        }
      }
    }
  }
}
