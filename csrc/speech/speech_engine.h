// SpeechEngine: a SpeechRecognizer of the segment family (SegmentNetwork behind a voice activity network).
//
//   Result<std::shared_ptr<SpeechRecognizer>> recognizer =
//       make_speech_engine(options, network, vad, std::move(tokens));
//
// Threads of its own: one hears (voice activity of all streams in one run, cuts them into segments), options.threads
// decode. Nothing wakes for a stream that is silent on the wire.
// ---------------------------------------------------------------------------------------------
// A stream has at most one job in flight; finals go first, then the first partial of a segment, then partials,
// then whole files; among equals the one that is due first. A newer partial takes the place of one that waits.
// A worker that is decoding takes in a further job between two steps when all workers are busy and the job is as
// urgent: from there on both share the steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "backends/backend.h"
#include "base/clock.h"
#include "base/status.h"
#include "speech/recognizer.h"
#include "speech/segment_network.h"
#include "speech/segmenter.h"
#include "speech/token_table.h"

namespace headrace {

struct SpeechEngineOptions {
  SpeechModelInfo info{};
  uint32_t threads = 1;  // that decode
  SegmenterOptions streaming{};
  // Of whole files: no partials, longer segments.
  SegmenterOptions offline = {
      .stop_window = 19, .eou_window = 0, .partial_interval = 0, .soft_cut = 310, .hard_cut = 620};
  std::size_t max_streams = 1024;
  std::size_t max_batch = 4;  // segments that a worker decodes at once
  // Streams are refused while finals wait longer than this for a worker.
  Milliseconds max_wait{1000};
  double max_backlog_s = 30;  // of one stream, before it is full
  // Segments as long as this, decoded alone, meet no shape that is new to the networks; batches may.
  float warm_seconds = 6;
  bool low_priority = false;  // warm-up leaves the processors to whoever serves
};

// `vad` is run by one thread, the network by options.threads.
Result<std::shared_ptr<SpeechRecognizer>> make_speech_engine(
    SpeechEngineOptions options, std::shared_ptr<const SegmentNetwork> network,
    std::shared_ptr<Model> vad, TokenTable tokens);

}  // namespace headrace
