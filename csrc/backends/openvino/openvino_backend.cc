#include "backends/openvino/openvino_backend.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_set>
#include <utility>

#include <openvino/core/version.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>

#include "backends/openvino/int8_rewrite.h"
#include "backends/openvino/linear_chain_instance.h"
#include "backends/openvino/linear_chain_match.h"
#include "backends/openvino/onnx_names.h"
#include "backends/openvino/openvino_error.h"
#include "backends/openvino/openvino_instance.h"
#include "backends/openvino/openvino_workers.h"
#include "base/low_priority.h"

namespace headrace {
namespace {

// Models with more constants than this share one compiled model (openvino_backend.h says why).
constexpr std::size_t kSharedWeightsBytes = std::size_t{16} << 20;

struct Port {
  std::unordered_set<std::string> names;  // OpenVINO's for this tensor
  std::string node;                       // the node that makes it
  ov::element::Type type;
  ov::PartialShape shape;
};

Port input_port(const ov::Output<ov::Node>& input) {
  return {input.get_names(), input.get_node()->get_friendly_name(), input.get_element_type(),
          input.get_partial_shape()};
}

Port output_port(const ov::Output<ov::Node>& output) {
  // The Result's own names first: two outputs may be aliases of one tensor.
  const ov::Output<ov::Node> source = output.get_node()->input_value(0);
  std::string node = source.get_node()->get_friendly_name();
  if (source.get_node()->get_output_size() > 1) node += "." + std::to_string(source.get_index());
  return {output.get_names(), std::move(node), output.get_element_type(),
          output.get_partial_shape()};
}

// What clients call each port. `wanted` are the names of the file's own graph (ONNX) or empty.
// Those that OpenVINO kept are matched by name, the rest in order. Without them: the tensor name
// equal to the node's, else the first one in order, else the node's. Never the same name twice.
std::vector<std::string> choose_names(const std::vector<Port>& ports,
                                      const std::vector<std::string>& wanted) {
  std::vector<std::string> names(ports.size());
  if (wanted.size() == ports.size()) {
    std::vector<bool> used(wanted.size(), false);
    const auto take = [&](std::size_t port, std::size_t name) {
      names[port] = wanted[name];
      used[name] = true;
    };
    // In place first, so that the order of aliases of one tensor stays the file's.
    for (std::size_t i = 0; i < ports.size(); ++i) {
      if (ports[i].names.contains(wanted[i])) take(i, i);
    }
    for (std::size_t i = 0; i < ports.size(); ++i) {
      for (std::size_t j = 0; names[i].empty() && j < wanted.size(); ++j) {
        if (!used[j] && ports[i].names.contains(wanted[j])) take(i, j);
      }
    }
    for (std::size_t i = 0; i < ports.size(); ++i) {
      for (std::size_t j = 0; names[i].empty() && j < wanted.size(); ++j) {
        if (!used[j]) take(i, j);
      }
    }
  }
  std::set<std::string> taken;
  for (std::size_t i = 0; i < ports.size(); ++i) {
    if (names[i].empty()) {
      const std::unordered_set<std::string>& own = ports[i].names;
      names[i] = own.empty() || own.contains(ports[i].node)
                     ? ports[i].node
                     : *std::min_element(own.begin(), own.end());
    }
    const std::string base = names[i];
    for (int copy = 1; !taken.insert(names[i]).second; ++copy) {
      names[i] = base + "_" + std::to_string(copy);
    }
  }
  return names;
}

Result<std::vector<TensorSpec>> describe(const std::string& path, const char* kind,
                                         const std::vector<Port>& ports,
                                         const std::vector<std::string>& wanted) {
  const std::vector<std::string> names = choose_names(ports, wanted);
  std::vector<TensorSpec> specs;
  specs.reserve(ports.size());
  for (std::size_t i = 0; i < ports.size(); ++i) {
    const std::string who = "cannot serve '" + path + "': its " + kind + " '" + names[i] + "' ";
    TensorSpec spec;
    spec.name = names[i];
    spec.dtype = dtype_from_openvino(ports[i].type);
    spec.backend_index = i;
    if (spec.dtype == DType::kInvalid) {
      return Status::invalid_argument(who + "has datatype " + ports[i].type.get_type_name() +
                                      ", which the protocol lacks");
    }
    if (ports[i].shape.rank().is_dynamic()) {
      return Status::invalid_argument(
          who + "has no fixed number of dimensions; export the model with one");
    }
    if (ports[i].shape.size() > Shape::kMaxRank) {
      return Status::invalid_argument(who + "has more than " + std::to_string(Shape::kMaxRank) +
                                      " dimensions");
    }
    for (const ov::Dimension& dim : ports[i].shape) {
      spec.dims.push_back(dim.is_static() ? dim.get_length() : -1);
    }
    specs.push_back(std::move(spec));
  }
  return specs;
}

// The CPU plugin (2026.4.1) runs some operators on strings with memcpy, which ends in a double
// free: Identity and Slice do. Those known to be right are let through, Identity is taken out, the
// rest refused.
Status make_strings_safe(const std::string& path, ov::Model& model) {
  static const std::set<std::string_view> kSafe = {"Parameter", "Result",   "Constant", "Concat",
                                                   "Gather",    "Reshape",  "Squeeze",  "Unsqueeze",
                                                   "ShapeOf",   "Transpose"};
  for (const std::shared_ptr<ov::Node>& node : model.get_ordered_ops()) {
    const std::string_view type = node->get_type_name();
    bool strings = false;
    for (const ov::Output<ov::Node>& value : node->outputs()) {
      strings = strings || value.get_element_type() == ov::element::string;
    }
    for (const ov::Output<ov::Node>& value : node->input_values()) {
      strings = strings || value.get_element_type() == ov::element::string;
    }
    if (!strings || kSafe.contains(type)) continue;
    if (type == "Identity") {
      node->output(0).replace(node->input_value(0));
      continue;
    }
    return Status::unimplemented("cannot serve '" + path + "': OpenVINO cannot run the operator " +
                                 std::string(type) + " ('" + node->get_friendly_name() +
                                 "') on strings");
  }
  return {};
}

// And makes the model ready to compile.
Result<OpenVinoSignature> read_signature(const std::string& path, ov::Model& model) {
  OnnxNames wanted;
  if (std::filesystem::path(path).extension() == ".onnx") {
    wanted = read_onnx_names(path).value_or(OnnxNames());
  }
  std::vector<Port> inputs;
  for (const ov::Output<ov::Node>& input : model.inputs()) {
    inputs.push_back(input_port(input));
  }
  std::vector<Port> outputs;
  for (const ov::Output<ov::Node>& output : model.outputs()) {
    outputs.push_back(output_port(output));
  }
  Result<std::vector<TensorSpec>> in = describe(path, "input", inputs, wanted.inputs);
  if (!in) return in.error();
  Result<std::vector<TensorSpec>> out = describe(path, "output", outputs, wanted.outputs);
  if (!out) return out.error();
  if (Status status = make_strings_safe(path, model); !status.ok()) return status;
  return OpenVinoSignature{std::move(*in), std::move(*out)};
}

std::size_t constant_bytes(const ov::Model& model) {
  std::size_t bytes = 0;
  for (const std::shared_ptr<ov::Node>& node : model.get_ops()) {
    if (const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(node)) {
      bytes += constant->get_byte_size();
    }
  }
  return bytes;
}

std::string short_version() {
  const std::string build = ov::get_openvino_version().buildNumber;
  return build.substr(0, build.find('-'));
}

// Which compiled model each instance uses; the least used one goes to the next instance.
struct Slots {
  std::mutex mutex;
  std::vector<ov::CompiledModel> compiled;
  std::vector<uint32_t> uses;  // guarded by mutex
};

class OpenVinoModel final : public Model {
 public:
  OpenVinoModel(OpenVinoSignature signature, std::shared_ptr<ShapeCheck> shape_check,
                std::vector<ov::CompiledModel> compiled, std::optional<DirectChain> direct,
                std::string description)
      : shape_check_(std::move(shape_check)),
        signature_(std::make_shared<OpenVinoSignature>(std::move(signature))),
        slots_(std::make_shared<Slots>()),
        direct_(std::move(direct)),
        description_(std::move(description)) {
    slots_->uses.assign(compiled.size(), 0);
    slots_->compiled = std::move(compiled);
  }

  const std::vector<TensorSpec>& inputs() const override { return signature_->inputs; }
  const std::vector<TensorSpec>& outputs() const override { return signature_->outputs; }
  std::string description() const override { return description_; }
  bool runs_anywhere() const override { return true; }

  Result<std::unique_ptr<Instance>> make_instance() override try {
    std::size_t slot = 0;
    {
      const std::lock_guard lock(slots_->mutex);
      const auto least = std::min_element(slots_->uses.begin(), slots_->uses.end());
      slot = static_cast<std::size_t>(least - slots_->uses.begin());
      ++*least;
    }
    std::shared_ptr<void> lease(nullptr, [slots = slots_, slot](void*) {
      const std::lock_guard lock(slots->mutex);
      --slots->uses[slot];
    });
    std::unique_ptr<Instance> instance = std::make_unique<OpenVinoInstance>(
        signature_, shape_check_, slots_->compiled[slot], std::move(lease));
    if (!direct_) return instance;
    return std::unique_ptr<Instance>(std::make_unique<LinearChainInstance>(
        direct_->chain, signature_->inputs.front(), direct_->most_rows, std::move(instance)));
  } catch (...) {
    return caught_openvino_status(StatusCode::kInternal, "cannot make an OpenVINO infer request");
  }

 private:
  std::shared_ptr<ShapeCheck> shape_check_;
  std::shared_ptr<const OpenVinoSignature> signature_;
  std::shared_ptr<Slots> slots_;
  std::optional<DirectChain> direct_;
  std::string description_;
};

// <net ...> ... </net>
bool looks_like_ir(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const auto size = static_cast<std::size_t>(std::max<std::streamoff>(file.tellg(), 0));
  const auto read = [&](std::size_t from, std::size_t length) {
    std::string text(std::min(length, size - from), '\0');
    file.seekg(static_cast<std::streamoff>(from));
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    return text;
  };
  return read(0, 4096).find("<net") != std::string::npos &&
         read(size - std::min<std::size_t>(size, 64), 64).find("</net>") != std::string::npos;
}

Status check_file(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return Status::not_found("cannot load '" + path + "': no such file");
  }
  if (!std::filesystem::is_regular_file(status)) {
    return Status::invalid_argument("cannot load '" + path + "': not a file");
  }
  // OpenVINO asks each of its frontends in turn what a file might be, which is slow and noisy for
  // one that is broken; so only files that look like their name says get there.
  const std::string extension = std::filesystem::path(path).extension().string();
  if (extension == ".onnx") {
    if (!read_onnx_names(path)) {
      return Status::invalid_argument("cannot load '" + path +
                                      "': not an ONNX model, or cut short");
    }
  } else if (extension == ".xml") {
    if (!looks_like_ir(path)) {
      return Status::invalid_argument("cannot load '" + path +
                                      "': not an OpenVINO IR file, or cut short");
    }
  } else {
    return Status::invalid_argument("cannot load '" + path +
                                    "': expected an ONNX (.onnx) or OpenVINO IR (.xml) file");
  }
  return {};
}

// Say what is most often wrong, which OpenVINO's text does not.
std::string hint(const std::string& path) {
  std::filesystem::path weights(path);
  if (weights.extension() != ".xml") return "";
  weights.replace_extension(".bin");
  std::error_code error;
  return std::filesystem::exists(weights, error)
             ? ""
             : " (its weights, '" + weights.string() + "', are missing)";
}

Result<std::shared_ptr<ov::Model>> read_model(ov::Core& core, const std::string& path) try {
  if (Status status = check_file(path); !status.ok()) return status;
  return core.read_model(path);
} catch (...) {
  const Status status =
      caught_openvino_status(StatusCode::kInvalidArgument, "cannot load '" + path + "'");
  return Status(status.code(), status.message() + hint(path));
}

Status check_properties(ov::Core& core, const OpenVinoOptions& options) {
  if (options.properties.empty()) return {};
  const std::vector<ov::PropertyName> known =
      core.get_property(options.device, ov::supported_properties);
  for (const auto& [key, value] : options.properties) {
    const auto found = std::find(known.begin(), known.end(), key);
    if (found == known.end()) {
      std::string names;
      for (const ov::PropertyName& name : known) {
        if (name.is_mutable()) names += (names.empty() ? "" : ", ") + name;
      }
      return Status::invalid_argument("unknown OpenVINO property '" + key + "' for device " +
                                      options.device + "; known: " + names);
    }
    if (!found->is_mutable()) {
      return Status::invalid_argument("OpenVINO property '" + key + "' is read-only");
    }
  }
  return {};
}

ov::AnyMap compile_config(const OpenVinoOptions& options, uint32_t streams, uint32_t threads) {
  ov::AnyMap config;
  if (options.device == "CPU") {
    config[ov::num_streams.name()] = ov::streams::Num(static_cast<int32_t>(streams));
    config[ov::inference_num_threads.name()] = static_cast<int32_t>(threads);
    // The planner divides cores, the scheduler places threads; pinned, two models fight for core 0.
    config[ov::hint::enable_cpu_pinning.name()] = false;
    config[ov::hint::inference_precision.name()] = ov::element::f32;
  }
  if (!options.cache_dir.empty()) config[ov::cache_dir.name()] = options.cache_dir;
  for (const auto& [key, value] : options.properties) config[key] = value;
  return config;
}

std::string describe_model(const OpenVinoOptions& options, const ov::CompiledModel& compiled,
                           const std::string& int8) {
  std::string precision;
  try {
    precision = " " + compiled.get_property(ov::hint::inference_precision).get_type_name();
  } catch (...) {
    // A device that does not say (HETERO, AUTO).
  }
  const auto count = [](uint32_t n, const char* what) {
    return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
  };
  return "OpenVINO " + short_version() + " " + options.device + precision + ", " +
         count(options.instances, "instance") + " x " + count(options.threads, "thread") +
         (int8.empty() ? "" : ", " + int8);
}

void with_priority(bool low, const std::function<void()>& work) {
  low ? run_at_low_priority(work) : work();
}

// What load() compiles.
struct Read {
  std::shared_ptr<ov::Model> model;
  OpenVinoSignature signature;
  std::shared_ptr<ShapeCheck> shape_check;
  bool shared;  // by all instances
  Int8Rewritten int8;
  std::optional<DirectChain> chain;  // may run without OpenVINO
};

Result<Read> read_to_compile(ov::Core& core, const std::string& path,
                             const OpenVinoOptions& options) {
  Result<std::shared_ptr<ov::Model>> model = read_model(core, path);
  if (!model) return model.error();
  Result<OpenVinoSignature> signature = read_signature(path, **model);
  if (!signature) return signature.error();
  auto shape_check = options.trusted_shapes ? nullptr : std::make_shared<ShapeCheck>(**model);
  Int8Rewritten int8;
  std::optional<DirectChain> chain;
  if (options.device == "CPU") {
    const Int8Mode mode = *parse_int8_mode(options.int8);
    const Isa isa = options.int8_isa;
    const bool direct = options.direct_chains != DirectChains::kNever;
    const auto before = direct ? before_rewrite(**model, mode, isa) : nullptr;
    int8 = rewrite_int8(core, *model, mode, compile_config(options, 1, options.threads),
                        options.threads, isa);
    if (direct) {
      try {
        chain = find_chain(core, **model, int8, before, mode, isa);
      } catch (...) {  // a shortcut that cannot be taken
      }
    }
  }
  // INT8 weights are shared in any case.
  const bool shared = options.device != "CPU" || constant_bytes(**model) > kSharedWeightsBytes;
  return Read{std::move(*model), std::move(*signature), std::move(shape_check), shared,
              std::move(int8),   std::move(chain)};
}

std::vector<ov::CompiledModel> compile(ov::Core& core, const Read& read,
                                       const OpenVinoOptions& options) {
  ov::AnyMap config =
      read.shared ? compile_config(options, options.instances, options.instances * options.threads)
                  : compile_config(options, 1, options.threads);
  if (read.int8.exact + read.int8.dynamic > 0) config.erase(ov::cache_dir.name());
  std::vector<ov::CompiledModel> compiled;
  while (compiled.size() < (read.shared ? 1 : options.instances)) {
    try {
      compiled.push_back(core.compile_model(read.model, options.device, config));
    } catch (...) {
      // A cache that cannot be written or read must not keep a good model from serving.
      if (config.erase(ov::cache_dir.name()) == 0) throw;
    }
  }
  return compiled;
}

}  // namespace

struct OpenVinoBackend::Impl {
  // Made at first use: probing devices costs ~40 ms, which a server without such models never pays.
  ov::Core& core() {
    std::call_once(once, [this] { made = std::make_unique<ov::Core>(); });
    return *made;
  }
  // Whether a load may have a low priority.
  bool workers_are_there() {
    // The process's, whichever backend comes first; kept to its end.
    static const OpenVinoWorkers* const workers = [this] {
      auto* const started = new OpenVinoWorkers();
      try {
        *started = start_openvino_workers(core());
      } catch (...) {
        // Without them every load has the caller's priority.
      }
      return started;
    }();
    return workers->all;
  }
  std::once_flag once;
  std::unique_ptr<ov::Core> made;
};

OpenVinoBackend::OpenVinoBackend() : impl_(std::make_unique<Impl>()) {}
OpenVinoBackend::~OpenVinoBackend() = default;

Result<std::pair<std::vector<TensorSpec>, std::vector<TensorSpec>>> OpenVinoBackend::inspect(
    const std::string& path, bool low_priority) const try {
  std::optional<Result<OpenVinoSignature>> signature;
  with_priority(low_priority && impl_->workers_are_there(), [&] {
    Result<std::shared_ptr<ov::Model>> model = read_model(impl_->core(), path);
    signature = model ? read_signature(path, **model) : model.error();
  });
  if (!*signature) return signature->error();
  return std::pair(std::move((*signature)->inputs), std::move((*signature)->outputs));
} catch (...) {
  return caught_openvino_status(StatusCode::kInvalidArgument, "cannot read '" + path + "'");
}

Result<std::shared_ptr<Model>> OpenVinoBackend::load(const std::string& path,
                                                     const OpenVinoOptions& options) const try {
  if (options.instances == 0 || options.threads == 0) {
    return Status::invalid_argument("cannot load '" + path +
                                    "': instances and threads must be at least 1");
  }
  if (Result<Int8Mode> mode = parse_int8_mode(options.int8); !mode) {
    return Status::invalid_argument("cannot load '" + path + "': " + mode.error().message());
  }
  ov::Core& core = impl_->core();
  if (Status status = check_properties(core, options); !status.ok()) return status;
  const bool low_priority = impl_->workers_are_there() && options.low_priority;
  std::optional<Result<Read>> read;
  with_priority(low_priority, [&] { read = read_to_compile(core, path, options); });
  if (!*read) return read->error();

  // Several streams are executed by threads of the compiled model, which are born here; one stream
  // by who runs it.
  const bool threads_that_serve =
      options.device != "CPU" || ((*read)->shared && options.instances > 1);
  std::vector<ov::CompiledModel> compiled;
  with_priority(low_priority && !threads_that_serve, [&] {
    compiled = compile(core, **read, options);
    (*read)->model.reset();  // freed here too
  });
  const bool always = options.direct_chains == DirectChains::kAlways;
  std::string int8 = (*read)->int8.summary;
  try {
    int8 = choose_chain((*read)->chain, compiled.front(), (*read)->int8,
                        *parse_int8_mode(options.int8), always);
  } catch (...) {  // what cannot be measured is left to OpenVINO
    (*read)->chain.reset();
  }
  std::string description = describe_model(options, compiled.front(), int8);
  return std::shared_ptr<Model>(std::make_shared<OpenVinoModel>(
      std::move((*read)->signature), std::move((*read)->shape_check), std::move(compiled),
      std::move((*read)->chain), std::move(description)));
} catch (...) {
  return caught_openvino_status(StatusCode::kInvalidArgument, "cannot compile '" + path + "'");
}

std::string OpenVinoBackend::version() { return ov::get_openvino_version().buildNumber; }

std::vector<std::string> OpenVinoBackend::devices() const try {
  return impl_->core().get_available_devices();
} catch (...) {
  return {};
}

}  // namespace headrace
