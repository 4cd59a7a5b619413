#include "core/confidence.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <vector>

using namespace headrace;

namespace {

template <class T>
std::optional<float> of(const std::vector<T>& values, DType dtype, const Shape& shape,
                        bool batching, Activation activation = Activation::kNone,
                        Measure measure = Measure::kProbability) {
  return confidence_of({dtype, shape, std::as_bytes(std::span(values))}, batching, activation,
                       measure);
}

std::optional<float> of(const std::vector<float>& values, Activation activation,
                        Measure measure = Measure::kProbability) {
  const Shape shape{static_cast<int64_t>(values.size())};
  return of(values, DType::kFp32, shape, false, activation, measure);
}

}  // namespace

TEST_CASE("the largest probability, or how far it is ahead; of the worst row") {
  CHECK(*of({0.1F, 0.7F, 0.2F}, Activation::kNone) == doctest::Approx(0.7));
  CHECK(*of({0.1F, 0.7F, 0.2F}, Activation::kNone, Measure::kMargin) == doctest::Approx(0.5));
  CHECK(*of<double>({0.1, 0.9, 0.4, 0.6}, DType::kFp64, Shape{2, 2}, true) == doctest::Approx(0.6));
  CHECK(*of<double>({0.1, 0.9, 0.4, 0.6}, DType::kFp64, Shape{2, 2}, false) ==
        doctest::Approx(0.9));
  CHECK(*of<uint16_t>({0x3800, 0x3400}, DType::kFp16, Shape{2}, false) == doctest::Approx(0.5));
  CHECK(*of<uint16_t>({0x3f00, 0x3e80}, DType::kBf16, Shape{2}, false) == doctest::Approx(0.5));
}

TEST_CASE("logits") {
  const double sum = std::exp(1.0) + std::exp(2.0) + std::exp(3.0);
  CHECK(*of({1, 2, 3}, Activation::kSoftmax) == doctest::Approx(std::exp(3.0) / sum));
  CHECK(*of({1, 2, 3}, Activation::kSoftmax, Measure::kMargin) ==
        doctest::Approx((std::exp(3.0) - std::exp(2.0)) / sum));
  CHECK(*of({1000, 999}, Activation::kSoftmax) == doctest::Approx(1 / (1 + std::exp(-1.0))));
  CHECK(*of({0, 2}, Activation::kSigmoid) == doctest::Approx(1 / (1 + std::exp(-2.0))));
}

TEST_CASE("one number is the probability of one class of two") {
  CHECK(*of({0.2F}, Activation::kNone) == doctest::Approx(0.8));
  CHECK(*of({0.2F}, Activation::kNone, Measure::kMargin) == doctest::Approx(0.6));
  CHECK(*of({-2}, Activation::kSigmoid) == doctest::Approx(1 / (1 + std::exp(-2.0))));
}

TEST_CASE("what is no probability is no confidence") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  CHECK(*of({0.9F, kNan}, Activation::kNone) == 0);
  CHECK(*of({kInf, 1}, Activation::kSoftmax) == 0);
  CHECK(*of({-kInf, -kInf}, Activation::kSoftmax) == 0);
  CHECK_FALSE(of({}, Activation::kNone));
  CHECK_FALSE(of<float>({1}, DType::kFp32, Shape{2}, false));
  CHECK_FALSE(of<int32_t>({1}, DType::kInt32, Shape{1}, false));
  CHECK_FALSE(of<float>({}, DType::kFp32, Shape{0, 2}, true));
  CHECK_FALSE(of<float>({1}, DType::kFp32, Shape{}, true));
}
