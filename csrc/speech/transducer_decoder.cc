#include "speech/transducer_decoder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>

namespace headrace {
namespace {

Status check_port(const char* network, const std::vector<TensorSpec>& specs, std::size_t index,
                  const char* name, DType dtype) {
  if (index >= specs.size() || specs[index].name != name) {
    return Status::invalid_argument(std::string(network) + ": no '" + name + "' where expected");
  }
  if (specs[index].dtype != dtype || specs[index].dims.size() != 2) {
    return Status::invalid_argument(std::string(network) + ": '" + name + "' is " +
                                    std::string(dtype_name(specs[index].dtype)) + " " +
                                    Shape::dims_to_string(specs[index].dims) + ", expected " +
                                    std::string(dtype_name(dtype)) + " of 2 dimensions");
  }
  if (specs[index].dims[0] != -1) {
    return Status::invalid_argument(std::string(network) + ": '" + name + "' is " +
                                    Shape::dims_to_string(specs[index].dims) +
                                    ": its first dimension has to be dynamic");
  }
  return {};
}

// The last of `count` rows again, until there are `wanted`: a number of rows that is new costs runtimes more than
// rows that nobody asked for.
template <class T>
void repeat_last(std::vector<T>& rows, std::size_t count, std::size_t wanted) {
  const std::size_t width = rows.size() / count;
  rows.resize(wanted * width);
  for (; count > 0 && count < wanted; ++count) {
    const T* const last = rows.data() + (count - 1) * width;
    std::copy_n(last, width, rows.data() + count * width);
  }
}

double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return a + std::log1p(std::exp(b - a));
}

// What is subtracted from logits to make them log probabilities.
float log_sum(const float* logits, std::size_t count) {
  const float most = *std::max_element(logits, logits + count);
  float sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += std::exp(logits[i] - most);
  return most + std::log(sum);
}

}  // namespace

Result<std::shared_ptr<const TransducerNetwork>> TransducerNetwork::create(
    int64_t blank, int64_t unknown, std::shared_ptr<Model> decoder, std::shared_ptr<Model> joiner) {
  for (const Status& status :
       {check_port("decoder", decoder->inputs(), 0, "y", DType::kInt64),
        check_port("decoder", decoder->outputs(), 0, "decoder_out", DType::kFp32),
        check_port("joiner", joiner->inputs(), 0, "encoder_out", DType::kFp32),
        check_port("joiner", joiner->inputs(), 1, "decoder_out", DType::kFp32),
        check_port("joiner", joiner->outputs(), 0, "logit", DType::kFp32)}) {
    if (!status.ok()) return status;
  }
  if (decoder->inputs().size() != 1) {
    return Status::invalid_argument("decoder: has inputs beside 'y'");
  }
  if (joiner->inputs().size() != 2) {
    return Status::invalid_argument("joiner: has inputs beside 'encoder_out' and 'decoder_out'");
  }
  const int64_t made_width = decoder->outputs()[0].dims[1];
  const int64_t joined_width = joiner->inputs()[1].dims[1];
  if (made_width != -1 && joined_width != -1 && made_width != joined_width) {
    return Status::invalid_argument("joiner: 'decoder_out' is " + std::to_string(joined_width) +
                                    " wide, but the decoder's is " + std::to_string(made_width));
  }
  const int64_t vocabulary = joiner->outputs()[0].dims[1];
  if (blank < 0 || (vocabulary != -1 && std::max(blank, unknown) >= vocabulary)) {
    return Status::invalid_argument("joiner: has " + std::to_string(vocabulary) +
                                    " tokens, but blank is " + std::to_string(blank) +
                                    ", unknown " + std::to_string(unknown));
  }
  const int64_t context = decoder->inputs()[0].dims[1];
  if (context < 1 || context > 16) {
    return Status::invalid_argument("decoder: 'y' has no fixed number of tokens");
  }
  auto made = std::make_shared<TransducerNetwork>();
  made->blank = blank;
  made->unknown = unknown;
  made->decoder = std::move(decoder);
  made->joiner = std::move(joiner);
  made->context = static_cast<std::size_t>(context);
  return std::shared_ptr<const TransducerNetwork>(std::move(made));
}

TransducerState::TransducerState(const TransducerNetwork& network, std::size_t paths,
                                 std::shared_ptr<const PhraseTrie> phrases)
    : paths_(std::max<std::size_t>(paths, 1)), phrases_(std::move(phrases)), hypotheses_(1) {
  hypotheses_[0].said.assign(network.context, -1);
  hypotheses_[0].said.back() = network.blank;
  hypotheses_[0].context = network.context;
}

// Longer hypotheses have lower scores: it is the score a token that counts.
const TransducerHypothesis& TransducerState::best() const {
  return *std::max_element(hypotheses_.begin(), hypotheses_.end(),
                           [](const TransducerHypothesis& a, const TransducerHypothesis& b) {
                             return a.score / static_cast<double>(a.said.size()) <
                                    b.score / static_cast<double>(b.said.size());
                           });
}

std::size_t TransducerState::agreed() const {
  const std::span<const int64_t> best = this->best().tokens();
  std::size_t common = best.size();
  for (const TransducerHypothesis& other : hypotheses_) {
    const std::span<const int64_t> theirs = other.tokens();
    const auto end = std::mismatch(best.begin(), best.end(), theirs.begin(), theirs.end()).first;
    common = std::min(common, static_cast<std::size_t>(end - best.begin()));
  }
  return common;
}

void TransducerState::next_utterance() {
  // A phrase that the utterance's end breaks off gives nothing to the next one.
  if (phrases_ != nullptr) {
    for (TransducerHypothesis& each : hypotheses_) each.score -= phrases_->given(each.phrase);
  }
  double most = hypotheses_[0].score;
  for (const TransducerHypothesis& each : hypotheses_) most = std::max(most, each.score);
  std::vector<TransducerHypothesis> kept;
  for (TransducerHypothesis& each : hypotheses_) {
    each.said.erase(each.said.begin(), each.said.end() - static_cast<std::ptrdiff_t>(each.context));
    each.frames.clear();
    each.log_probabilities.clear();
    each.score -= most;
    each.silence = 0;
    each.phrase = PhraseTrie::kRoot;
    const auto same = std::find_if(kept.begin(), kept.end(),
                                   [&](const auto& other) { return other.said == each.said; });
    if (same == kept.end()) {
      kept.push_back(std::move(each));
    } else {
      same->score = log_add(same->score, each.score);
    }
  }
  hypotheses_ = std::move(kept);
}

Result<std::unique_ptr<TransducerDecoder>> TransducerDecoder::create(
    std::shared_ptr<const TransducerNetwork> network) {
  Result<std::unique_ptr<Instance>> decoder = network->decoder->make_instance();
  if (!decoder) return decoder.error();
  Result<std::unique_ptr<Instance>> joiner = network->joiner->make_instance();
  if (!joiner) return joiner.error();
  return std::unique_ptr<TransducerDecoder>(
      new TransducerDecoder(std::move(network), *std::move(decoder), *std::move(joiner)));
}

Status TransducerDecoder::decode(std::span<const Row> rows, std::size_t count, std::size_t width) {
  for (std::size_t frame = 0; frame < count; ++frame) {
    if (Status status = predict(rows); !status.ok()) return status;
    const Result<std::size_t> vocabulary = join(rows, frame, width);
    if (!vocabulary) return vocabulary.error();
    Result<BackendOutput> output = joiner_->output(0);
    if (!output) return output.error();
    const auto* logits = reinterpret_cast<const float*>(output->tensor.data.data());
    for (const Row& row : rows) {
      TransducerState& state = *row.state;
      const std::size_t values = state.hypotheses_.size() * *vocabulary;
      if (state.paths_ == 1) {
        choose(state, logits, *vocabulary);
      } else {
        logits_.assign(logits, logits + values);
        search(state, *vocabulary);
      }
      logits += values;
      ++state.frames_;
    }
  }
  return {};
}

// The decoder's output of hypotheses that have said something since.
Status TransducerDecoder::predict(std::span<const Row> rows) {
  contexts_.clear();
  std::vector<TransducerHypothesis*> lacking;
  for (const Row& row : rows) {
    for (TransducerHypothesis& each : row.state->hypotheses_) {
      if (!each.predicted.empty()) continue;
      lacking.push_back(&each);
      contexts_.insert(contexts_.end(), each.said.end() - static_cast<std::ptrdiff_t>(each.context),
                       each.said.end());
    }
  }
  if (lacking.empty()) return {};
  const std::size_t rows_run = std::bit_ceil(lacking.size());
  repeat_last(contexts_, lacking.size(), rows_run);
  const auto count = static_cast<int64_t>(rows_run);
  const Shape shape{count, static_cast<int64_t>(network_->context)};
  Status status =
      decoder_->lend(0, {DType::kInt64, shape, std::as_bytes(std::span<const int64_t>(contexts_))});
  if (status.ok()) status = decoder_->run();
  if (!status.ok()) return status;
  Result<BackendOutput> output = decoder_->output(0);
  if (!output) return output.error();
  const Shape& made = output->tensor.shape;
  if (made.size() != 2 || made[0] != count || made[1] < 1) {
    return Status::internal("decoder: answered with " + made.to_string());
  }
  const auto width = static_cast<std::size_t>(made[1]);
  const auto* from = reinterpret_cast<const float*>(output->tensor.data.data());
  for (TransducerHypothesis* each : lacking) {
    each->predicted.assign(from, from + width);
    from += width;
  }
  return {};
}

// Logits of all hypotheses; the number of tokens.
Result<std::size_t> TransducerDecoder::join(std::span<const Row> rows, std::size_t frame,
                                            std::size_t width) {
  heard_.clear();
  predicted_.clear();
  std::size_t count = 0;
  for (const Row& row : rows) {
    const float* const heard = row.frames + frame * width;
    for (const TransducerHypothesis& each : row.state->hypotheses_) {
      heard_.insert(heard_.end(), heard, heard + width);
      predicted_.insert(predicted_.end(), each.predicted.begin(), each.predicted.end());
      ++count;
    }
  }
  const std::size_t rows_run = std::bit_ceil(count);
  repeat_last(heard_, count, rows_run);
  repeat_last(predicted_, count, rows_run);
  const auto rank = static_cast<int64_t>(rows_run);
  const auto lend = [&](std::size_t index, const std::vector<float>& values) {
    const Shape shape{rank, static_cast<int64_t>(values.size() / rows_run)};
    return joiner_->lend(index,
                         {DType::kFp32, shape, std::as_bytes(std::span<const float>(values))});
  };
  Status status = lend(0, heard_);
  if (status.ok()) status = lend(1, predicted_);
  if (status.ok()) status = joiner_->run();
  if (!status.ok()) return status;
  Result<BackendOutput> output = joiner_->output(0);
  if (!output) return output.error();
  const Shape& made = output->tensor.shape;
  if (made.size() != 2 || made[0] != rank || made[1] <= network_->blank) {
    return Status::internal("joiner: answered with " + made.to_string());
  }
  return static_cast<std::size_t>(made[1]);
}

void TransducerDecoder::say(TransducerHypothesis& hypothesis, int64_t token, float log_probability,
                            uint64_t frame) const {
  if (silent(token)) {
    ++hypothesis.silence;
    return;
  }
  hypothesis.said.push_back(token);
  hypothesis.frames.push_back(frame);
  hypothesis.log_probabilities.push_back(log_probability);
  hypothesis.silence = 0;
  hypothesis.predicted.clear();
}

// Greedily.
void TransducerDecoder::choose(TransducerState& state, const float* logits,
                               std::size_t vocabulary) const {
  const float* const most = std::max_element(logits, logits + vocabulary);
  const auto token = static_cast<int64_t>(most - logits);
  const float log_probability = silent(token) ? 0 : *most - log_sum(logits, vocabulary);
  say(state.hypotheses_[0], token, log_probability, state.frames_);
}

// The best of all hypotheses' continuations, of which logits_ has the logits.
void TransducerDecoder::search(TransducerState& state, std::size_t vocabulary) {
  const std::vector<TransducerHypothesis> before = std::move(state.hypotheses_);
  state.hypotheses_.clear();
  for (std::size_t i = 0; i < before.size(); ++i) {
    float* const row = logits_.data() + i * vocabulary;
    const float sum = log_sum(row, vocabulary);
    const auto score = static_cast<float>(before[i].score);
    for (std::size_t k = 0; k < vocabulary; ++k) row[k] = row[k] - sum + score;
  }
  order_.resize(before.size() * vocabulary);
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  const std::size_t kept = std::min(state.paths_, order_.size());
  std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(kept),
                    order_.end(), [&](std::size_t a, std::size_t b) {
                      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
                    });
  for (std::size_t i = 0; i < kept; ++i) {
    const TransducerHypothesis& from = before[order_[i] / vocabulary];
    const auto token = static_cast<int64_t>(order_[i] % vocabulary);
    TransducerHypothesis next = from;
    const float score = logits_[order_[i]];
    say(next, token, score - static_cast<float>(from.score), state.frames_);
    next.score = score;
    if (!silent(token) && state.phrases_ != nullptr) {
      const PhraseTrie::Step step = state.phrases_->step(from.phrase, token);
      next.score = score + step.gain;
      next.phrase = step.node;
    }
    // The same text by another way.
    const auto same =
        std::find_if(state.hypotheses_.begin(), state.hypotheses_.end(),
                     [&](const TransducerHypothesis& other) { return other.said == next.said; });
    if (same == state.hypotheses_.end()) {
      state.hypotheses_.push_back(std::move(next));
    } else {
      same->score = log_add(same->score, next.score);
    }
  }
}

}  // namespace headrace
