#include "serving/signature.h"

#include <algorithm>
#include <optional>
#include <string>

namespace headrace {
namespace {

constexpr uint64_t kMaxPriorityLevels = 1000;  // each has its lists, scanned in order

enum class Side : uint8_t { kInput, kOutput };

Status invalid(const ModelSpec& spec, const std::string& text) {
  return Status::invalid_argument("model '" + spec.name + "', " + text);
}

std::string tensor_text(Side side, const TensorSpec& tensor) {
  return (side == Side::kInput ? "input '" : "output '") + tensor.name + "'";
}

// Elements of the fixed dims, and how many are -1. Overflow counts as 0 elements, which fits
// nothing.
std::pair<uint64_t, std::size_t> fixed_elements(const std::vector<int64_t>& dims) {
  uint64_t elements = 1;
  std::size_t dynamic = 0;
  for (const int64_t dim : dims) {
    if (dim == -1) {
      ++dynamic;
    } else if (__builtin_mul_overflow(elements, static_cast<uint64_t>(dim), &elements)) {
      return {0, dynamic};
    }
  }
  return {elements, dynamic};
}

Status check_dims(const ModelSpec& spec, Side side, const TensorSpec& tensor) {
  for (const std::vector<int64_t>* dims :
       {&tensor.dims, tensor.reshape ? &*tensor.reshape : &tensor.dims}) {
    if (dims->size() + (spec.batching() ? 1 : 0) > Shape::kMaxRank) {
      return invalid(spec, tensor_text(side, tensor) + ": more than " +
                               std::to_string(Shape::kMaxRank) + " dimensions");
    }
    if (std::any_of(dims->begin(), dims->end(), [](int64_t dim) { return dim < -1; })) {
      return invalid(spec, tensor_text(side, tensor) + ": dims " + Shape::dims_to_string(*dims) +
                               " hold a negative size other than -1");
    }
  }
  if (tensor.reshape && fixed_elements(tensor.dims) != fixed_elements(*tensor.reshape)) {
    return invalid(spec, tensor_text(side, tensor) + ": reshape " +
                             Shape::dims_to_string(*tensor.reshape) +
                             " must have as many elements and -1s as dims " +
                             Shape::dims_to_string(tensor.dims));
  }
  return {};
}

// Whether the backend takes (inputs) or may answer (outputs) what the spec says.
Status check_fit(const ModelSpec& spec, Side side, const TensorSpec& tensor,
                 const TensorSpec& theirs) {
  if (tensor.dtype != theirs.dtype) {
    return invalid(spec, tensor_text(side, tensor) + ": the model expects data-type '" +
                             std::string(dtype_name(theirs.dtype)) +
                             "' but the model configuration specifies '" +
                             std::string(dtype_name(tensor.dtype)) + "'");
  }
  std::vector<int64_t> ours;
  if (spec.batching()) ours.push_back(-1);
  const std::vector<int64_t>& dims = tensor.reshape ? *tensor.reshape : tensor.dims;
  ours.insert(ours.end(), dims.begin(), dims.end());

  bool fits = ours.size() == theirs.dims.size();
  for (std::size_t i = 0; fits && i < ours.size(); ++i) {
    const int64_t model_dim = theirs.dims[i];
    const bool row_by_row = i == 0 && spec.max_batch_size == 1 && model_dim == 1;
    // An output may be configured looser than the model makes it, the batch dimension may not.
    const bool looser = side == Side::kOutput && ours[i] == -1 && !(i == 0 && spec.batching());
    fits = model_dim == -1 || model_dim == ours[i] || row_by_row || looser;
  }
  if (fits) return {};
  return invalid(
      spec,
      tensor_text(side, tensor) + ": the model expects " + std::to_string(theirs.dims.size()) +
          " dimensions (shape " + Shape::dims_to_string(theirs.dims) +
          ") but the model configuration specifies " + std::to_string(ours.size()) +
          " dimensions (" +
          (spec.batching() ? "an initial batch dimension because max_batch_size > 0 followed by "
                             "the explicit tensor shape, making complete shape "
                           : "shape ") +
          Shape::dims_to_string(ours) + ")");
}

Status bind_side(ModelSpec& spec, Side side, std::vector<TensorSpec>& ours,
                 const std::vector<TensorSpec>& theirs) {
  for (std::size_t i = 0; i < ours.size(); ++i) {
    TensorSpec& tensor = ours[i];
    if (std::any_of(ours.begin(), ours.begin() + static_cast<std::ptrdiff_t>(i),
                    [&](const TensorSpec& other) { return other.name == tensor.name; })) {
      return invalid(spec, tensor_text(side, tensor) + " is configured twice");
    }
    const auto found = std::find_if(theirs.begin(), theirs.end(),
                                    [&](const TensorSpec& t) { return t.name == tensor.name; });
    if (found == theirs.end()) {
      std::string names;
      for (const TensorSpec& t : theirs) names += (names.empty() ? "'" : ", '") + t.name + "'";
      return invalid(spec, tensor_text(side, tensor) + " is not one of the model's: " + names);
    }
    tensor.backend_index = static_cast<std::size_t>(found - theirs.begin());
    if (Status status = check_dims(spec, side, tensor); !status) return status;
    if (Status status = check_fit(spec, side, tensor, *found); !status) return status;
  }
  return {};
}

Status check_preferred(const ModelSpec& spec, const BatchPolicy& policy) {
  for (const int64_t size : policy.preferred_batch_size) {
    if (size < 1 || size > policy.max_rows) {
      return invalid(spec, "preferred_batch_size " + std::to_string(size) +
                               " is not between 1 and " + std::to_string(policy.max_rows));
    }
  }
  return {};
}

}  // namespace

Status bind_signature(ModelSpec& spec, const Model& model) {
  if (spec.max_batch_size < 0) return invalid(spec, "max_batch_size must be >= 0");
  if (Status status = bind_side(spec, Side::kInput, spec.inputs, model.inputs()); !status) {
    return status;
  }
  for (const TensorSpec& theirs : model.inputs()) {
    if (!spec.find_input(theirs.name)) {
      return invalid(spec, "input '" + theirs.name +
                               "' of the model is missing from its "
                               "configuration");
    }
  }
  return bind_side(spec, Side::kOutput, spec.outputs, model.outputs());
}

Status check_policy(BatchPolicy& policy, const ModelSpec& spec) {
  const int64_t largest = std::max<int64_t>(1, spec.max_batch_size);
  if (policy.max_rows < 1 || policy.max_rows > largest) {
    return invalid(spec, "batches of up to " + std::to_string(policy.max_rows) +
                             " rows do not suit max_batch_size " +
                             std::to_string(spec.max_batch_size));
  }
  if (Status status = check_preferred(spec, policy); !status) return status;
  std::sort(policy.preferred_batch_size.begin(), policy.preferred_batch_size.end());
  if (policy.priority_levels > kMaxPriorityLevels) {
    return invalid(spec, "priority_levels " + std::to_string(policy.priority_levels) +
                             " is more than " + std::to_string(kMaxPriorityLevels));
  }
  if (policy.priority_levels > 0 && (policy.default_priority_level < 1 ||
                                     policy.default_priority_level > policy.priority_levels)) {
    return invalid(spec, "default_priority_level must be between 1 and priority_levels " +
                             std::to_string(policy.priority_levels));
  }
  if (policy.queue_bound == 0) return invalid(spec, "the queue bound must be >= 1");
  return {};
}

}  // namespace headrace
