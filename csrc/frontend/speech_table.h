// SpeechTable: which recognisers there are, and which one a client means. Published whole by the control
// plane; a stream keeps the recogniser that it began with.
//
// Threads: immutable.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "speech/recognizer.h"

namespace headrace {

struct SpeechTable {
  using Models = std::map<std::string, std::shared_ptr<SpeechRecognizer>, std::less<>>;

  SpeechTable() = default;
  explicit SpeechTable(Models m) : models(std::move(m)) {}

  // By name; without one by language ("en-US"; a model of another region will do, if there is no better),
  // and without that the first. `offline`: for a whole file; otherwise for a stream.
  // Errors: NOT_FOUND, naming what there is; UNIMPLEMENTED for a model that does the other only.
  Result<std::shared_ptr<SpeechRecognizer>> choose(std::string_view model,
                                                   std::string_view language_code,
                                                   bool offline) const;
  // "a, b"
  std::string names() const;

  Models models;
};

}  // namespace headrace
