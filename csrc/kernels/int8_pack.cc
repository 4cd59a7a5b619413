#include "kernels/int8_pack.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace headrace {
namespace {

constexpr std::size_t kGroup = 4;         // inputs an entry
constexpr std::size_t kPanelVectors = 3;  // what all kernels are shaped for
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kMaxLanes = 16;
constexpr std::size_t kMaxChannels = kPanelVectors * kMaxLanes;
// Below this share of paired entries, weights of 7 bits are faster than those of 8.
constexpr double kWorthPairing = 0.9;
// How far to look for a partner: pairing takes linear time, and those that fit are seldom far.
constexpr std::size_t kPartners = 24;

// An entry of a panel: four inputs of each of its channels.
struct Entry {
  uint32_t input = 0;
  std::array<int8_t, kMaxChannels* kGroup> weights = {};
  // Of the weights that meet in one int16: the sums of the positive and of the negative ones.
  std::array<int16_t, kMaxChannels* 2> positive = {};
  std::array<int16_t, kMaxChannels* 2> negative = {};

  void add_up(std::size_t channels) {
    for (std::size_t lane = 0; lane < channels * 2; ++lane) {
      const int low = weights[2 * lane], high = weights[2 * lane + 1];
      positive[lane] = static_cast<int16_t>(std::max(low, 0) + std::max(high, 0));
      negative[lane] = static_cast<int16_t>(-std::min(low, 0) - std::min(high, 0));
    }
  }
};

// Whether sums of activations up to `most` fit an int16 whatever the activations are.
struct Bound {
  explicit Bound(int32_t most) : positive(32767 / most), negative(32768 / most) {}
  bool holds(const Entry& entry, std::size_t lanes) const {
    bool good = true;
    for (std::size_t i = 0; i < lanes; ++i) {
      good &= entry.positive[i] <= positive && entry.negative[i] <= negative;
    }
    return good;
  }
  bool holds(const Entry& a, const Entry& b, std::size_t lanes) const {
    bool good = true;
    for (std::size_t i = 0; i < lanes; ++i) {
      good &=
          a.positive[i] + b.positive[i] <= positive && a.negative[i] + b.negative[i] <= negative;
    }
    return good;
  }
  int32_t positive, negative;
};

// Entries in the order to run: first `pairs` pairs, then single ones.
struct Plan {
  std::vector<Entry> entries;
  uint32_t pairs = 0;
};

Plan make_plan(std::vector<Entry> entries, std::size_t channels, int32_t activation_max) {
  const Bound bound(activation_max);
  const std::size_t lanes = channels * 2;
  std::vector<Entry> safe;
  safe.reserve(entries.size());
  for (Entry& entry : entries) {
    entry.add_up(channels);
    if (bound.holds(entry, lanes)) {
      safe.push_back(entry);
      continue;
    }
    Entry half = entry;
    for (std::size_t i = 0; i < channels * kGroup; ++i) {
      half.weights[i] = static_cast<int8_t>(entry.weights[i] / 2);
      entry.weights[i] = static_cast<int8_t>(entry.weights[i] - half.weights[i]);
    }
    half.add_up(channels);
    entry.add_up(channels);
    safe.push_back(half);
    safe.push_back(entry);
  }
  Plan plan;
  std::vector<bool> used(safe.size(), false);
  std::vector<std::size_t> single;
  for (std::size_t i = 0; i < safe.size(); ++i) {
    if (used[i]) continue;
    std::size_t partner = 0;
    for (std::size_t j = i + 1, tried = 0; j < safe.size() && tried < kPartners; ++j) {
      if (used[j]) continue;
      ++tried;
      if (bound.holds(safe[i], safe[j], lanes)) {
        partner = j;
        break;
      }
    }
    if (partner == 0) {
      single.push_back(i);
      continue;
    }
    used[partner] = true;
    plan.entries.push_back(safe[i]);
    plan.entries.push_back(safe[partner]);
    ++plan.pairs;
  }
  for (const std::size_t i : single) plan.entries.push_back(safe[i]);
  return plan;
}

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

Status check(std::size_t inputs, std::size_t outputs, std::size_t values, std::size_t bias,
             Isa isa) {
  if (inputs == 0 || outputs == 0 || inputs > PackedLinear::kMaxInputs ||
      outputs > (std::size_t{1} << 30)) {
    return Status::invalid_argument("an INT8 linear layer has 1 to " +
                                    std::to_string(PackedLinear::kMaxInputs) +
                                    " inputs and at least one output, not " +
                                    std::to_string(inputs) + " and " + std::to_string(outputs));
  }
  if (values != inputs * outputs || (bias != 0 && bias != outputs)) {
    return Status::invalid_argument("an INT8 linear layer of " + std::to_string(inputs) + " x " +
                                    std::to_string(outputs) + " has " + std::to_string(values) +
                                    " weights and " + std::to_string(bias) + " biases");
  }
  if (!has_isa(isa)) {
    return Status::unavailable(std::string("this processor or build has no ") + isa_name(isa));
  }
  return {};
}

std::string hash_of(const QuantisedWeights& weights, std::span<const float> bias,
                    const StaticActivations* activations, int32_t activation_max,
                    const PackOptions& options) {
  XXH3_state_t* const state = XXH3_createState();
  if (state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(state);
  const auto add = [&](const void* data, std::size_t bytes) {
    if (bytes != 0) XXH3_128bits_update(state, data, bytes);
  };
  const std::array<uint64_t, 6> facts = {weights.inputs,
                                         weights.outputs,
                                         bias.size(),
                                         static_cast<uint64_t>(activation_max),
                                         static_cast<uint64_t>(options.activation),
                                         static_cast<uint64_t>(options.isa)};
  add(facts.data(), sizeof(facts));
  add(weights.values.data(), weights.values.size());
  add(weights.scales.data(), weights.scales.size() * sizeof(float));
  add(bias.data(), bias.size_bytes());
  if (activations != nullptr) {
    add(&activations->scale, sizeof(float));
    const std::array<int32_t, 3> limits = {activations->zero_point, activations->low,
                                           activations->high};
    add(limits.data(), sizeof(limits));
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (const uint64_t half : {hash.high64, hash.low64}) {
    for (int shift = 60; shift >= 0; shift -= 4) text += kHex[half >> shift & 15];
  }
  return text;
}

}  // namespace

Result<QuantisedWeights> quantise_weights(std::span<const float> weights, std::size_t inputs,
                                          std::size_t outputs, bool transposed, int32_t max) {
  if (Status status = check(inputs, outputs, weights.size(), 0, Isa::kReference); !status.ok()) {
    return status;
  }
  QuantisedWeights made;
  made.inputs = inputs;
  made.outputs = outputs;
  made.values.resize(inputs * outputs);
  made.scales.resize(outputs);
  const std::size_t input_step = transposed ? 1 : outputs;
  const std::size_t output_step = transposed ? inputs : 1;
  for (std::size_t n = 0; n < outputs; ++n) {
    const float* const from = weights.data() + n * output_step;
    float size = 0;
    for (std::size_t k = 0; k < inputs; ++k) {
      const float weight = from[k * input_step];
      if (!std::isfinite(weight)) {
        return Status::invalid_argument("a weight of output " + std::to_string(n) +
                                        " is not finite");
      }
      size = std::max(size, std::abs(weight));
    }
    // So small that its inverse might be infinite: zero.
    const float scale = size / static_cast<float>(max);
    const bool zero = scale < std::numeric_limits<float>::min();
    const float inverse = zero ? 0 : 1.0f / scale;
    made.scales[n] = zero ? 0 : scale;
    for (std::size_t k = 0; k < inputs; ++k) {
      const float value = std::nearbyint(from[k * input_step] * inverse);
      made.values[n * inputs + k] =
          static_cast<int8_t>(std::clamp(value, -static_cast<float>(max), static_cast<float>(max)));
    }
  }
  return made;
}

void PackedLinear::Free::operator()(void* memory) const { std::free(memory); }

std::size_t PackedLinear::memory_bytes() const {
  return weights_bytes_ + order_.size() * sizeof(uint32_t) + panels_.size() * sizeof(Int8Panel) +
         (scales_.size() + bias_.size() + sums_.size()) * sizeof(float);
}

Int8Matrix PackedLinear::matrix() const {
  return {panels_.data(), scales_.data(), bias_.data(), sums_.data(), outputs_, activation_};
}

Result<PackedLinear> PackedLinear::pack(std::span<const float> weights, std::size_t inputs,
                                        std::size_t outputs, bool transposed,
                                        std::span<const float> bias, const PackOptions& options) {
  Result<QuantisedWeights> quantised = quantise_weights(weights, inputs, outputs, transposed);
  if (!quantised) return quantised.error();
  const bool seven_bits = options.isa == Isa::kAvx2;
  Result<PackedLinear> packed =
      pack_for(*quantised, bias, nullptr, seven_bits ? 127 : 255, options);
  if (!packed || packed->paired_share_ >= kWorthPairing) return packed;
  quantised = quantise_weights(weights, inputs, outputs, transposed, 63);
  if (!quantised) return quantised.error();
  packed = pack_for(*quantised, bias, nullptr, 127, options);
  if (packed) packed->weight_bits_ = 7;
  return packed;
}

Result<PackedLinear> PackedLinear::pack(const QuantisedWeights& weights,
                                        std::span<const float> bias,
                                        const StaticActivations* activations,
                                        const PackOptions& options) {
  const bool seven_bits = options.isa == Isa::kAvx2 && activations == nullptr;
  return pack_for(weights, bias, activations, seven_bits ? 127 : 255, options);
}

Result<PackedLinear> PackedLinear::pack_for(const QuantisedWeights& weights,
                                            std::span<const float> bias,
                                            const StaticActivations* activations,
                                            int32_t activation_max, const PackOptions& options) {
  const std::size_t inputs = weights.inputs, outputs = weights.outputs;
  if (Status status = check(inputs, outputs, weights.values.size(), bias.size(), options.isa);
      !status.ok()) {
    return status;
  }
  if (weights.scales.size() != outputs) {
    return Status::invalid_argument("an INT8 linear layer has a scale an output");
  }
  if (activations != nullptr &&
      (!(activations->scale >= std::numeric_limits<float>::min()) ||
       !std::isfinite(activations->scale) || activations->low < 0 ||
       activations->high > activation_max || activations->low >= activations->high ||
       activations->zero_point < 0 || activations->zero_point > 255)) {
    return Status::invalid_argument(
        "an INT8 linear layer's activations have a scale above 0 and "
        "a zero point and limits of 0 to 255");
  }
  const Int8Table& table = *int8_table(options.isa);
  PackedLinear packed;
  packed.inputs_ = inputs;
  packed.outputs_ = outputs;
  packed.isa_ = options.isa;
  packed.activation_ = options.activation;
  packed.static_ = activations != nullptr;
  if (activations != nullptr) packed.activations_ = *activations;
  packed.activation_max_ = activation_max;
  packed.content_hash_ = hash_of(weights, bias, activations, activation_max, options);

  const std::size_t lanes = table.lanes;
  const std::size_t padded_outputs = round_up(outputs, lanes);
  packed.scales_.assign(padded_outputs, 0);
  packed.bias_.assign(padded_outputs, 0);
  packed.sums_.assign(padded_outputs, 0);
  std::copy(weights.scales.begin(), weights.scales.end(), packed.scales_.begin());
  std::copy(bias.begin(), bias.end(), packed.bias_.begin());
  for (std::size_t n = 0; n < outputs; ++n) {
    const int8_t* const from = weights.values.data() + n * inputs;
    for (std::size_t k = 0; k < inputs; ++k) packed.sums_[n] += from[k];
  }

  const std::size_t entries = (inputs + kGroup - 1) / kGroup;
  const bool paired = options.isa == Isa::kAvx2;
  std::vector<int8_t> bytes;
  bytes.reserve(entries * kGroup * padded_outputs);
  std::size_t in_pairs = 0, in_all = 0;
  std::vector<std::size_t> offsets;  // of each panel, in bytes and order_
  std::vector<std::size_t> order_offsets;
  for (std::size_t first = 0; first < outputs; first += kPanelVectors * lanes) {
    const std::size_t channels = std::min(outputs - first, kPanelVectors * lanes);
    const std::size_t vectors = (channels + lanes - 1) / lanes;
    std::vector<Entry> made(entries);
    for (std::size_t e = 0; e < entries; ++e) {
      made[e].input = static_cast<uint32_t>(e * kGroup);
      const std::size_t depth = std::min(kGroup, inputs - e * kGroup);
      for (std::size_t j = 0; j < channels; ++j) {
        std::memcpy(made[e].weights.data() + j * kGroup,
                    weights.values.data() + (first + j) * inputs + e * kGroup, depth);
      }
    }
    Plan plan{std::move(made), 0};
    if (paired) plan = make_plan(std::move(plan.entries), channels, activation_max);
    in_pairs += 2 * plan.pairs;
    in_all += plan.entries.size();
    offsets.push_back(bytes.size());
    order_offsets.push_back(packed.order_.size());
    for (const Entry& entry : plan.entries) {
      const int8_t* const from = entry.weights.data();
      bytes.insert(bytes.end(), from, from + vectors * lanes * kGroup);
      if (paired) packed.order_.push_back(entry.input);
    }
    packed.panels_.push_back({nullptr, nullptr, static_cast<uint32_t>(plan.entries.size()),
                              plan.pairs, static_cast<uint32_t>(vectors),
                              static_cast<uint32_t>(first), static_cast<uint32_t>(channels)});
  }
  packed.weights_bytes_ = round_up(bytes.size(), kAlignment);
  packed.weights_.reset(
      static_cast<int8_t*>(std::aligned_alloc(kAlignment, packed.weights_bytes_)));
  if (packed.weights_ == nullptr) throw std::bad_alloc();
  std::memcpy(packed.weights_.get(), bytes.data(), bytes.size());
  for (std::size_t p = 0; p < packed.panels_.size(); ++p) {
    packed.panels_[p].weights = packed.weights_.get() + offsets[p];
    if (paired) packed.panels_[p].order = packed.order_.data() + order_offsets[p];
  }
  // A split entry counts as the two that it became.
  if (paired) {
    packed.paired_share_ = static_cast<double>(in_pairs) / static_cast<double>(in_all) *
                           static_cast<double>(entries * packed.panels_.size()) /
                           static_cast<double>(in_all);
  }
  return packed;
}

}  // namespace headrace
