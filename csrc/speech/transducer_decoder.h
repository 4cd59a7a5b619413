// TransducerDecoder: tokens from what a transducer's encoder heard, at most one a frame: greedily, or by a beam
// of hypotheses (icefall's "modified beam search"), which phrases can be preferred in.
//
//   decoder  y [N, context] int64 -> decoder_out [N, D]; before the first tokens are -1, then one blank
//   joiner   encoder_out [N, D], decoder_out [N, D] -> logit [N, V]
//
// Threads: a TransducerDecoder belongs to one thread, a TransducerState to whoever has its stream.
//
//   TransducerState state(network, paths, nullptr);
//   std::array rows{TransducerDecoder::Row{frames, &state}};     // the tokens do not depend on the rows beside
//   Status status = decoder->decode(rows, 8, width);
//   state.best().tokens();
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backends/backend.h"
#include "base/status.h"
#include "speech/phrase_trie.h"

namespace headrace {

struct TransducerNetwork {
  int64_t blank = 0;
  int64_t unknown = -1;  // a token that counts as the blank; -1: none
  std::shared_ptr<Model> decoder;
  std::shared_ptr<Model> joiner;
  std::size_t context = 0;  // tokens that the decoder sees

  // INVALID_ARGUMENT says what of the signatures is not as above.
  static Result<std::shared_ptr<const TransducerNetwork>> create(int64_t blank, int64_t unknown,
                                                                 std::shared_ptr<Model> decoder,
                                                                 std::shared_ptr<Model> joiner);
};

// What may have been said in this utterance.
struct TransducerHypothesis {
  std::vector<int64_t> said;             // after `context` earlier ones
  std::vector<uint64_t> frames;          // of each: since the stream's start
  std::vector<float> log_probabilities;  // of each
  std::size_t context = 0;
  double score = 0;
  uint32_t silence = 0;  // frames since the last token
  uint32_t phrase = PhraseTrie::kRoot;
  std::vector<float> predicted;  // the decoder's output after `said`; empty: not known

  std::span<const int64_t> tokens() const { return std::span(said).subspan(context); }
};

class TransducerState {
 public:
  // `paths`: hypotheses that are kept, 1: greedy.
  TransducerState(const TransducerNetwork& network, std::size_t paths,
                  std::shared_ptr<const PhraseTrie> phrases);

  const TransducerHypothesis& best() const;
  // Tokens that all hypotheses begin with.
  std::size_t agreed() const;
  // The utterance is over: its last tokens are context for the next.
  void next_utterance();

 private:
  friend class TransducerDecoder;
  std::size_t paths_;
  std::shared_ptr<const PhraseTrie> phrases_;
  std::vector<TransducerHypothesis> hypotheses_;
  uint64_t frames_ = 0;
};

class TransducerDecoder {
 public:
  static Result<std::unique_ptr<TransducerDecoder>> create(
      std::shared_ptr<const TransducerNetwork> network);

  struct Row {
    const float* frames = nullptr;  // [count][width]
    TransducerState* state = nullptr;
  };
  Status decode(std::span<const Row> rows, std::size_t count, std::size_t width);

 private:
  TransducerDecoder(std::shared_ptr<const TransducerNetwork> network,
                    std::unique_ptr<Instance> decoder, std::unique_ptr<Instance> joiner)
      : network_(std::move(network)), decoder_(std::move(decoder)), joiner_(std::move(joiner)) {}
  Status predict(std::span<const Row> rows);
  Result<std::size_t> join(std::span<const Row> rows, std::size_t frame, std::size_t width);
  void choose(TransducerState& state, const float* logits, std::size_t vocabulary) const;
  void search(TransducerState& state, std::size_t vocabulary);
  void say(TransducerHypothesis& hypothesis, int64_t token, float log_probability,
           uint64_t frame) const;
  bool silent(int64_t token) const {
    return token == network_->blank || token == network_->unknown;
  }

  std::shared_ptr<const TransducerNetwork> network_;
  std::unique_ptr<Instance> decoder_;
  std::unique_ptr<Instance> joiner_;
  std::vector<int64_t> contexts_;
  std::vector<float> heard_;
  std::vector<float> predicted_;
  std::vector<float> logits_;  // log probabilities of a state's hypotheses and all tokens
  std::vector<std::size_t> order_;
};

}  // namespace headrace
