// The CPU's INT8 kernels and CUDA's (emulated) agree to the bit: on the sums, and on the outputs where the
// activation function does not differ.
#include <doctest/doctest.h>

#include "cuda/emulation.h"
#include "cuda/fixtures.h"
#include "kernels/cuda/int8_cuda.h"
#include "kernels/int8_linear.h"

namespace {

using namespace headrace;
using cuda::tests::Device;
using cuda::tests::Random;
using cuda::tests::random_bytes;
using cuda::tests::random_floats;
using cuda::tests::same;

struct Shape {
  std::size_t rows, inputs, outputs;
};

// A quantised layer and int8 activations with the scale 2^-5, as both kinds of kernels want them.
struct Case {
  static constexpr float kScale = 0x1p-5f;
  Shape shape;
  std::size_t ld;  // of the padded matrices
  QuantisedWeights weights;
  std::vector<float> bias;
  std::vector<std::int8_t> q;  // [rows][inputs]
  std::vector<float> x;        // the same as floats

  Case(Random& random, Shape s, bool extreme)
      : shape(s),
        ld((s.inputs + 15) / 16 * 16),
        bias(random_floats(random, s.outputs, -3.0f, 3.0f)),
        q(random_bytes(random, s.rows * s.inputs)) {
    weights.inputs = s.inputs;
    weights.outputs = s.outputs;
    weights.values = random_bytes(random, s.inputs * s.outputs);
    for (std::int8_t& w : weights.values) w = w == -128 ? std::int8_t{-127} : w;
    if (extreme) {
      std::fill(weights.values.begin(), weights.values.end(), std::int8_t{-127});
      std::fill(q.begin(), q.end(), std::int8_t{-128});
    }
    weights.scales = random_floats(random, s.outputs, 0.001f, 0.1f);
    for (const std::int8_t value : q) x.push_back(static_cast<float>(value) * kScale);
  }

  Device<std::int8_t> padded(const std::vector<std::int8_t>& dense) const {
    const std::size_t rows = dense.size() / shape.inputs;
    std::vector<std::int8_t> to(rows * ld, 0);
    for (std::size_t row = 0; row < rows; ++row) {
      std::copy_n(dense.data() + row * shape.inputs, shape.inputs, to.data() + row * ld);
    }
    return Device<std::int8_t>(to);
  }

  template <typename Out>
  void run_cuda(Device<Out>& y, int dtype, int activation) const {
    const Device<std::int8_t> a = padded(q);
    const Device<std::int8_t> w = padded(weights.values);
    const Device<float> row_scale(std::vector<float>(shape.rows, kScale));
    const Device<float> column_scale(weights.scales);
    const Device<float> biases(bias);
    const auto stride = static_cast<std::int64_t>(ld);
    const HeadraceLinear p{a.get(),
                           stride,
                           row_scale.get(),
                           w.get(),
                           stride,
                           column_scale.get(),
                           biases.get(),
                           y.get(),
                           static_cast<std::int64_t>(shape.outputs),
                           static_cast<int>(shape.rows),
                           static_cast<int>(shape.outputs),
                           static_cast<int>(shape.inputs),
                           dtype,
                           activation};
    const char* wrong = headrace_cuda_linear(&p, nullptr);
    REQUIRE_MESSAGE(wrong == nullptr, wrong);
  }
};

PackedLinear packed(const Case& c, Isa isa, LinearActivation activation) {
  const StaticActivations int8{.scale = Case::kScale};
  Result<PackedLinear> layer =
      PackedLinear::pack(c.weights, c.bias, &int8, {.activation = activation, .isa = isa});
  REQUIRE(layer);
  return std::move(*layer);
}

constexpr Shape kShapes[] = {{1, 1, 1}, {5, 33, 17}, {17, 130, 70}, {70, 257, 40}};

}  // namespace

TEST_CASE("CPU and CUDA kernels have the same int32 sums") {
  Random random(11);
  for (const bool extreme : {false, true}) {
    for (const Shape& shape : kShapes) {
      const Case c(random, shape, extreme);
      Device<std::int32_t> sums(shape.rows * shape.outputs);
      c.run_cuda(sums, HEADRACE_S32, HEADRACE_IDENTITY);
      for (const Isa isa : available_isas()) {
        CAPTURE(isa_name(isa));
        CAPTURE(shape.inputs);
        const PackedLinear layer = packed(c, isa, LinearActivation::kNone);
        const std::size_t stride = (shape.inputs + 63) / 64 * 64;
        AlignedBytes values(shape.rows * stride);
        auto* const u8 = reinterpret_cast<std::uint8_t*>(values.data());
        std::vector<Int8Row> made(shape.rows);
        linear_quantise(layer, c.x.data(), shape.rows, u8, stride, made.data());
        REQUIRE(u8[0] - 128 == c.q[0]);
        std::vector<std::int32_t> cpu(shape.rows * shape.outputs);
        linear_sums(layer, u8, stride, made.data(), shape.rows, cpu.data());
        CHECK(std::equal(cpu.begin(), cpu.end(), sums.get()));
      }
    }
  }
}

TEST_CASE("CPU and CUDA kernels have the same outputs") {
  Random random(12);
  for (const Shape& shape : kShapes) {
    const Case c(random, shape, false);
    for (const bool relu : {false, true}) {
      Device<float> y(shape.rows * shape.outputs);
      c.run_cuda(y, HEADRACE_F32, relu ? HEADRACE_RELU : HEADRACE_IDENTITY);
      for (const Isa isa : available_isas()) {
        CAPTURE(isa_name(isa));
        const PackedLinear layer =
            packed(c, isa, relu ? LinearActivation::kRelu : LinearActivation::kNone);
        AlignedBytes scratch(linear_scratch_bytes(layer, shape.rows));
        std::vector<float> cpu(shape.rows * shape.outputs);
        linear(layer, c.x.data(), shape.rows, cpu.data(), scratch.data());
        std::size_t different = 0;
        for (std::size_t i = 0; i < cpu.size(); ++i) different += !same(cpu[i], y[i]);
        CHECK(different == 0);
      }
    }
  }
}
