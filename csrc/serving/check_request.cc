#include "serving/check_request.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>

namespace headrace {
namespace {

// Words of one error text; the happy path makes no strings.
class Checker {
 public:
  Checker(const ModelSpec& spec, Request& request) : spec_(spec), request_(request) {}

  Status check() {
    if (Status status = check_outputs(); !status) return status;
    if (Status status = bind_inputs(); !status) return status;
    if (Status status = check_rows(); !status) return status;
    for (std::size_t i = 0; i < spec_.inputs.size(); ++i) {
      if (request_.input_of[i] == Request::kAbsent) continue;
      const TensorView& tensor = request_.inputs[request_.input_of[i]].tensor;
      if (Status status = check_input(spec_.inputs[i], tensor); !status) return status;
    }
    return {};
  }

 private:
  Status invalid(const std::string& text) const {
    const std::string id = request_.id.empty() ? "<id_unknown>" : std::string(request_.id);
    return Status::invalid_argument("[request id: " + id + "] " + text);
  }
  static std::string quoted(std::string_view name) {
    std::string text = "'";
    text += name;
    text += '\'';
    return text;
  }
  static void add_name(std::string& list, std::string_view name) {
    if (!list.empty()) list += ',';
    list += quoted(name);
  }
  std::string for_model() const { return " for model '" + spec_.name + "'"; }

  Status check_outputs() const {
    const std::vector<RequestedOutput>& outputs = request_.outputs;
    // Before the loop over pairs: without duplicates there are no more than the model has.
    if (outputs.size() > spec_.outputs.size() && !outputs.empty()) {
      for (const RequestedOutput& output : outputs) {
        if (!spec_.find_output(output.name)) return unknown("output", output.name);
      }
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      const std::optional<std::size_t> found = spec_.find_output(outputs[i].name);
      if (!found) return unknown("output", outputs[i].name);
      for (std::size_t j = 0; j < i; ++j) {
        if (outputs[j].name == outputs[i].name) {
          return invalid("output " + quoted(outputs[i].name) + " already exists in request");
        }
      }
      const DType dtype = spec_.outputs[*found].dtype;
      if (outputs[i].classification < 0) {
        return invalid("invalid value for 'classification' of output " + quoted(outputs[i].name) +
                       for_model() + ", expected value >= 0.");
      }
      if (outputs[i].classification > 0 && (dtype == DType::kBytes || dtype == DType::kBool)) {
        return invalid("class result not available for output " + quoted(outputs[i].name) +
                       " due to unsupported type '" + std::string(dtype_name(dtype)) + "'");
      }
    }
    return {};
  }

  // Without the id, as in Triton.
  Status unknown(const char* what, std::string_view name) const {
    return Status::invalid_argument("unexpected inference " + std::string(what) + " " +
                                    quoted(name) + for_model());
  }

  Status bind_inputs() {
    std::size_t required = 0;
    for (const TensorSpec& input : spec_.inputs) required += input.optional ? 0 : 1;
    const std::size_t count = request_.inputs.size();
    if (count > spec_.inputs.size() || count < required) return wrong_inputs(required);

    request_.input_of.assign(spec_.inputs.size(), Request::kAbsent);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string_view name = request_.inputs[i].name;
      // Clients send the inputs in the model's order, mostly.
      const std::optional<std::size_t> found =
          spec_.inputs[i].name == name ? i : spec_.find_input(name);
      if (!found) return unknown("input", name);
      if (request_.input_of[*found] != Request::kAbsent) {
        return invalid("input " + quoted(name) + " already exists in request");
      }
      request_.input_of[*found] = static_cast<uint32_t>(i);
    }
    for (std::size_t i = 0; i < spec_.inputs.size(); ++i) {
      if (!spec_.inputs[i].optional && request_.input_of[i] == Request::kAbsent) {
        return wrong_inputs(required);
      }
    }
    return {};
  }

  Status wrong_inputs(std::size_t required) const {
    constexpr std::size_t kNamed = 64;  // a hostile request may bring very many
    std::string got;
    std::string missing;
    for (std::size_t i = 0; i < std::min(request_.inputs.size(), kNamed); ++i) {
      add_name(got, request_.inputs[i].name);
    }
    if (request_.inputs.size() > kNamed) got += ",...";
    for (const TensorSpec& input : spec_.inputs) {
      const bool given =
          std::any_of(request_.inputs.begin(), request_.inputs.end(),
                      [&](const InputTensor& tensor) { return tensor.name == input.name; });
      if (!input.optional && !given) add_name(missing, input.name);
    }
    const std::size_t all = spec_.inputs.size();
    const std::string expected = required == all
                                     ? "expected " + std::to_string(all) + " inputs"
                                     : "expected number of inputs between " +
                                           std::to_string(required) + " and " + std::to_string(all);
    return invalid(expected + " but got " + std::to_string(request_.inputs.size()) + " inputs" +
                   for_model() + ". Got input(s) [" + got + "], but missing required input(s) [" +
                   missing + "]. Please provide all required input(s).");
  }

  Status check_rows() {
    request_.rows = 1;
    if (!spec_.batching()) return {};
    std::optional<int64_t> rows;
    for (const InputTensor& input : request_.inputs) {
      const Shape& shape = input.tensor.shape;
      if (shape.empty()) {
        return invalid("input " + quoted(input.name) +
                       " has no shape but model requires batch dimension for '" + spec_.name + "'");
      }
      if (shape[0] < 0) return unspecified(input.name, shape);
      if (rows && *rows != shape[0]) {
        return invalid("input " + quoted(input.name) +
                       " batch size does not match other inputs for '" + spec_.name + "'");
      }
      rows = shape[0];
    }
    if (rows.value_or(1) > spec_.max_batch_size) {
      return invalid("inference request batch-size must be <= " +
                     std::to_string(spec_.max_batch_size) + " for '" + spec_.name + "'");
    }
    if (rows.value_or(1) == 0) {
      return invalid("inference request batch-size must be >= 1 for '" + spec_.name + "'");
    }
    request_.rows = rows.value_or(1);
    return {};
  }

  Status unspecified(std::string_view name, const Shape& shape) const {
    return invalid("All input dimensions should be specified for input " + quoted(name) +
                   for_model() + ", got " + shape.to_string());
  }

  Status check_input(const TensorSpec& expected, const TensorView& tensor) const {
    if (tensor.dtype != expected.dtype) {
      return invalid("inference input " + quoted(expected.name) + " data-type is '" +
                     std::string(dtype_name(tensor.dtype)) + "', but model '" + spec_.name +
                     "' expects '" + std::string(dtype_name(expected.dtype)) + "'");
    }
    const std::span<const int64_t> dims = tensor.shape.span().subspan(spec_.batching() ? 1 : 0);
    bool matches = dims.size() == expected.dims.size();
    for (std::size_t i = 0; matches && i < dims.size(); ++i) {
      if (dims[i] < 0) return unspecified(expected.name, tensor.shape);
      matches = expected.dims[i] == -1 || expected.dims[i] == dims[i];
    }
    if (!matches) return wrong_shape(expected, tensor.shape);
    return tensor.dtype == DType::kBytes ? check_strings(expected, tensor)
                                         : check_bytes(expected, tensor);
  }

  Status wrong_shape(const TensorSpec& expected, const Shape& got) const {
    std::vector<int64_t> full;
    if (spec_.batching()) full.push_back(-1);
    full.insert(full.end(), expected.dims.begin(), expected.dims.end());
    std::string text = "unexpected shape for input " + quoted(expected.name) + for_model() +
                       ". Expected " + Shape::dims_to_string(full) + ", got " + got.to_string() +
                       ".";
    if (spec_.batching()) {
      text +=
          " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension "
          "to be prepended to each input shape. If you want to specify the full shape including "
          "the batch dim in your input dims config, try setting max_batch_size to zero. See the "
          "model configuration docs for more info on max_batch_size.";
    }
    return invalid(text);
  }

  Status check_bytes(const TensorSpec& expected, const TensorView& tensor) const {
    const std::optional<uint64_t> bytes = dense_byte_size(tensor.dtype, tensor.shape);
    if (!bytes) {
      return invalid("input " + quoted(expected.name) + for_model() + " has shape " +
                     tensor.shape.to_string() + ", which is larger than any memory");
    }
    if (*bytes != tensor.data.size()) {
      return invalid("input byte size mismatch for input " + quoted(expected.name) + for_model() +
                     ". Expected " + std::to_string(*bytes) + ", got " +
                     std::to_string(tensor.data.size()));
    }
    return {};
  }

  Status check_strings(const TensorSpec& expected, const TensorView& tensor) const {
    // A count that overflows is surely more than the bytes hold.
    const uint64_t count =
        tensor.shape.element_count().value_or(std::numeric_limits<uint64_t>::max());
    const std::string_view name = expected.name;
    std::span<const std::byte> rest = tensor.data;
    uint64_t seen = 0;
    while (!rest.empty()) {
      if (seen == count) {
        return invalid("unexpected number of string elements " + std::to_string(seen + 1) +
                       " for inference input " + quoted(name) + for_model() + ", expecting " +
                       std::to_string(count));
      }
      uint32_t length = 0;
      if (rest.size() < sizeof(length)) {
        return invalid("incomplete string length indicator for inference input " + quoted(name) +
                       for_model() + ", expecting " + std::to_string(sizeof(length)) +
                       " bytes but only " + std::to_string(rest.size()) +
                       " bytes available. Please make sure the string length indicator is in one "
                       "contiguous chunk.");
      }
      std::memcpy(&length, rest.data(), sizeof(length));
      if (rest.size() - sizeof(length) < length) break;
      rest = rest.subspan(sizeof(length) + length);
      ++seen;
    }
    if (seen != count) {
      return invalid("expected " + std::to_string(count) + " string elements for inference input " +
                     quoted(name) + for_model() + ", got " + std::to_string(seen));
    }
    return {};
  }

  const ModelSpec& spec_;
  Request& request_;
};

}  // namespace

Status check_request(const ModelSpec& spec, Request& request) {
  return Checker(spec, request).check();
}

}  // namespace headrace
