#include "backends/openvino/int8_rewrite.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "backends/openvino/int8_match.h"
#include "backends/openvino/int8_op.h"
#include "backends/openvino/int8_timing.h"

namespace headrace {
namespace {

struct Chosen {
  LinearMatch match;
  std::shared_ptr<const PackedLinear> layer;
};

// Null: not to be had (weights that are no numbers, say); the layer stays as it is.
std::shared_ptr<const PackedLinear> pack(const LinearMatch& match, Isa isa) {
  const PackOptions options{.activation = match.activation, .isa = isa};
  std::optional<Result<PackedLinear>> packed;
  if (match.quantised) {
    QuantisedWeights weights = *match.quantised;
    for (float& scale : weights.scales) scale *= match.factor;
    packed = PackedLinear::pack(weights, match.bias,
                                match.activations ? &*match.activations : nullptr, options);
  } else {
    std::vector<float> weights = read_weights(match);
    for (float& weight : weights) weight *= match.factor;
    packed = PackedLinear::pack(weights, match.inputs, match.outputs, match.transposed, match.bias,
                                options);
  }
  if (!packed->has_value()) return nullptr;
  return std::make_shared<const PackedLinear>(std::move(**packed));
}

class Chooser {
 public:
  Chooser(ov::Core& core, Int8Mode mode, const ov::AnyMap& config, std::size_t threads, Isa isa)
      : core_(core), mode_(mode), config_(config), threads_(threads), isa_(isa) {}

  // Whether to replace, and by what.
  std::shared_ptr<const PackedLinear> choose(const LinearMatch& match, Int8Rewritten& done) {
    const bool must = match.is_exact() && openvino_saturates(isa_);
    if ((mode_ == Int8Mode::kExact && !must) ||
        (!match.is_exact() && match.inputs * match.outputs < kLeastInt8Weights)) {
      ++done.other;
      return nullptr;
    }
    std::shared_ptr<const PackedLinear> layer = pack(match, isa_);
    if (!layer) {
      ++done.other;
      return nullptr;
    }
    if (mode_ == Int8Mode::kAuto && !must && !is_faster(match, layer)) {
      ++done.slower;
      return nullptr;
    }
    ++(match.is_exact() ? done.exact : done.dynamic);
    return layer;
  }

 private:
  // Layers of one shape are measured once.
  bool is_faster(const LinearMatch& match, const std::shared_ptr<const PackedLinear>& layer) {
    const ov::PartialShape& shape = match.x.get_partial_shape();
    std::string rows;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows += shape[i].to_string() + ",";
    const auto key = std::tuple(match.inputs, match.outputs, match.activation, match.is_exact(),
                                match.quantised.has_value(), rows);
    const auto found = measured_.find(key);
    if (found != measured_.end()) return found->second;
    bool faster = false;
    try {
      faster = int8_speedup(core_, match, layer, config_, threads_) > kLeastInt8Speedup;
    } catch (...) {  // what cannot be measured is left to OpenVINO
    }
    measured_.emplace(key, faster);
    return faster;
  }

  ov::Core& core_;
  const Int8Mode mode_;
  const ov::AnyMap& config_;
  const std::size_t threads_;
  const Isa isa_;
  std::map<std::tuple<std::size_t, std::size_t, LinearActivation, bool, bool, std::string>, bool>
      measured_;
};

void replace(const std::vector<Chosen>& group, std::size_t threads) {
  std::vector<std::shared_ptr<const PackedLinear>> layers;
  for (const Chosen& chosen : group) layers.push_back(chosen.layer);
  // Not match.x: the layer that made it may be another by now.
  const auto op =
      std::make_shared<Int8Linear>(group.front().match.nodes.front()->input_value(0),
                                   std::make_shared<const Int8Layers>(std::move(layers), threads));
  op->set_friendly_name(group.front().match.y.get_node()->get_friendly_name());
  for (std::size_t i = 0; i < group.size(); ++i) {
    ov::Output<ov::Node> y = group[i].match.y;
    y.replace(op->output(i));
  }
}

}  // namespace

Result<Int8Mode> parse_int8_mode(const std::string& text) {
  for (const auto& [name, mode] :
       {std::pair("off", Int8Mode::kOff), std::pair("exact", Int8Mode::kExact),
        std::pair("dynamic", Int8Mode::kDynamic), std::pair("auto", Int8Mode::kAuto)}) {
    if (text == name) return mode;
  }
  return Status::invalid_argument("int8 is \"" + text +
                                  "\"; it must be \"off\", \"exact\", \"dynamic\" or \"auto\"");
}

Int8Rewritten rewrite_int8(ov::Core& core, const std::shared_ptr<ov::Model>& model, Int8Mode mode,
                           const ov::AnyMap& config, std::size_t threads, Isa isa) {
  Int8Rewritten done;
  if (mode == Int8Mode::kOff || isa == Isa::kReference) return done;
  if (mode == Int8Mode::kExact && !openvino_saturates(isa)) return done;
  Chooser chooser(core, mode, config, threads, isa);
  // Those that read the same tensor the same way become one operator: it is quantised once.
  std::vector<std::vector<Chosen>> groups;
  std::size_t matmuls = 0;
  for (const std::shared_ptr<ov::Node>& node : model->get_ordered_ops()) {
    const auto matmul = ov::as_type_ptr<ov::op::v0::MatMul>(node);
    if (!matmul) continue;
    ++matmuls;
    std::optional<LinearMatch> match = match_linear(matmul);
    if (!match) {
      ++done.other;
      continue;
    }
    std::shared_ptr<const PackedLinear> layer = chooser.choose(*match, done);
    if (!layer) continue;
    match->quantised.reset();  // packed now
    const auto alike = std::find_if(groups.begin(), groups.end(), [&](const auto& group) {
      return group.front().match.x == match->x && reads_alike(*group.front().layer, *layer);
    });
    if (alike == groups.end()) {
      groups.push_back({Chosen{std::move(*match), std::move(layer)}});
    } else {
      alike->push_back({std::move(*match), std::move(layer)});
    }
  }
  for (const std::vector<Chosen>& group : groups) replace(group, threads);
  if (!groups.empty()) model->validate_nodes_and_infer_types();
  if (done.exact + done.dynamic + done.slower > 0) {
    done.summary = std::string("int8 (") + isa_name(isa) +
                   "): " + std::to_string(done.exact + done.dynamic) + " of " +
                   std::to_string(matmuls) + " MatMuls";
    if (done.exact > 0 && done.dynamic > 0) {
      done.summary += " (" + std::to_string(done.exact) + " as the model quantises them)";
    }
    if (done.slower > 0) {
      done.summary += ", " + std::to_string(done.slower) + " faster in OpenVINO";
    }
  }
  return done;
}

}  // namespace headrace
