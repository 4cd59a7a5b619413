#include "cuda/checks.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "cuda/emulation.h"
// The emulation comes first: what follows is the code that nvcc compiles.
#include "cuda/fixtures.h"
#include "kernels/cuda/int8_cuda.cu"

namespace headrace::cuda::tests {
namespace {

std::string at(const char* what, std::int64_t row, std::int64_t column) {
  return std::string(what) + " differs at " + std::to_string(row) + "," + std::to_string(column);
}

struct Shape {
  int m;
  int n;
  int k;
};

std::string name(const Shape& s) {
  return std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k) + ": ";
}

int rounded(int k) { return (k + 15) / 16 * 16; }

std::int64_t dot(const std::int8_t* a, const std::int8_t* w, int k) {
  std::int64_t sum = 0;
  for (int i = 0; i < k; ++i) sum += std::int64_t{a[i]} * w[i];
  return sum;
}

// Operands of a layer, rows padded to 16 bytes and what is padding filled with noise.
struct Layer {
  Shape shape;
  int ld;
  Device<std::int8_t> a;
  Device<std::int8_t> w;
  Device<float> row_scale;
  Device<float> column_scale;
  Device<float> bias;

  Layer(Random& random, Shape s)
      : shape(s),
        ld(rounded(s.k) + 16 * static_cast<int>(random() % 2)),
        a(random_bytes(random, static_cast<std::size_t>(s.m) * static_cast<std::size_t>(ld))),
        w(random_bytes(random, static_cast<std::size_t>(s.n) * static_cast<std::size_t>(ld))),
        row_scale(random_floats(random, static_cast<std::size_t>(s.m), 0.001f, 0.1f)),
        column_scale(random_floats(random, static_cast<std::size_t>(s.n), 0.001f, 0.1f)),
        bias(random_floats(random, static_cast<std::size_t>(s.n), -2.0f, 2.0f)) {}

  HeadraceLinear parameters(void* y, std::int64_t ldy, int dtype, int activation) const {
    return {a.get(), ld,      row_scale.get(), w.get(), ld,    column_scale.get(), bias.get(), y,
            ldy,     shape.m, shape.n,         shape.k, dtype, activation};
  }
  std::int64_t exact(int row, int column) const {
    return dot(a.get() + std::int64_t{row} * ld, w.get() + std::int64_t{column} * ld, shape.k);
  }
};

std::string compare_sums(const Layer& layer, const Device<std::int32_t>& y, std::int64_t ldy) {
  for (int row = 0; row < layer.shape.m; ++row) {
    for (int column = 0; column < layer.shape.n; ++column) {
      if (y[static_cast<std::size_t>(row * ldy + column)] != layer.exact(row, column)) {
        return name(layer.shape) + at("a sum", row, column);
      }
    }
  }
  return y.intact() ? "" : name(layer.shape) + "written past the end";
}

template <typename T>
std::string check_tile(Random& random, const Shape& shape, bool extreme) {
  const Layer layer(random, shape);
  if (extreme) {  // the largest sums that int8 has, of one sign and of both
    std::fill_n(layer.a.get(), layer.a.size(), std::int8_t{-128});
    for (std::size_t i = 0; i < layer.w.size(); ++i) {
      layer.w.get()[i] = i / static_cast<std::size_t>(layer.ld) % 2 == 0 ? -128 : 127;
    }
  }
  const std::int64_t ldy = shape.n;
  Device<std::int32_t> y(static_cast<std::size_t>(shape.m * ldy));
  const char* wrong = launch_gemm<T>(
      linear<std::int32_t>(layer.parameters(y.get(), ldy, HEADRACE_S32, 0)), nullptr);
  return wrong != nullptr ? name(shape) + wrong : compare_sums(layer, y, ldy);
}

double activated(double x, int activation) {
  switch (activation) {
    case HEADRACE_RELU:
      return std::max(x, 0.0);
    case HEADRACE_GELU:
      return 0.5 * x * (1.0 + std::erf(x * std::sqrt(0.5)));
    case HEADRACE_SILU:
      return x / (1.0 + std::exp(-x));
    default:
      return x;
  }
}

// `sum` is the exact one; the result in float, of fixed order, and nearly that where there is an activation.
std::string compare_finished(float got, std::int64_t sum, float row, float column, float bias,
                             int activation, bool half) {
  const float linear_part = std::fmaf(static_cast<float>(sum), row * column, bias);
  if (activation <= HEADRACE_RELU) {
    const float expected = activation == HEADRACE_RELU && linear_part < 0 ? 0.0f : linear_part;
    return same(got, half ? to_float(to_half(expected)) : expected) ? "" : "an exact output";
  }
  const double expected = activated(linear_part, activation);
  const double tolerance = half ? 1e-3 : 1e-6;
  return std::fabs(got - expected) <= tolerance * (1.0 + std::fabs(expected)) ? "" : "an output";
}

template <typename Out>
std::string check_outputs(Random& random, const Shape& shape, std::int64_t ldy, bool bias,
                          int activation) {
  const Layer layer(random, shape);
  Device<Out> y(static_cast<std::size_t>((shape.m - 1) * ldy + shape.n));
  HeadraceLinear p =
      layer.parameters(y.get(), ldy, sizeof(Out) == 2 ? HEADRACE_F16 : HEADRACE_F32, activation);
  if (!bias) p.bias = nullptr;
  if (const char* wrong = headrace_cuda_linear(&p, nullptr)) return name(shape) + wrong;
  for (int row = 0; row < shape.m; ++row) {
    for (int column = 0; column < shape.n; ++column) {
      const auto i = static_cast<std::size_t>(column);
      const std::string differs = compare_finished(
          to_float(y[static_cast<std::size_t>(row * ldy + column)]), layer.exact(row, column),
          layer.row_scale[static_cast<std::size_t>(row)], layer.column_scale[i],
          bias ? layer.bias[i] : 0.0f, activation, sizeof(Out) == 2);
      if (!differs.empty()) return name(shape) + at(differs.c_str(), row, column);
    }
  }
  return y.intact() ? "" : name(shape) + "written past the end";
}

template <typename In, typename Out>
std::string check_w8a8(Random& random, const Shape& shape, int qmax, bool with_nan) {
  const Layer layer(random, shape);
  const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  std::vector<float> values =
      random_floats(random, size(std::int64_t{shape.m} * shape.k), -3.0f, 3.0f);
  if (with_nan) values[size(shape.k) / 2] = std::nanf("");  // row 0
  const Device<In> x(narrowed<In>(values));
  Device<Out> y(size(std::int64_t{shape.m} * shape.n));
  HeadraceLinearW8A8 p{};
  p.x = x.get();
  p.ldx = shape.k;
  p.x_dtype = sizeof(In) == 2 ? HEADRACE_F16 : HEADRACE_F32;
  p.qmax = qmax;
  p.linear = layer.parameters(y.get(), shape.n, sizeof(Out) == 2 ? HEADRACE_F16 : HEADRACE_F32,
                              HEADRACE_IDENTITY);
  if (const char* wrong = headrace_cuda_linear_w8a8(&p, nullptr)) return name(shape) + wrong;
  for (int row = 0; row < shape.m; ++row) {
    std::vector<float> seen(size(shape.k));
    for (std::size_t i = 0; i < seen.size(); ++i) {
      seen[i] = to_float(x[size(row) * size(shape.k) + i]);
    }
    const QuantizedRow expected = quantized_row(seen, qmax);
    for (int column = 0; column < shape.n; ++column) {
      std::int64_t sum = 0;
      for (std::size_t i = 0; i < seen.size(); ++i) {
        sum += std::int64_t{expected.q[i]} * layer.w[size(column) * size(layer.ld) + i];
      }
      const std::string differs =
          compare_finished(to_float(y[size(row) * size(shape.n) + size(column)]), sum,
                           expected.scale, layer.column_scale[size(column)],
                           layer.bias[size(column)], HEADRACE_IDENTITY, sizeof(Out) == 2);
      if (!differs.empty()) return name(shape) + at(differs.c_str(), row, column);
    }
  }
  return y.intact() ? "" : name(shape) + "written past the end";
}

template <typename T>
std::string check_quantize(Random& random, int rows, int k, int ldx, int ldq, int qmax) {
  const auto count = static_cast<std::size_t>((rows - 1) * ldx + k);
  std::vector<float> values = random_floats(random, count, -5.0f, 5.0f);
  const auto row_at = [&](int row) { return values.begin() + row * ldx; };
  std::fill_n(row_at(0), k, 0.0f);
  if (rows > 3) {
    *(row_at(1) + k - 1) = std::nanf("");
    *(row_at(2) + k / 2) = -INFINITY;
    for (int i = 0; i < k; ++i) row_at(3)[i] = static_cast<float>(i % 255) - 127.0f + 0.5f;  // ties
    row_at(3)[0] = 127.0f;
  }
  const Device<T> x(narrowed<T>(values));
  Device<std::int8_t> q(static_cast<std::size_t>((rows - 1) * ldq + k));
  std::fill_n(q.get(), q.size(), std::int8_t{77});
  Device<float> scale(static_cast<std::size_t>(rows));
  const HeadraceQuantizeRows p{
      x.get(),     ldx,  q.get(), ldq,
      scale.get(), rows, k,       sizeof(T) == 2 ? HEADRACE_F16 : HEADRACE_F32,
      qmax};
  if (const char* wrong = headrace_cuda_quantize_rows(&p, nullptr)) return wrong;
  for (int row = 0; row < rows; ++row) {
    std::vector<float> seen(static_cast<std::size_t>(k));
    for (int i = 0; i < k; ++i) {
      seen[static_cast<std::size_t>(i)] = to_float(x[static_cast<std::size_t>(row * ldx + i)]);
    }
    const QuantizedRow expected = quantized_row(seen, qmax);
    if (!same(scale[static_cast<std::size_t>(row)], expected.scale)) return at("a scale", row, 0);
    for (int i = 0; i < ldq && row * ldq + i < static_cast<int>(q.size()); ++i) {
      const int want = i < k ? expected.q[static_cast<std::size_t>(i)] : 77;
      if (q[static_cast<std::size_t>(row * ldq + i)] != want) return at("q", row, i);
    }
  }
  return q.intact() && scale.intact() ? "" : "written past the end";
}

template <typename T>
std::string check_norm(Random& random, int rows, int k, bool whole) {
  const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(k);
  std::vector<float> values = random_floats(random, count, -2.0f, 6.0f);
  std::fill_n(values.begin(), k, 3.0f);  // row 0 is constant
  const Device<T> x(narrowed<T>(values));
  std::vector<float> other = random_floats(random, count, -1.0f, 1.0f);
  std::fill_n(other.begin(), k, 0.5f);
  const Device<T> residual(narrowed<T>(other));
  const Device<float> gamma(random_floats(random, static_cast<std::size_t>(k), 0.5f, 2.0f));
  const Device<float> beta(random_floats(random, static_cast<std::size_t>(k), -0.5f, 0.5f));
  Device<T> sum(count);
  Device<T> y(count);
  const int ldq = rounded(k);
  Device<std::int8_t> q(static_cast<std::size_t>((rows - 1) * ldq + k));
  Device<float> scale(static_cast<std::size_t>(rows));
  const bool half = sizeof(T) == 2;
  const HeadraceLayerNormQuantize p{x.get(),
                                    whole ? residual.get() : nullptr,
                                    gamma.get(),
                                    whole ? beta.get() : nullptr,
                                    1e-5f,
                                    half ? HEADRACE_F16 : HEADRACE_F32,
                                    whole ? sum.get() : nullptr,
                                    whole ? y.get() : nullptr,
                                    q.get(),
                                    ldq,
                                    scale.get(),
                                    rows,
                                    k,
                                    127};
  if (const char* wrong = headrace_cuda_layer_norm_quantize(&p, nullptr)) return wrong;
  for (int row = 0; row < rows; ++row) {
    std::vector<double> s(static_cast<std::size_t>(k));
    double mean = 0;
    double variance = 0;
    for (int i = 0; i < k; ++i) {
      const auto j = static_cast<std::size_t>(row * k + i);
      float value = to_float(x[j]);
      if (whole) value += to_float(residual[j]);
      const float stored = half ? to_float(to_half(value)) : value;
      if (whole && !same(to_float(sum[j]), stored)) return at("a sum", row, i);
      s[static_cast<std::size_t>(i)] = value;
      mean += value / static_cast<double>(k);
    }
    for (const double value : s) variance += (value - mean) * (value - mean) / k;
    double amax = 0;
    for (int i = 0; i < k; ++i) {
      const auto j = static_cast<std::size_t>(i);
      s[j] = (s[j] - mean) / std::sqrt(variance + 1e-5) * gamma[j] + (whole ? beta[j] : 0.0f);
      amax = std::max(amax, std::fabs(s[j]));
    }
    const double step = scale[static_cast<std::size_t>(row)];
    if (!(std::fabs(step * 127 - amax) <= 1e-4 * (amax + 0.01))) return at("a scale", row, 0);
    for (int i = 0; i < k; ++i) {
      const double expected = s[static_cast<std::size_t>(i)];
      const double got = q[static_cast<std::size_t>(row * ldq + i)] * step;
      if (!(std::fabs(got - expected) <= 0.505 * step + 1e-5)) return at("q", row, i);
      if (!whole) continue;
      const double out = to_float(y[static_cast<std::size_t>(row * k + i)]);
      if (!(std::fabs(out - expected) <= (half ? 2e-3 : 2e-5) * (1 + std::fabs(expected)))) {
        return at("y", row, i);
      }
    }
  }
  return q.intact() && scale.intact() && sum.intact() && y.intact() ? "" : "written past the end";
}

template <typename T>
T gather_input(Random& random) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(random());
  } else {
    T value;
    store(&value, std::uniform_real_distribution<float>(-200.0f, 200.0f)(random));
    return value;
  }
}

struct GatherCase {
  int rows;
  int channels;
  int inner;
  bool interleaved;
  bool affine;
};

template <typename In, typename Out>
std::string check_gather(Random& random, const GatherCase& c, int x_dtype, int y_dtype) {
  const int width = c.channels * c.inner;
  std::vector<std::unique_ptr<Device<In>>> requests;
  std::vector<HeadraceRowSource> sources;
  for (int row = 0; row < c.rows; ++row) {
    int length = width;
    if (row % 3 == 1 && !c.interleaved)
      length = static_cast<int>(random() % static_cast<unsigned>(width));
    if (row % 5 == 4) length = 0;
    std::vector<In> values(static_cast<std::size_t>(length));
    for (In& value : values) value = gather_input<In>(random);
    requests.push_back(std::make_unique<Device<In>>(values));
    sources.push_back({length == 0 ? nullptr : requests.back()->get(), length});
  }
  const Device<HeadraceRowSource> table(sources);
  const Device<float> multiplier(
      random_floats(random, static_cast<std::size_t>(c.channels), 0.001f, 0.02f));
  const Device<float> offset(
      random_floats(random, static_cast<std::size_t>(c.channels), -1.0f, 1.0f));
  Device<Out> y(static_cast<std::size_t>(c.rows) * static_cast<std::size_t>(width));
  const HeadraceGatherRows p{table.get(),
                             y.get(),
                             c.rows,
                             width,
                             c.channels,
                             c.inner,
                             c.interleaved ? 1 : 0,
                             x_dtype,
                             y_dtype,
                             -0.25f,
                             0.0125f,
                             c.affine ? multiplier.get() : nullptr,
                             c.affine ? offset.get() : nullptr};
  if (const char* wrong = headrace_cuda_gather_rows(&p, nullptr)) return wrong;
  for (int row = 0; row < c.rows; ++row) {
    const HeadraceRowSource& source = sources[static_cast<std::size_t>(row)];
    for (int i = 0; i < width; ++i) {
      float value = -0.25f;
      if (i < source.length) {
        const int channel = i / c.inner % c.channels;
        const int from = c.interleaved ? i % c.inner * c.channels + i / c.inner : i;
        const auto j = static_cast<std::size_t>(channel);
        value = std::fmaf(to_float(static_cast<const In*>(source.data)[from]),
                          c.affine ? multiplier[j] : 1.0f, c.affine ? offset[j] : 0.0f);
      }
      const Out got = y[static_cast<std::size_t>(row) * static_cast<std::size_t>(width) +
                        static_cast<std::size_t>(i)];
      if constexpr (std::is_same_v<Out, std::int8_t>) {
        const float q = std::nearbyint(value * (1.0f / 0.0125f));
        if (got != static_cast<int>(std::max(-127.0f, std::min(127.0f, q)))) return at("q", row, i);
      } else {
        const float want = sizeof(Out) == 2 ? to_float(to_half(value)) : value;
        if (!same(to_float(got), want)) return at("y", row, i);
      }
    }
  }
  return y.intact() ? "" : "written past the end";
}

#define HEADRACE_EXPECT(...)                                             \
  do {                                                                   \
    if (std::string wrong = (__VA_ARGS__); !wrong.empty()) return wrong; \
  } while (false)

}  // namespace

std::string check_gemm(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  emulation::set_schedule(seed);
  const std::uint64_t conflicts = emulation::statistics.bank_conflicts;
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{17, 65, 33}, Shape{16, 64, 128}, Shape{33, 70, 327}}) {
    HEADRACE_EXPECT(check_tile<SmallTile>(random, shape, seed % 4 == 0));
    HEADRACE_EXPECT(check_tile<MediumTile>(random, shape, seed % 4 == 1));
  }
  for (const Shape& shape : {Shape{3, 5, 100}, Shape{129, 131, 337}}) {
    HEADRACE_EXPECT(check_tile<LargeTile>(random, shape, seed % 4 == 2));
  }
  if (emulation::statistics.bank_conflicts != conflicts) return "ldmatrix has bank conflicts";
  return "";
}

std::string check_epilogue(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  emulation::set_schedule(seed);
  HEADRACE_EXPECT(check_outputs<float>(random, {5, 9, 40}, 9, true, HEADRACE_IDENTITY));
  HEADRACE_EXPECT(check_outputs<float>(random, {18, 22, 64}, 24, false, HEADRACE_RELU));
  HEADRACE_EXPECT(check_outputs<float>(random, {19, 66, 30}, 67, true, HEADRACE_GELU));
  HEADRACE_EXPECT(check_outputs<Half>(random, {4, 12, 70}, 12, true, HEADRACE_SILU));
  HEADRACE_EXPECT(check_outputs<Half>(random, {20, 13, 65}, 13, true, HEADRACE_RELU));
  return "";
}

std::string check_fused_linear(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  emulation::set_schedule(seed);
  HEADRACE_EXPECT(check_w8a8<float, float>(random, {1, 70, 130}, 127, false));
  HEADRACE_EXPECT(check_w8a8<float, float>(random, {16, 33, 600}, 63, true));
  HEADRACE_EXPECT(check_w8a8<Half, Half>(random, {7, 64, 256}, 127, false));
  HEADRACE_EXPECT(check_w8a8<float, float>(random, {21, 40, 100}, 127, true));  // two launches
  return "";
}

std::string check_quantize_rows(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  emulation::set_schedule(seed);
  HEADRACE_EXPECT(check_quantize<float>(random, 1, 1, 1, 16, 127));
  HEADRACE_EXPECT(check_quantize<float>(random, 6, 77, 80, 80, 127));
  HEADRACE_EXPECT(check_quantize<float>(random, 5, 384, 384, 384, 63));
  HEADRACE_EXPECT(check_quantize<Half>(random, 9, 132, 136, 144, 127));
  HEADRACE_EXPECT(check_quantize<float>(random, 4, 1300, 1300, 1312, 127));
  HEADRACE_EXPECT(check_quantize<Half>(random, 4, 1031, 1031, 1031, 100));
  HEADRACE_EXPECT(check_quantize<float>(random, 5, 24, 25, 25, 127));  // rows not aligned
  return "";
}

std::string check_layer_norm_quantize(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  emulation::set_schedule(seed);
  HEADRACE_EXPECT(check_norm<float>(random, 3, 384, true));
  HEADRACE_EXPECT(check_norm<float>(random, 2, 7, false));
  HEADRACE_EXPECT(check_norm<Half>(random, 2, 769, true));
  HEADRACE_EXPECT(check_norm<float>(random, 2, 2050, true));
  return "";
}

std::string check_gather_rows(std::uint64_t seed) {
  Random random(static_cast<unsigned>(seed));
  emulation::set_schedule(seed);
  HEADRACE_EXPECT(check_gather<std::uint8_t, float>(random, {6, 3, 401, true, true}, HEADRACE_U8,
                                                    HEADRACE_F32));
  HEADRACE_EXPECT(check_gather<std::uint8_t, std::int8_t>(random, {5, 3, 100, false, true},
                                                          HEADRACE_U8, HEADRACE_S8));
  HEADRACE_EXPECT(check_gather<std::int16_t, Half>(random, {7, 1, 1030, false, true}, HEADRACE_S16,
                                                   HEADRACE_F16));
  HEADRACE_EXPECT(
      check_gather<float, float>(random, {4, 1, 33, false, false}, HEADRACE_F32, HEADRACE_F32));
  HEADRACE_EXPECT(
      check_gather<Half, std::int8_t>(random, {3, 2, 50, true, false}, HEADRACE_F16, HEADRACE_S8));
  return "";
}

}  // namespace headrace::cuda::tests
