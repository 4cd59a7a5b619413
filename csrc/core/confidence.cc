#include "core/confidence.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/half.h"

namespace headrace {
namespace {

template <class Stored, class Load>
float of_row(const std::byte* at, std::size_t count, Load load, Activation activation,
             Measure measure) {
  const auto number = [&](std::size_t i) {
    Stored stored;
    std::memcpy(&stored, at + i * sizeof(Stored), sizeof(Stored));
    return static_cast<double>(load(stored));
  };
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  constexpr double kLowest = -std::numeric_limits<double>::infinity();
  double first = kLowest;
  double second = kLowest;
  for (std::size_t i = 0; i < count; ++i) {
    const double x = number(i);
    if (std::isnan(x)) return 0;
    if (x > first) {
      second = first;
      first = x;
    } else if (x > second) {
      second = x;
    }
  }
  if (count == 1) {
    const double p = activation == Activation::kNone ? first : sigmoid(first);
    first = std::max(p, 1 - p);
    second = 1 - first;
  } else if (activation == Activation::kSigmoid) {
    first = sigmoid(first);
    second = sigmoid(second);
  } else if (activation == Activation::kSoftmax) {
    if (std::isinf(first)) return 0;
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += std::exp(number(i) - first);
    second = std::exp(second - first) / sum;
    first = 1 / sum;
  }
  const double value = measure == Measure::kMargin ? first - second : first;
  return std::isnan(value) ? 0 : static_cast<float>(value);
}

template <class Stored, class Load>
std::optional<float> of_rows(const TensorView& tensor, std::size_t rows, std::size_t count,
                             Load load, Activation activation, Measure measure) {
  if (tensor.data.size() != rows * count * sizeof(Stored)) return std::nullopt;
  float least = std::numeric_limits<float>::infinity();
  for (std::size_t row = 0; row < rows; ++row) {
    const std::byte* const at = tensor.data.data() + row * count * sizeof(Stored);
    least = std::min(least, of_row<Stored>(at, count, load, activation, measure));
  }
  return least;
}

}  // namespace

std::optional<float> confidence_of(const TensorView& tensor, bool batching, Activation activation,
                                   Measure measure) {
  const std::optional<uint64_t> elements = tensor.shape.element_count();
  if (!elements || *elements == 0 || (batching && tensor.shape.empty())) return std::nullopt;
  const auto rows = batching ? static_cast<std::size_t>(tensor.shape[0]) : std::size_t{1};
  const std::size_t count = static_cast<std::size_t>(*elements) / rows;
  const auto as_is = [](auto x) { return x; };
  switch (tensor.dtype) {
    case DType::kFp32:
      return of_rows<float>(tensor, rows, count, as_is, activation, measure);
    case DType::kFp64:
      return of_rows<double>(tensor, rows, count, as_is, activation, measure);
    case DType::kFp16:
      return of_rows<uint16_t>(tensor, rows, count, half_to_float, activation, measure);
    case DType::kBf16:
      return of_rows<uint16_t>(tensor, rows, count, bfloat16_to_float, activation, measure);
    default:
      return std::nullopt;
  }
}

}  // namespace headrace
