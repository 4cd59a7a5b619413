#include "speech/segment_network.h"

#include <utility>

namespace headrace {
namespace {

using Specs = std::vector<TensorSpec>;

// Finds ports by name; remembers the first one that lacks or differs.
class Finder {
 public:
  std::size_t find(const char* network, const Specs& specs, const std::string& name, DType dtype,
                   std::size_t rank) {
    for (std::size_t i = 0; i < specs.size(); ++i) {
      if (specs[i].name != name) continue;
      if (specs[i].dtype != dtype || specs[i].dims.size() != rank) {
        refuse(std::string(network) + ": '" + name + "' is " +
               std::string(dtype_name(specs[i].dtype)) + " " +
               Shape::dims_to_string(specs[i].dims) + ", expected " +
               std::string(dtype_name(dtype)) + " of " + std::to_string(rank) + " dimensions");
      }
      return i;
    }
    refuse(std::string(network) + ": no '" + name + "'");
    return 0;
  }
  void refuse(const std::string& what) {
    if (status_.ok()) status_ = Status::invalid_argument(what);
  }
  const Status& status() const { return status_; }

 private:
  Status status_;
};

bool has(const Specs& specs, const std::string& name) {
  for (const TensorSpec& spec : specs) {
    if (spec.name == name) return true;
  }
  return false;
}

}  // namespace

Result<std::shared_ptr<const SegmentNetwork>> SegmentNetwork::create(
    SegmentOptions options, std::shared_ptr<Model> encoder, std::shared_ptr<Model> decoder) {
  if (options.prompt.empty()) return Status::invalid_argument("prompt: no tokens");
  if (!(options.max_tokens_per_second > 0)) {
    return Status::invalid_argument("max_tokens_per_second: must be above 0");
  }
  if (!(options.min_context_s >= 0) || !(options.max_context_s >= options.min_context_s) ||
      options.max_context_s > 60) {
    return Status::invalid_argument("min_context_s: must be 0 to 30");
  }

  auto made = std::make_shared<SegmentNetwork>();
  Finder finder;
  const Specs& sounds = encoder->inputs();
  const Specs& inputs = decoder->inputs();
  const Specs& outputs = decoder->outputs();
  if (sounds.size() != 1) {
    finder.refuse("encoder: has " + std::to_string(sounds.size()) + " inputs, expected one");
  } else if (has(sounds, "input_features")) {
    finder.find("encoder", sounds, "input_features", DType::kFp32, 3);
    if (sounds[0].dims.size() == 3) {
      const int64_t bands = sounds[0].dims[1];
      if (bands < 1 || bands > 256) {
        finder.refuse("encoder: 'input_features' has no fixed number of mel bands");
      } else {
        made->mel.emplace(static_cast<std::size_t>(bands));
      }
    }
  } else {
    finder.find("encoder", sounds, "input_values", DType::kFp32, 2);
  }

  made->input_ids = finder.find("decoder", inputs, "input_ids", DType::kInt64, 2);
  made->positions = finder.find("decoder", inputs, "positions", DType::kInt64, 2);
  made->self_mask = finder.find("decoder", inputs, "self_mask", DType::kFp32, 4);
  made->cross_mask = finder.find("decoder", inputs, "cross_mask", DType::kFp32, 4);
  made->logits = finder.find("decoder", outputs, "logits", DType::kFp32, 3);
  std::size_t count = 0;
  while (has(inputs, "past." + std::to_string(count) + ".key")) ++count;
  if (count == 0) finder.refuse("decoder: no 'past.0.key'");
  if (inputs.size() != 4 + 4 * count) {
    finder.refuse("decoder: has " + std::to_string(inputs.size()) + " inputs, expected " +
                  std::to_string(4 + 4 * count) + " for " + std::to_string(count) + " layers");
  }
  for (std::size_t i = 0; i < count; ++i) {
    const auto pair = [&](const char* network, const Specs& specs, const char* name) {
      const std::string start = name + ("." + std::to_string(i));
      return Pair{finder.find(network, specs, start + ".key", DType::kFp32, 4),
                  finder.find(network, specs, start + ".value", DType::kFp32, 4)};
    };
    Layer layer;
    layer.encoded = pair("encoder", encoder->outputs(), "cross");
    layer.past = pair("decoder", inputs, "past");
    layer.cross = pair("decoder", inputs, "cross");
    layer.present = pair("decoder", outputs, "present");
    made->layers.push_back(layer);
  }
  if (!finder.status().ok()) return finder.status();

  const std::vector<int64_t>& dims = inputs[made->layers[0].past.key].dims;
  if (dims[1] < 1 || dims[3] < 1) {
    return Status::invalid_argument(
        "decoder: 'past.0.key' has no fixed number of heads and head size");
  }
  for (const Layer& layer : made->layers) {
    for (const std::size_t i :
         {layer.past.key, layer.past.value, layer.cross.key, layer.cross.value}) {
      if (inputs[i].dims[1] != dims[1] || inputs[i].dims[3] != dims[3]) {
        return Status::invalid_argument("decoder: '" + inputs[i].name + "' is " +
                                        Shape::dims_to_string(inputs[i].dims) + ", 'past.0.key' " +
                                        Shape::dims_to_string(dims));
      }
    }
  }
  made->heads = static_cast<std::size_t>(dims[1]);
  made->head_size = static_cast<std::size_t>(dims[3]);
  made->options = std::move(options);
  made->encoder = std::move(encoder);
  made->decoder = std::move(decoder);
  return std::shared_ptr<const SegmentNetwork>(std::move(made));
}

}  // namespace headrace
