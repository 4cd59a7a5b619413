// Fallback: a servable that has others to turn to. A request that the first one fails is given to
// the next, and so on; the client sees an error only when the last one fails too.
//
// What is passed on: every error but CANCELLED and DEADLINE_EXCEEDED, after which nobody waits any
// more. A request whose inputs are wrong is told so by the last of the chain.
// The request's response says who answered: its model and version are that servable's, and
// `fallback_from` names the first one.
// Threads: any; a request is passed on by the thread that answered it, through submit(), which
// queues. No lock, no allocation but the first detour of a pooled request.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/request.h"
#include "core/servable.h"

namespace headrace {

class Fallback final : public Servable,
                       public Completion,
                       public std::enable_shared_from_this<Fallback> {
 public:
  // At least one servable, none null. `name`: of the first, for `fallback_from`.
  static std::shared_ptr<Fallback> make(std::vector<std::shared_ptr<Servable>> chain,
                                        std::string name);

  void submit(RequestPtr request) override;
  void submit_together(std::span<RequestPtr> requests) override;
  const ModelSpec& spec() const override { return chain_.front()->spec(); }
  // Whether anybody of the chain is.
  bool ready() const noexcept override;
  // The first one's, which has the request first.
  void gave_up() noexcept override { chain_.front()->gave_up(); }

  // A servable of the chain has answered.
  void complete(RequestPtr request) noexcept override;

 private:
  Fallback(std::vector<std::shared_ptr<Servable>> chain, std::string name)
      : chain_(std::move(chain)), name_(std::make_shared<const std::string>(std::move(name))) {}

  const std::vector<std::shared_ptr<Servable>> chain_;
  const std::shared_ptr<const std::string> name_;
};

}  // namespace headrace
