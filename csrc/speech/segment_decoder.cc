#include "speech/segment_decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <utility>

#include "speech/recognizer.h"

namespace headrace {
namespace {

// Added to the scores of what must not be seen.
constexpr float kHidden = -1e9F;
// Lengths are rounded up, so that the networks meet few shapes.
constexpr std::size_t kPastStep = 32;     // positions of a cache
constexpr std::size_t kContextStep = 64;  // positions of the encoder's answer
constexpr std::size_t kWidthStep = 8;     // new positions, where it is more than one
constexpr std::size_t kAudioStep = 5120;  // samples: 0.32 s

std::size_t round_up(std::size_t value, std::size_t step) {
  return (value + step - 1) / step * step;
}

std::size_t samples_of(float seconds) {
  return static_cast<std::size_t>(seconds * static_cast<float>(kSpeechSampleRate));
}

template <class T>
TensorView view_of(DType dtype, const Shape& shape, const T* values, std::size_t count) {
  return {dtype, shape, std::as_bytes(std::span(values, count))};
}

std::vector<bool> flags_of(const std::vector<int64_t>& tokens) {
  std::vector<bool> flags;
  for (const int64_t token : tokens) {
    if (token < 0 || token >= int64_t{1} << 24) continue;
    const auto index = static_cast<std::size_t>(token);
    if (flags.size() <= index) flags.resize(index + 1);
    flags[index] = true;
  }
  return flags;
}

}  // namespace

std::size_t length_without_loop(std::span<const int64_t> tokens) {
  constexpr std::size_t kShortest = 3;
  constexpr std::size_t kLongest = 24;
  const std::size_t count = tokens.size();
  for (std::size_t n = kShortest; n <= kLongest && 2 * n <= count; ++n) {
    if (std::equal(tokens.end() - static_cast<std::ptrdiff_t>(n), tokens.end(),
                   tokens.end() - static_cast<std::ptrdiff_t>(2 * n))) {
      return count - n;
    }
  }
  return count;
}

float DecodeRow::confidence() const {
  if (tokens_.empty()) return 0;
  return static_cast<float>(std::exp(log_probability_ / static_cast<double>(tokens_.size())));
}

Result<std::unique_ptr<SegmentDecoder>> SegmentDecoder::create(
    std::shared_ptr<const SegmentNetwork> network) {
  Result<std::unique_ptr<Instance>> encoder = network->encoder->make_instance();
  if (!encoder) return encoder.error();
  Result<std::unique_ptr<Instance>> decoder = network->decoder->make_instance();
  if (!decoder) return decoder.error();
  return std::unique_ptr<SegmentDecoder>(
      new SegmentDecoder(std::move(network), *std::move(encoder), *std::move(decoder)));
}

SegmentDecoder::SegmentDecoder(std::shared_ptr<const SegmentNetwork> network,
                               std::unique_ptr<Instance> encoder, std::unique_ptr<Instance> decoder)
    : network_(std::move(network)),
      encoder_(std::move(encoder)),
      decoder_(std::move(decoder)),
      suppressed_(flags_of(network_->options.suppressed)),
      suppressed_first_(flags_of(network_->options.suppressed_first)) {}

// With the silence that fills them up.
std::size_t SegmentDecoder::heard_samples(std::size_t samples) const {
  const std::size_t least = samples_of(network_->options.min_context_s);
  const std::size_t most = samples_of(network_->options.max_context_s);
  return std::min(round_up(std::max(samples, least), kAudioStep), std::max(most, least));
}

Status SegmentDecoder::encode(std::span<const float> samples, DecodeRow& row) {
  samples = samples.first(std::min(samples.size(), samples_of(network_->options.max_context_s)));
  const std::size_t count = heard_samples(samples.size());
  if (network_->mel) {
    // A second of silence behind the speech: without it Whisper does not know that it has ended.
    const std::size_t heard =
        std::max(count, round_up(samples.size() + kSpeechSampleRate, kAudioStep));
    const std::size_t longest = std::max(count, samples_of(network_->options.max_context_s));
    // Whisper's second convolution halves the frames.
    const std::size_t frames = LogMel::frames(std::min(heard, longest)) / 2 * 2;
    const std::vector<float> features = network_->mel->compute(samples, frames);
    const Shape shape{1, static_cast<int64_t>(network_->mel->bands()),
                      static_cast<int64_t>(frames)};
    Status status =
        encoder_->lend(0, view_of(DType::kFp32, shape, features.data(), features.size()));
    if (status.ok()) status = encoder_->run();
    if (!status.ok()) return status;
  } else {
    Result<std::span<std::byte>> memory =
        encoder_->input(0, Shape{1, static_cast<int64_t>(count)}, count * sizeof(float));
    if (!memory) return memory.error();
    auto* const values = reinterpret_cast<float*>(memory->data());
    std::fill(std::copy(samples.begin(), samples.end(), values), values + count, 0.0F);
    if (Status status = encoder_->run(); !status.ok()) return status;
  }

  // The next segment overwrites what the encoder answers, while this row still needs it.
  row.context_ = 0;
  row.room_ = 0;
  row.cross_.clear();
  for (const SegmentNetwork::Layer& layer : network_->layers) {
    for (const std::size_t index : {layer.encoded.key, layer.encoded.value}) {
      Result<BackendOutput> output = encoder_->output(index);
      if (!output) return output.error();
      const Shape& shape = output->tensor.shape;
      if (shape.size() != 4 || shape[0] != 1 || shape[1] != static_cast<int64_t>(network_->heads) ||
          shape[2] < 1 || shape[3] != static_cast<int64_t>(network_->head_size) ||
          (row.context_ != 0 && shape[2] != static_cast<int64_t>(row.context_))) {
        return Status::internal("the encoder answered '" +
                                network_->encoder->outputs()[index].name + "' of shape " +
                                shape.to_string());
      }
      row.context_ = static_cast<std::size_t>(shape[2]);
      row.room_ = round_up(row.context_, kContextStep);
      const auto* values = reinterpret_cast<const float*>(output->tensor.data.data());
      const std::size_t known = row.context_ * network_->head_size;
      // Zeros in the room that is left: what is hidden must still be a number.
      const std::size_t hidden = (row.room_ - row.context_) * network_->head_size;
      for (std::size_t head = 0; head < network_->heads; ++head, values += known) {
        row.cross_.insert(row.cross_.end(), values, values + known);
        row.cross_.insert(row.cross_.end(), hidden, 0.0F);
      }
    }
  }
  return {};
}

Status SegmentDecoder::warm_up(float seconds) try {
  seconds = std::min(seconds, network_->options.max_context_s);
  const std::size_t prompt = network_->options.prompt.size();
  std::size_t heard = 0;
  std::size_t room = 0;
  DecodeRow row;
  DecodeRow* const rows[] = {&row};
  for (std::size_t samples = 1; samples <= samples_of(seconds); samples += kAudioStep) {
    if (heard_samples(samples) == heard) continue;
    heard = heard_samples(samples);
    const std::vector<float> silence(samples);
    row.length_ = 0;
    if (Status status = encode(silence, row); !status.ok()) return status;
    if (row.room_ == room) continue;
    room = row.room_;
    // As many tokens as such a segment seldom exceeds.
    const double length = static_cast<double>(samples + kAudioStep) / kSpeechSampleRate;
    const auto tokens = prompt + static_cast<std::size_t>(length * 4);
    for (std::size_t width = 1; width <= round_up(tokens, kWidthStep);
         width = width == 1 ? kWidthStep : width + kWidthStep) {
      row.length_ = 0;
      make_room(row, width);
      const std::vector<int64_t> ids(width, network_->options.eos);
      if (Status status = run(rows, ids, width, width); !status.ok()) return status;
    }
    for (std::size_t past = 1; past <= tokens + kPastStep; past += kPastStep) {
      row.length_ = 0;
      make_room(row, past);
      row.length_ = past;
      const std::vector<int64_t> ids(1, network_->options.eos);
      if (Status status = run(rows, ids, 1, 1); !status.ok()) return status;
    }
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::resource_exhausted("speech: no memory to warm up");
}

Status SegmentDecoder::begin(std::span<const float> samples, std::span<const int64_t> draft,
                             DecodeRow& row) {
  const SegmentOptions& options = network_->options;
  row.tokens_.clear();
  row.log_probability_ = 0;
  row.accepted_ = 0;
  row.done_ = false;
  row.id_ = ++rows_begun_;
  row.length_ = 0;
  const double seconds = static_cast<double>(samples.size()) / kSpeechSampleRate;
  row.most_tokens_ = static_cast<std::size_t>(
      std::max(4.0, std::ceil(seconds * static_cast<double>(options.max_tokens_per_second))));
  draft = draft.first(std::min(draft.size(), row.most_tokens_));
  if (Status status = encode(samples, row); !status.ok()) return status;

  std::vector<int64_t> ids(options.prompt);
  ids.insert(ids.end(), draft.begin(), draft.end());
  const std::size_t real = ids.size();
  if (real > 1) ids.resize(round_up(real, kWidthStep), options.eos);
  make_room(row, real);
  DecodeRow* const rows[] = {&row};
  if (Status status = run(rows, ids, ids.size(), real); !status.ok()) return status;

  // The logits of position i choose the token of position i + 1.
  const float* logits = logits_ + (options.prompt.size() - 1) * vocabulary_;
  for (std::size_t i = 0; !row.done_; ++i, logits += vocabulary_) {
    double log_probability = 0;
    const int64_t token = choose(logits, row.tokens_.empty(), log_probability);
    take(row, token, log_probability);
    if (row.done_ || i >= draft.size() || token != draft[i]) break;
    ++row.accepted_;
  }
  const std::size_t kept[] = {options.prompt.size() + row.accepted_};
  return append(rows, ids.size(), kept);
}

Status SegmentDecoder::step(std::span<DecodeRow* const> rows) {
  if (rows.empty()) return {};
  ids_.clear();
  for (DecodeRow* const row : rows) {
    make_room(*row, row->length_ + 1);
    ids_.push_back(row->tokens_.back());
  }
  if (Status status = run(rows, ids_, 1, 1); !status.ok()) return status;
  const std::vector<std::size_t> kept(rows.size(), 1);
  if (Status status = append(rows, 1, kept); !status.ok()) return status;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    double log_probability = 0;
    const int64_t token = choose(logits_ + i * vocabulary_, false, log_probability);
    take(*rows[i], token, log_probability);
  }
  return {};
}

Result<DecodeRow> SegmentDecoder::decode(std::span<const float> samples,
                                         std::span<const int64_t> draft) {
  DecodeRow row;
  if (Status status = begin(samples, draft, row); !status.ok()) return status;
  DecodeRow* const rows[] = {&row};
  while (!row.done_) {
    if (Status status = step(rows); !status.ok()) return status;
  }
  return row;
}

// One run of the decoder: `width` new tokens a row, of which those after `real` mean nothing.
Status SegmentDecoder::run(std::span<DecodeRow* const> rows, std::span<const int64_t> ids,
                           std::size_t width, std::size_t real) {
  const auto count = static_cast<int64_t>(rows.size());
  const auto new_positions = static_cast<int64_t>(width);
  std::size_t past_size = 0;
  std::size_t context = 0;
  positions_.clear();
  for (const DecodeRow* const row : rows) {
    past_size = std::max(past_size, row->capacity_);
    context = std::max(context, row->room_);
    for (std::size_t t = 0; t < width; ++t) {
      positions_.push_back(static_cast<int64_t>(row->length_ + std::min(t, real - 1)));
    }
  }
  Status status;
  if (rows.size() == 1 && rows[0]->length_ == 0) {
    past_size = 1;
    nothing_.resize(2 * network_->layers.size() * network_->heads * network_->head_size);
    status = lend_caches(rows, past_size, context, nothing_.data(), rows[0]->cross_.data());
  } else if (rows.size() == 1) {
    status = lend_caches(rows, past_size, context, rows[0]->past_.data(), rows[0]->cross_.data());
  } else {
    gather(rows, past_size, context);
    past_size = batch_.past_size;
    context = batch_.context;
    status = lend_caches(rows, past_size, context, batch_.past.data(), batch_.cross.data());
  }
  if (!status.ok()) return status;

  self_mask_.clear();
  cross_mask_.clear();
  for (const DecodeRow* const row : rows) {
    for (std::size_t t = 0; t < width; ++t) {
      self_mask_.insert(self_mask_.end(), row->length_, 0.0F);
      self_mask_.insert(self_mask_.end(), past_size - row->length_, kHidden);
      self_mask_.insert(self_mask_.end(), t + 1, 0.0F);
      self_mask_.insert(self_mask_.end(), width - t - 1, kHidden);
    }
    cross_mask_.insert(cross_mask_.end(), row->context_, 0.0F);
    cross_mask_.insert(cross_mask_.end(), context - row->context_, kHidden);
  }

  const Shape tokens{count, new_positions};
  const struct {
    std::size_t index;
    TensorView tensor;
  } lent[] = {
      {network_->input_ids, view_of(DType::kInt64, tokens, ids.data(), ids.size())},
      {network_->positions, view_of(DType::kInt64, tokens, positions_.data(), positions_.size())},
      {network_->self_mask,
       view_of(DType::kFp32,
               Shape{count, 1, new_positions, static_cast<int64_t>(past_size) + new_positions},
               self_mask_.data(), self_mask_.size())},
      {network_->cross_mask,
       view_of(DType::kFp32, Shape{count, 1, 1, static_cast<int64_t>(context)}, cross_mask_.data(),
               cross_mask_.size())},
  };
  for (const auto& [index, tensor] : lent) {
    if (status = decoder_->lend(index, tensor); !status.ok()) return status;
  }
  if (status = decoder_->run(); !status.ok()) return status;

  Result<BackendOutput> logits = decoder_->output(network_->logits);
  if (!logits) return logits.error();
  const Shape& shape = logits->tensor.shape;
  if (shape.size() != 3 || shape[0] != count || shape[1] != new_positions || shape[2] < 1) {
    return Status::internal("the decoder answered 'logits' of shape " + shape.to_string());
  }
  vocabulary_ = static_cast<std::size_t>(shape[2]);
  logits_ = reinterpret_cast<const float*>(logits->tensor.data.data());
  return {};
}

Status SegmentDecoder::lend_caches(std::span<DecodeRow* const> rows, std::size_t past_size,
                                   std::size_t context, const float* past, const float* cross) {
  const auto shape_of = [&](std::size_t positions) {
    return Shape{static_cast<int64_t>(rows.size()), static_cast<int64_t>(network_->heads),
                 static_cast<int64_t>(positions), static_cast<int64_t>(network_->head_size)};
  };
  const std::size_t row = rows.size() * network_->heads * network_->head_size;
  const std::size_t past_values = row * past_size;
  const std::size_t cross_values = row * context;
  for (const SegmentNetwork::Layer& layer : network_->layers) {
    for (const std::size_t index : {layer.past.key, layer.past.value}) {
      Status status =
          decoder_->lend(index, view_of(DType::kFp32, shape_of(past_size), past, past_values));
      if (!status.ok()) return status;
      past += past_values;
    }
    for (const std::size_t index : {layer.cross.key, layer.cross.value}) {
      Status status =
          decoder_->lend(index, view_of(DType::kFp32, shape_of(context), cross, cross_values));
      if (!status.ok()) return status;
      cross += cross_values;
    }
  }
  return {};
}

// Lays the caches of `rows` side by side, unless they lie so from the step before.
void SegmentDecoder::gather(std::span<DecodeRow* const> rows, std::size_t past_size,
                            std::size_t context) {
  const bool same = batch_.past_size == past_size && batch_.context == context &&
                    std::equal(rows.begin(), rows.end(), batch_.rows.begin(), batch_.rows.end(),
                               [](const DecodeRow* row, const auto& known) {
                                 return std::pair(row->id_, row->length_) == known;
                               });
  if (same) return;
  batch_.rows.clear();
  for (const DecodeRow* const row : rows) batch_.rows.emplace_back(row->id_, row->length_);
  batch_.past_size = past_size;
  batch_.context = context;
  const std::size_t heads = network_->heads;
  const std::size_t size = network_->head_size;
  const std::size_t parts = 2 * network_->layers.size();
  // Zeros where a row is shorter: what is hidden must still be a number.
  batch_.past.assign(parts * rows.size() * heads * past_size * size, 0.0F);
  batch_.cross.assign(parts * rows.size() * heads * context * size, 0.0F);
  for (std::size_t part = 0; part < parts; ++part) {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const DecodeRow& row = *rows[r];
      for (std::size_t head = 0; head < heads; ++head) {
        const std::size_t from = part * heads + head;
        const std::size_t to = (part * rows.size() + r) * heads + head;
        std::copy_n(row.past_.data() + from * row.capacity_ * size, row.length_ * size,
                    batch_.past.data() + to * past_size * size);
        std::copy_n(row.cross_.data() + from * row.room_ * size, row.context_ * size,
                    batch_.cross.data() + to * context * size);
      }
    }
  }
}

// Takes the first `kept[r]` of the `width` new positions of every row into its cache.
Status SegmentDecoder::append(std::span<DecodeRow* const> rows, std::size_t width,
                              std::span<const std::size_t> kept) {
  const std::size_t heads = network_->heads;
  const std::size_t size = network_->head_size;
  const std::size_t expected = rows.size() * heads * width * size * sizeof(float);
  std::size_t part = 0;
  for (const SegmentNetwork::Layer& layer : network_->layers) {
    for (const std::size_t index : {layer.present.key, layer.present.value}) {
      Result<BackendOutput> output = decoder_->output(index);
      if (!output) return output.error();
      if (output->tensor.data.size() != expected) {
        return Status::internal("the decoder answered '" +
                                network_->decoder->outputs()[index].name + "' of shape " +
                                output->tensor.shape.to_string());
      }
      const auto* values = reinterpret_cast<const float*>(output->tensor.data.data());
      for (std::size_t r = 0; r < rows.size(); ++r) {
        DecodeRow& row = *rows[r];
        for (std::size_t head = 0; head < heads; ++head, values += width * size) {
          const std::size_t mine = (part * heads + head) * row.capacity_ + row.length_;
          std::copy_n(values, kept[r] * size, row.past_.data() + mine * size);
          if (rows.size() == 1) continue;
          const std::size_t shared =
              ((part * rows.size() + r) * heads + head) * batch_.past_size + row.length_;
          std::copy_n(values, kept[r] * size, batch_.past.data() + shared * size);
        }
      }
      ++part;
    }
  }
  for (std::size_t r = 0; r < rows.size(); ++r) {
    rows[r]->length_ += kept[r];
    if (rows.size() > 1) batch_.rows[r].second = rows[r]->length_;
  }
  return {};
}

// So that `row` can hold `positions` positions.
void SegmentDecoder::make_room(DecodeRow& row, std::size_t positions) const {
  const std::size_t size = network_->head_size;
  const std::size_t parts = 2 * network_->layers.size() * network_->heads;
  if (row.length_ == 0) {
    // Mostly enough for what follows a draft.
    row.capacity_ = round_up(positions + kPastStep / 2, kPastStep);
    row.past_.assign(parts * row.capacity_ * size, 0.0F);
    return;
  }
  if (positions <= row.capacity_) return;
  const std::size_t capacity = round_up(positions, kPastStep);
  std::vector<float> past(parts * capacity * size);
  for (std::size_t part = 0; part < parts; ++part) {
    std::copy_n(row.past_.data() + part * row.capacity_ * size, row.length_ * size,
                past.data() + part * capacity * size);
  }
  row.past_ = std::move(past);
  row.capacity_ = capacity;
}

int64_t SegmentDecoder::choose(const float* logits, bool first, double& log_probability) const {
  const auto allowed = [&](std::size_t token) {
    return !(token < suppressed_.size() && suppressed_[token]) &&
           !(first && token < suppressed_first_.size() && suppressed_first_[token]);
  };
  float best = -std::numeric_limits<float>::infinity();
  std::size_t chosen = static_cast<std::size_t>(network_->options.eos);
  for (std::size_t token = 0; token < vocabulary_; ++token) {
    if (logits[token] > best && allowed(token)) {
      best = logits[token];
      chosen = token;
    }
  }
  // Terms below e^-12 of the best change the third digit at most.
  double sum = 0;
  for (std::size_t token = 0; token < vocabulary_; ++token) {
    if (logits[token] > best - 12) sum += std::exp(static_cast<double>(logits[token] - best));
  }
  log_probability = -std::log(std::max(sum, 1.0));
  return static_cast<int64_t>(chosen);
}

void SegmentDecoder::take(DecodeRow& row, int64_t token, double log_probability) const {
  if (token == network_->options.eos) {
    row.done_ = true;
    return;
  }
  row.tokens_.push_back(token);
  row.log_probability_ += log_probability;
  const std::size_t length = length_without_loop(row.tokens_);
  if (length < row.tokens_.size()) {
    row.tokens_.resize(length);
    row.done_ = true;
  }
  if (row.tokens_.size() >= row.most_tokens_) row.done_ = true;
}

}  // namespace headrace
