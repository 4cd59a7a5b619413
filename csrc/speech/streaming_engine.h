// StreamingEngine: a SpeechRecognizer of the streaming family: networks that hear chunk by chunk (StreamingNetwork)
// and say tokens as they go, a transducer's or CTC's.
//
//   Result<std::shared_ptr<SpeechRecognizer>> recognizer = make_streaming_engine(options, networks, tokens);
//
// Threads of its own: options.threads workers. Nothing wakes for a stream without a whole chunk of new audio.
// ---------------------------------------------------------------------------------------------
// A worker takes the chunks of streams that wait (the longest waiting first, whole files last) and runs them as one
// batch; a stream has one chunk in flight at most, so that its tokens come in order. Utterances end after
// stop_history of frames without a token, looked at after each chunk. At the end of a stream, or when its
// speaker is said to have finished, silence is heard until all audio is behind the network's view; a stream
// that goes on then begins anew.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/status.h"
#include "speech/fbank.h"
#include "speech/recognizer.h"
#include "speech/streaming_network.h"
#include "speech/token_table.h"
#include "speech/transducer_decoder.h"

namespace headrace {

struct StreamingEngineOptions {
  SpeechModelInfo info{};
  Fbank::Kind features = Fbank::Kind::kKaldi;
  uint32_t threads = 1;
  std::size_t max_streams = 1024;
  std::size_t max_batch = 8;        // chunks a run
  std::size_t paths = 1;            // hypotheses of a transducer; 1: greedy
  std::size_t phrase_paths = 4;     // at least, of requests that prefer phrases
  uint32_t stop_ms = 320;           // without a token, that end an utterance
  uint32_t stop_offline_ms = 1200;  // in whole files
  uint32_t eou_ms = 0;              // after which the final is told ahead; 0: only when asked for
  uint32_t max_utterance_ms = 20'000;
  uint32_t tail_ms = 800;  // silence heard after the end
  // Streams are refused while chunks wait longer than this for a worker.
  Milliseconds max_wait{1000};
  double max_backlog_s = 30;  // of one stream, before it is full
  // No more streams than those whose caches fit.
  uint64_t max_cache_bytes = uint64_t{8} << 30;
  bool low_priority = false;  // warm-up leaves the processors to whoever serves
};

struct StreamingNetworks {
  std::shared_ptr<const StreamingNetwork> encoder;
  std::shared_ptr<const TransducerNetwork> transducer;  // null: the encoder's output is CTC's
  int64_t blank = 0;                                    // of CTC
};

// Blocks until every worker's networks have run with silence. INVALID_ARGUMENT or FAILED_PRECONDITION for networks that
// do not fit each other: "NETWORK: why".
Result<std::shared_ptr<SpeechRecognizer>> make_streaming_engine(StreamingEngineOptions options,
                                                                StreamingNetworks networks,
                                                                TokenTable tokens);

}  // namespace headrace
