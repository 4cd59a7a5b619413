// HumanDesk: where a fallback chain takes what a person is to decide. A Case is one request on its way
// to a person; the desk files it (gives it a ticket that will not be lost), refuses it, or brings the
// person's answer.
//
// Threads: any. Nothing here blocks: a desk hands cases to whoever files them.
// Invariant: a case may be dropped at any moment; its request goes on without it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "core/request.h"

namespace headrace {

// What the chain wants to hear of a case. Every call any thread; calls that come too late, or again,
// do nothing.
class CaseListener {
 public:
  virtual void filed(std::string ticket) noexcept = 0;
  virtual void refused(Status why) noexcept = 0;
  // What the person decided: outputs that check_decision() took.
  virtual void resolved(std::vector<OutputTensor> outputs) noexcept = 0;

 protected:
  ~CaseListener() = default;
};

struct Case {
  std::string queue;
  std::string model;    // as the client named it
  std::string version;  // of the model that the chain is for
  std::string request_id;
  Trigger trigger = Trigger::kNone;
  std::optional<float> confidence;
  int64_t rows = 1;     // what the decision's batch dimension is to be
  Nanoseconds wait{0};  // how long somebody waits for the decision
  // Empty unless the policy lets the request's contents be kept.
  std::vector<InputTensor> inputs;       // views into `message` and `converted`
  std::vector<OutputTensor> suggestion;  // the best answer so far
  BufferRef message;
  BufferRef converted;
  std::shared_ptr<const ModelSpec> spec;             // of the model that the chain is for
  std::shared_ptr<const ModelSpec> suggestion_spec;  // suggestion's names point into it
  std::shared_ptr<CaseListener> listener;
};

// Whether the outputs are an answer of the model to a request of `rows` rows: every output of the
// signature, once, with its datatype and shape. Puts them in the signature's order, their names into
// `spec`. Errors: INVALID_ARGUMENT naming the output.
Status check_decision(const ModelSpec& spec, int64_t rows, std::vector<OutputTensor>& outputs);

class HumanDesk {
 public:
  virtual ~HumanDesk() = default;
  // False: it takes no more now.
  virtual bool take(std::shared_ptr<Case> taken) noexcept = 0;
};

}  // namespace headrace
