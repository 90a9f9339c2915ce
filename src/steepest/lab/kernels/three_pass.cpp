// The two softmax algorithms that need the maximum first, on the same vectors, threads and polynomial as softmax.cpp,
// which precedes this text. One row of finite float32 values.

namespace steepest {

INLINE vf exponential(vf x) {          // x <= 0; 0 below -87
  x = larger(fill(-88.0f), x);
  const vf n = (x * LOG2E + ROUND) - ROUND;
  return scale2(exp_polynomial(less_ln2(x, n)), n);
}

// Combine vectors of at(i, values, length) over blocks; blocks are merged in order.
template <class Block, class Join>
static double reduced(int64_t count, int threads, double start, const Block& block, const Join& join) {
  std::vector<double> parts((count + BLOCK - 1) / BLOCK);
  over_blocks(count, threads, [&](int64_t first, int64_t length) { parts[first / BLOCK] = block(first, length); });
  for (const double part : parts) start = join(start, part);
  return start;
}

static float maximum(const float* x, int64_t count, int threads) {
  const auto block = [&](int64_t first, int64_t length) {
    const float* p = x + first;
    vf tops[U];
    for (int u = 0; u < U; ++u) tops[u] = fill(-INF);
    int64_t i = 0;
    for (; i + U * W <= length; i += U * W)
      for (int u = 0; u < U; ++u) tops[u] = larger(tops[u], load(p + i + u * W));
    for (; i < length; i += W)
      tops[0] = larger(tops[0], length - i < W ? load_part(p + i, length - i, -INF) : load(p + i));
    return (double)across_max(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
  };
  return (float)reduced(count, threads, -INF, block, [](double a, double b) { return a > b ? a : b; });
}

// Sum of e^(x - top); KEEP writes the exponentials to y.
template <bool KEEP> static double exponentials(const float* x, float* y, int64_t count, float top, int threads) {
  const auto block = [&](int64_t first, int64_t length) {
    const float* p = x + first;
    float* out = y + first;
    Total total;
    for (int64_t i = 0; i < length;) {
      const int64_t stop = std::min(length, i + RUN);
      vf sums[U] = {};
      for (; i + U * W <= stop; i += U * W)
        for (int u = 0; u < U; ++u) {
          const vf e = exponential(load(p + i + u * W) - top);
          if (KEEP) store(out + i + u * W, e);
          sums[u] += e;
        }
      for (; i < stop; i += W) {
        const int64_t here = stop - i < W ? stop - i : W;
        const vf e = exponential((here == W ? load(p + i) : load_part(p + i, here, -INF)) - top);
        if (KEEP) std::memcpy(out + i, &e, sizeof(float) * here);
        sums[0] += here == W ? e : load_part((const float*)&e, here, 0.0f);
      }
      total.add(joined(sums));
    }
    return (double)across_sum(total.value());
  };
  return reduced(count, threads, 0.0, block, [](double a, double b) { return a + b; });
}

struct Exponentials {
  float factor, top;
  template <bool> vf at(vf x) const { return exponential(x - top) * factor; }
};

struct Scaled {
  float factor;
  template <bool> vf at(vf y) const { return y * factor; }
};

struct Same {
  template <bool> vf at(vf x) const { return x; }
};

template <class Form> static void written(const float* x, float* y, int64_t count, int threads, const Form& form) {
  over_blocks(count, threads, [&](int64_t first, int64_t length) {
    write_span<false>(x + first, y + first, length, form);
  });
}

}  // namespace steepest

extern "C" {

// 3 reads of x, 1 write of y.
void three_pass_recompute(const float* x, float* y, int64_t rows, int64_t count, int threads) {
  const float top = maximum(x, count, threads);
  const double sum = exponentials<false>(x, y, count, top, threads);
  written(x, y, count, threads, Exponentials{(float)(1.0 / sum), top});
}

// 2 reads of x, 1 read and 2 writes of y.
void three_pass_reload(const float* x, float* y, int64_t rows, int64_t count, int threads) {
  const float top = maximum(x, count, threads);
  const double sum = exponentials<true>(x, y, count, top, threads);
  written(y, y, count, threads, Scaled{(float)(1.0 / sum)});
}

// 1 read of x, 1 write of y.
void copy(const float* x, float* y, int64_t rows, int64_t count, int threads) {
  written(x, y, count, threads, Same{});
}

}  // extern "C"
