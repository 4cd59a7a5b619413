// Servable: anything that can answer a Request: a model version, a pipeline, a fallback chain, a
// cache in front of one of them. The door between the wire tower and the model tower.
#pragma once

#include <span>
#include <utility>

#include "core/model_spec.h"
#include "core/request.h"

namespace headrace {

class Servable {
 public:
  virtual ~Servable() = default;
  // Takes the request and answers it, now or later, exactly once. Called on an I/O thread: must not
  // block. Any thread.
  virtual void submit(RequestPtr request) = 0;
  // Takes requests that arrived together, each as submit() does; all are taken. May execute a short
  // model on the calling thread before it returns.
  virtual void submit_together(std::span<RequestPtr> requests) {
    for (RequestPtr& request : requests) submit(std::move(request));
  }
  virtual const ModelSpec& spec() const = 0;
  // Whether requests have a chance: false while everything that could run one is being rebuilt. Any
  // thread; does not block.
  virtual bool ready() const noexcept { return true; }
  // A request that it was given was not answered in time; its answer is of no use any more. Any
  // thread.
  virtual void gave_up() noexcept {}
};

}  // namespace headrace
