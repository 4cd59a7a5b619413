// Servable: anything that can answer a Request: a model version, a pipeline, a fallback chain, a
// cache in front of one of them. The door between the wire tower and the model tower.
#pragma once

#include "core/model_spec.h"
#include "core/request.h"

namespace headrace {

class Servable {
 public:
  virtual ~Servable() = default;
  // Takes the request and answers it, now or later, exactly once. Called on an I/O thread: must not
  // block. Any thread.
  virtual void submit(RequestPtr request) = 0;
  virtual const ModelSpec& spec() const = 0;
};

}  // namespace headrace
