// SpeechServable: a speech model as KServe's RPCs see it: it is listed and ready, but a tensor is no way to
// talk to it.
//
// Threads: immutable.
#pragma once

#include <string>
#include <utility>

#include "core/servable.h"

namespace headrace {

class SpeechServable final : public Servable {
 public:
  SpeechServable(std::string model, int64_t version) {
    spec_.name = std::move(model);
    spec_.version = version;
    spec_.version_text = std::to_string(version);
  }

  void submit(RequestPtr request) override {
    answer(std::move(request),
           Status::unimplemented("model '" + spec_.name +
                                 "' recognises speech: use nvidia.riva.asr.RivaSpeechRecognition, "
                                 "as nvidia-riva-client does"));
  }
  const ModelSpec& spec() const override { return spec_; }

 private:
  ModelSpec spec_;
};

}  // namespace headrace
