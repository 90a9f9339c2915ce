// Projections onto the dual cone of some rows, from their Gramian: for each right side k the least of v' G v with
// v >= e_k, G being symmetric and positive semi-definite with 1 (or 0) on its diagonal, in float64.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace steepest {

constexpr int SWEEPS = 8;        // of descent by coordinates, before sets are looked for
constexpr int PATIENCE = 3;      // exchanges of whole sets that may bring nothing
constexpr int ROUNDS = 40;       // of exchanges
constexpr double RIDGE = 1e-13;  // on the diagonal: of solutions that give one projection, the shortest
constexpr double FLAT = 1e-12;   // what is no further below 0 is 0
constexpr int64_t MANY = 16;     // rows from which on it is tried whether few are bound

typedef double v8 __attribute__((vector_size(64), aligned(8)));

static double dot(const double* a, const double* b, int64_t count) {
  v8 sum = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) sum += *(const v8*)(a + i) * *(const v8*)(b + i);
  double total = ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

struct Problem {
  int64_t m, k = 0;
  const double* gram;
  std::vector<double> z, slope, factor, step, inverse, small, y;
  std::vector<int64_t> rows, factored, bound;
  std::vector<char> is_free;

  Problem(int64_t size, const double* g)
      : m(size), gram(g), z(size), slope(size), factor(size * size), step(size), is_free(size) {}

  const double* row(int64_t i) const { return gram + i * m; }

  // slope = (G + RIDGE) (e_k + z)
  void slopes() {
    std::copy(row(k), row(k) + m, slope.begin());
    slope[k] += RIDGE;
    for (int64_t i = 0; i < m; ++i) {
      if (z[i] == 0.0) continue;
      const double by = z[i];
      const double* own = row(i);
      for (int64_t j = 0; j < m; ++j) slope[j] += by * own[j];
      slope[i] += by * RIDGE;
    }
  }

  // True where nothing moves any more, to the last bit.
  bool sweep() {
    bool rests = true;
    for (int64_t j = 0; j < m; ++j) {
      if (row(j)[j] == 0.0) continue;
      const double by = std::max(-z[j], -slope[j] / (row(j)[j] + RIDGE));
      if (by == 0.0) continue;
      rests = false;
      z[j] += by;
      const double* own = row(j);
      for (int64_t i = 0; i < m; ++i) slope[i] += by * own[i];
      slope[j] += by * RIDGE;
    }
    return rests;
  }

  // z of the free rows such that their slope is 0, and 0 of the others.
  void solve() {
    rows.clear();
    for (int64_t i = 0; i < m; ++i)
      if (is_free[i]) rows.push_back(i);
    const int64_t count = (int64_t)rows.size();
    int64_t known = 0;  // lines of the factor that the last set had too
    while (known < count && known < (int64_t)factored.size() && factored[known] == rows[known]) ++known;
    for (int64_t p = known; p < count; ++p) {
      double* line = factor.data() + p * m;
      const double* own = row(rows[p]);
      for (int64_t q = 0; q < p; ++q) {
        const double* before = factor.data() + q * m;
        line[q] = (own[rows[q]] - dot(line, before, q)) / before[q];
      }
      line[p] = std::sqrt(std::max(own[rows[p]] + RIDGE - dot(line, line, p), RIDGE / 16));
    }
    factored = rows;
    for (int64_t p = 0; p < count; ++p) {
      const double* line = factor.data() + p * m;
      step[p] = (-row(k)[rows[p]] - (rows[p] == k ? RIDGE : 0.0) - dot(line, step.data(), p)) / line[p];
    }
    for (int64_t p = count - 1; p >= 0; --p) {
      const double* line = factor.data() + p * m;
      step[p] /= line[p];
      const double by = step[p];
      for (int64_t q = 0; q < p; ++q) step[q] -= by * line[q];
    }
    std::fill(z.begin(), z.end(), 0.0);
    for (int64_t p = 0; p < count; ++p) z[rows[p]] = step[p];
  }

  // The inverse of G, once for all k.
  void invert() {
    std::fill(is_free.begin(), is_free.end(), 1);
    solve();
    inverse.resize(m * m);
    for (int64_t column = 0; column < m; ++column) {
      double* x = inverse.data() + column * m;
      std::fill(x, x + column, 0.0);
      for (int64_t p = column; p < m; ++p) {
        const double* line = factor.data() + p * m;
        x[p] = ((p == column) - dot(line + column, x + column, p - column)) / line[p];
      }
      for (int64_t p = m - 1; p >= 0; --p) {
        const double* line = factor.data() + p * m;
        const double by = x[p] /= line[p];
        for (int64_t q = 0; q < p; ++q) x[q] -= by * line[q];
      }
    }
  }

  // For few rows B that are not free, as where rows conflict throughout: v = G^-1 y with y on B alone, which is the
  // slope there. Exchange of sets from B = {k}; false where B grows, or what it ends with is not exact.
  bool few_bound() {
    bound.assign(1, k);
    std::fill(is_free.begin(), is_free.end(), 1);
    is_free[k] = 0;
    int64_t fewest = m + 1;
    int patience = PATIENCE;
    for (int round = 0; round < ROUNDS && (int64_t)bound.size() <= m / 4; ++round) {
      const int64_t count = (int64_t)bound.size();
      small.resize(count * count);
      y.resize(count);
      for (int64_t p = 0; p < count; ++p) {
        double* line = small.data() + p * count;
        const double* own = inverse.data() + bound[p] * m;
        for (int64_t q = 0; q < p; ++q) {
          const double* before = small.data() + q * count;
          line[q] = (own[bound[q]] - dot(line, before, q)) / before[q];
        }
        line[p] = std::sqrt(own[bound[p]] - dot(line, line, p));
        y[p] = ((bound[p] == k) - dot(line, y.data(), p)) / line[p];
      }
      for (int64_t p = count - 1; p >= 0; --p) {
        const double by = y[p] /= small[p * count + p];
        for (int64_t q = 0; q < p; ++q) y[q] -= by * small[p * count + q];
      }
      std::fill(z.begin(), z.end(), 0.0);
      std::fill(slope.begin(), slope.end(), 0.0);
      for (int64_t p = 0; p < count; ++p) {
        const double* own = inverse.data() + bound[p] * m;
        for (int64_t i = 0; i < m; ++i) z[i] += y[p] * own[i];
        slope[bound[p]] = y[p];
      }
      int64_t wrong = 0, last = -1;
      for (int64_t i = 0; i < m; ++i) {
        const bool bad = i != k && !(is_free[i] ? z[i] >= -FLAT : slope[i] >= -FLAT);
        wrong += bad;
        if (bad) last = i;
      }
      if (!wrong) break;
      const bool all = wrong < fewest || patience > 0;
      if (wrong < fewest) {
        fewest = wrong;
        patience = PATIENCE;
      } else if (patience > 0) {
        --patience;
      }
      bound.clear();
      for (int64_t i = 0; i < m; ++i) {
        const bool bad = i != k && !(is_free[i] ? z[i] >= -FLAT : slope[i] >= -FLAT);
        if (bad && (all || i == last)) is_free[i] = !is_free[i];
        if (!is_free[i]) bound.push_back(i);
      }
    }
    for (int64_t i = 0; i < m; ++i) z[i] = is_free[i] && z[i] > 0.0 ? z[i] : 0.0;
    slopes();
    for (int64_t i = 0; i < m; ++i)
      if (!(is_free[i] && z[i] > 0.0 ? std::abs(slope[i]) <= FLAT : slope[i] >= -FLAT)) return false;
    return true;
  }

  // Exchange of sets by Judice and Pires, from the rows that the sweeps have freed; false where it finds no end.
  bool finish() {
    for (int64_t i = 0; i < m; ++i) is_free[i] = z[i] > 0.0;
    int64_t fewest = m + 1;
    int patience = PATIENCE;
    for (int round = 0; round < ROUNDS; ++round) {
      solve();
      slopes();
      int64_t wrong = 0, last = -1;
      for (int64_t i = 0; i < m; ++i) {
        const bool bad = is_free[i] ? z[i] < -FLAT : slope[i] < -FLAT;
        wrong += bad;
        if (bad) last = i;
      }
      if (!wrong) return true;
      const bool all = wrong < fewest || patience > 0;
      if (wrong < fewest) {
        fewest = wrong;
        patience = PATIENCE;
      } else if (patience > 0) {
        --patience;
      }
      for (int64_t i = 0; i < m; ++i) {
        const bool bad = is_free[i] ? z[i] < -FLAT : slope[i] < -FLAT;
        if (bad && (all || i == last)) is_free[i] = !is_free[i];
      }
    }
    return false;
  }
};

}  // namespace steepest

extern "C" {

// gram [m, m]: rows at their own lengths. To cosines [m, m] and lengths [m] go the Gramian at length 1 and the lengths; to
// projected [m, m] row by row the solution for e_k; to finished [m] 0 where a row is none; to weights [m] the weights of
// the rows of gram in sum_k preference_k proj(row k), 1/m each where preference is null. Gives how many rows are no
// solution; of a gram that is not finite all weights are nan, and nothing else is written.
int64_t dual_cone_weights(const double* gram, const double* preference, int64_t m, double* cosines, double* lengths,
                          double* projected, uint8_t* finished, double* weights) {
  using namespace steepest;
  for (int64_t i = 0; i < m * m; ++i)
    if (!std::isfinite(gram[i])) {
      std::fill(weights, weights + m, std::nan(""));
      return 0;
    }
  for (int64_t i = 0; i < m; ++i) lengths[i] = std::sqrt(gram[i * m + i]);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j)
      cosines[i * m + j] = lengths[i] > 0 && lengths[j] > 0 ? gram[i * m + j] / lengths[i] / lengths[j] : 0.0;
  Problem problem(m, cosines);
  if (m >= MANY) problem.invert();
  int64_t unfinished = 0;
  std::fill(weights, weights + m, 0.0);
  for (int64_t k = 0; k < m; ++k) {
    problem.k = k;
    const double share = (preference ? preference[k] : 1.0 / m) * lengths[k];
    if (m >= MANY && problem.few_bound()) {
      finished[k] = 1;
      for (int64_t i = 0; i < m; ++i) {
        projected[k * m + i] = problem.z[i] + (i == k);
        weights[i] += share * projected[k * m + i];
      }
      continue;
    }
    std::fill(problem.z.begin(), problem.z.end(), 0.0);
    problem.slopes();
    bool done = false;
    for (int sweep = 0; sweep < SWEEPS && !done; ++sweep) done = problem.sweep();
    done = done || problem.finish();
    finished[k] = done;
    unfinished += !done;
    for (int64_t i = 0; i < m; ++i) {
      projected[k * m + i] = std::max(problem.z[i], 0.0) + (i == k);
      weights[i] += share * projected[k * m + i];
    }
  }
  for (int64_t i = 0; i < m; ++i) weights[i] = lengths[i] > 0 ? weights[i] / lengths[i] : 0.0;
  return unfinished;
}
}
