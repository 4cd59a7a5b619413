// What a recogniser has done so far, for metrics. Counters only grow.
#pragma once

#include <cstdint>

#include "base/histogram.h"

namespace headrace {

struct SpeechStatistics {
  uint64_t open_streams = 0;  // now
  uint64_t streams_started = 0;
  uint64_t streams_refused = 0;
  uint64_t finals = 0;
  uint64_t partials = 0;
  uint64_t partials_dropped = 0;  // a newer one came before they had been computed
  uint64_t decoder_steps = 0;     // runs of the decoder for one more token
  uint64_t decoder_tokens = 0;    // tokens these gave: over decoder_steps, the mean batch
  double audio_seconds = 0;       // heard
  double busy_seconds = 0;  // spent by workers on it; over audio_seconds, the real-time factor
  Histogram::Values final_latency_ns;  // from the end of speech (its arrival) to its final
  Histogram::Values partial_lag_ns;    // from the arrival of the last audio in it to the partial
};

}  // namespace headrace
