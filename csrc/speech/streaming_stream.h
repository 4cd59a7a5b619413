// What StreamingEngine knows of one stream. Each part belongs to somebody: see the marks.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "speech/ctc_decoder.h"
#include "speech/fbank.h"
#include "speech/recognizer.h"
#include "speech/streaming_network.h"
#include "speech/transducer_decoder.h"

namespace headrace {

struct StreamingStream {
  StreamingStream(const SpeechOptions& asked, std::shared_ptr<SpeechListener> told,
                  std::shared_ptr<const Fbank> fbank)
      : options(asked), listener(std::move(told)), features(std::move(fbank)) {}

  const SpeechOptions options;
  const std::shared_ptr<SpeechListener> listener;
  uint32_t stop_ms = 0;
  uint32_t eou_ms = 0;  // 0: never
  std::size_t paths = 1;
  std::shared_ptr<const PhraseTrie> phrases;

  std::atomic<bool> cancelled{false};
  std::atomic<std::size_t> backlog{0};  // samples that wait
  std::atomic<bool> told_full{false};

  // What arrived, guarded by `inbox_mutex`.
  std::mutex inbox_mutex;
  std::vector<float> inbox;
  std::size_t inbox_head = 0;
  std::size_t wanted = 0;                               // samples in the inbox that make a chunk
  uint64_t arrived = 0;                                 // samples since the start
  std::deque<std::pair<uint64_t, TimePoint>> arrivals;  // arrived, when; the last half a minute
  std::deque<uint64_t> forced_ends;                     // samples since the start
  bool finished = false;

  // The engine's mutex.
  bool ready = false;  // waits for a worker
  bool in_flight = false;
  bool news = false;  // since it is in flight
  bool ended = false;
  bool counted = false;  // among the open streams
  Status failure;        // it ends with this
  TimePoint ready_since;

  // The worker that has it in flight.
  enum class Draining : uint8_t { kNo, kForced, kFinish };
  Draining draining = Draining::kNo;  // silence is heard, nothing is taken from the inbox
  bool tail_heard = false;            // that silence is in `features`
  FbankStream features;
  StreamingState caches;
  std::optional<TransducerState> transducer;
  CtcState ctc;
  uint64_t taken = 0;    // samples of the inbox since the start
  uint64_t origin = 0;   // sample at which the caches began
  uint64_t chunks = 0;   // since then
  double frame_ms = 40;  // of the network's output
  std::vector<int64_t> shown;
  bool showed = false;    // something of this utterance
  uint64_t empty = 0;     // chunks in a row after which it has no token
  bool told_end = false;  // the final was told ahead
};

}  // namespace headrace
