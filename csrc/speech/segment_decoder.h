// SegmentDecoder: greedy decoding with one encoder and one decoder instance. A segment becomes a DecodeRow by
// begin(); step() gives every row it is told one more token, all in one run of the decoder. The tokens of a
// row do not depend on the rows beside it.
//
// Threads: one at a time.
//
//   DecodeRow row;
//   Status status = decoder.begin(samples, draft, row);     // encoder, prompt and draft in one pass each
//   while (status.ok() && !row.done()) status = decoder.step(std::array{&row});
//   row.tokens();
// ---------------------------------------------------------------------------------------------
// A draft is what the text was thought to be (the hypothesis for shorter audio). It is verified in the pass
// of the prompt: the longest prefix that greedy decoding would have chosen is kept, so that the result is
// the same as without it, and most steps are saved.
//
// What the networks are given is filled up to few lengths: a shape that is new to an engine costs it more than
// its run (OpenVINO prepares its kernels for each). warm_up() runs those that short segments meet.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "speech/segment_network.h"

namespace headrace {

// One segment on its way to text. Belongs to the SegmentDecoder that began it.
class DecodeRow {
 public:
  bool done() const { return done_; }
  // Without the prompt and the end's token.
  const std::vector<int64_t>& tokens() const { return tokens_; }
  std::size_t accepted() const { return accepted_; }  // tokens of the draft
  // Mean probability of the tokens, 0 to 1; 0 without any.
  float confidence() const;

 private:
  friend class SegmentDecoder;
  std::vector<int64_t> tokens_;
  double log_probability_ = 0;  // sum over the tokens
  std::size_t accepted_ = 0;
  std::size_t most_tokens_ = 0;
  bool done_ = false;
  uint64_t id_ = 0;           // of begin(); a row that is used again is another
  std::size_t length_ = 0;    // positions in past_
  std::size_t capacity_ = 0;  // positions past_ has room for
  std::vector<float> past_;   // [layer][key, value][head][capacity][head size]
  std::size_t context_ = 0;   // positions in cross_, the rest of its room is hidden
  std::size_t room_ = 0;      // positions that cross_ has room for
  std::vector<float> cross_;  // [layer][key, value][head][room][head size]
};

class SegmentDecoder {
 public:
  static Result<std::unique_ptr<SegmentDecoder>> create(
      std::shared_ptr<const SegmentNetwork> network);

  // Before the first segment, on any thread: the shapes of segments of up to `seconds`.
  Status warm_up(float seconds);
  // `samples`: of the segment, at kSpeechSampleRate. Afterwards the row has its first token, or is done.
  Status begin(std::span<const float> samples, std::span<const int64_t> draft, DecodeRow& row);
  // Rows that are not done.
  Status step(std::span<DecodeRow* const> rows);
  // The tokens of one segment by itself.
  Result<DecodeRow> decode(std::span<const float> samples, std::span<const int64_t> draft = {});

 private:
  // The rows of the last step side by side, so that a step after a step copies new positions only.
  struct Batch {
    std::vector<std::pair<uint64_t, std::size_t>> rows;  // id, positions
    std::size_t past_size = 0;
    std::size_t context = 0;
    std::vector<float> past;   // [layer][key, value][row][head][past_size][head size]
    std::vector<float> cross;  // [layer][key, value][row][head][context][head size]
  };

  SegmentDecoder(std::shared_ptr<const SegmentNetwork> network, std::unique_ptr<Instance> encoder,
                 std::unique_ptr<Instance> decoder);
  Status encode(std::span<const float> samples, DecodeRow& row);
  std::size_t heard_samples(std::size_t samples) const;
  Status run(std::span<DecodeRow* const> rows, std::span<const int64_t> ids, std::size_t width,
             std::size_t real);
  Status lend_caches(std::span<DecodeRow* const> rows, std::size_t past_size, std::size_t context,
                     const float* past, const float* cross);
  void gather(std::span<DecodeRow* const> rows, std::size_t past_size, std::size_t context);
  Status append(std::span<DecodeRow* const> rows, std::size_t width,
                std::span<const std::size_t> kept);
  void make_room(DecodeRow& row, std::size_t positions) const;
  int64_t choose(const float* logits, bool first, double& log_probability) const;
  void take(DecodeRow& row, int64_t token, double log_probability) const;

  std::shared_ptr<const SegmentNetwork> network_;
  std::unique_ptr<Instance> encoder_;
  std::unique_ptr<Instance> decoder_;
  uint64_t rows_begun_ = 0;
  std::size_t vocabulary_ = 0;     // of the last run
  const float* logits_ = nullptr;  // [row][width][vocabulary_], until the next run
  std::vector<bool> suppressed_;   // by token
  std::vector<bool> suppressed_first_;
  std::vector<int64_t> ids_;
  std::vector<int64_t> positions_;
  std::vector<float> nothing_;  // a hidden past of one position, all zeros
  std::vector<float> self_mask_;
  std::vector<float> cross_mask_;
  Batch batch_;
};

// Where `tokens` end in a loop: the length without the repetition when the last n tokens (3 to 24) equal the
// n before, else tokens.size().
std::size_t length_without_loop(std::span<const int64_t> tokens);

}  // namespace headrace
