// Request: one inference request on its way through the server, together with the answer it will
// get. It is the unit of ownership: `RequestPtr` travels from room to room, and *whoever holds it
// answers it*. A RequestPtr that is dropped unanswered answers INTERNAL by itself, so every request
// is answered exactly once, whatever happens to its holder.
//
// Threads: one holder at a time. Only `cancel()`/`cancelled()` may be called by another thread (the
// I/O thread that owns the call, when the client leaves).
//
//   void Somewhere::submit(RequestPtr request) {
//     if (full()) return answer(std::move(request), Status::unavailable("..."));
//     queue_.push(std::move(request));
//   }
// ---------------------------------------------------------------------------------------------
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/status.h"
#include "core/model_spec.h"
#include "core/tensor.h"
#include "core/trace_context.h"

namespace headrace {

class Request;

// Why an answer is not simply that of the servable which the request was routed to.
enum class Trigger : uint8_t {
  kNone = 0,
  kInvalidInput,
  kLowConfidence,
  kError,
  kOverload,  // refused: too much to do
  kCircuitOpen,
  kDeadline,  // nearer than the model's p95, or the attempt was given up
  kDrift,     // the control plane says that the inputs are no longer those of the training
};
inline constexpr std::size_t kTriggers = 8;
// As the response parameter `hr.fallback`, metrics and policies name it.
std::string_view trigger_name(Trigger trigger);
std::optional<Trigger> trigger_named(std::string_view name);

// Deleter of RequestPtr: answers INTERNAL when nobody answered; otherwise gives the memory back to
// the Completion that made it.
struct ReleaseRequest {
  void operator()(Request* request) const noexcept;
};
using RequestPtr = std::unique_ptr<Request, ReleaseRequest>;

// Where an answered request goes: the I/O thread that owns its call, or a waiting caller. It must
// outlive every request it was given to.
class Completion {
 public:
  virtual ~Completion() = default;
  // `request->response` is set. Called exactly once a request, from any thread; must not block.
  virtual void complete(RequestPtr request) noexcept = 0;
  // Memory of a request that was answered and is no longer needed. Any thread.
  virtual void release(Request* request) noexcept;  // default: delete
};

struct InputTensor {
  std::string_view name;
  TensorView tensor;
};

struct RequestedOutput {
  std::string_view name;
  int64_t classification = 0;  // > 0: the top-k classes as BYTES instead of the tensor
};

// A user's parameter, handed on as it came (the server gives it no meaning).
struct Parameter {
  std::string_view key;
  std::variant<bool, int64_t, uint64_t, double, std::string_view> value;
};

struct OutputTensor {
  std::string_view name;  // into the ModelSpec
  TensorView tensor;
  BufferRef owner;  // keeps tensor.data alive
};

struct Response {
  Status status;
  std::string_view model_name;     // into the ModelSpec
  std::string_view model_version;  // into the ModelSpec
  std::vector<OutputTensor> outputs;
  bool circuit_open = false;  // refused by a circuit breaker, no model saw it

  void clear() {
    status = Status();
    circuit_open = false;
    model_name = model_version = {};
    outputs.clear();
  }
};

// Stamps of a request's way; statistics are differences of these (queue = queued -> batched,
// compute input = batched -> input_done, infer = input_done -> infer_done, output = infer_done -> done).
struct RequestTimes {
  TimePoint arrived;  // the message was complete
  TimePoint queued;
  TimePoint batched;  // an instance took it
  TimePoint input_done;
  TimePoint infer_done;
  TimePoint done;
  // When it should be batched, as estimated when it was queued; the epoch: not estimated.
  TimePoint expected;
};

// A stop on the way of an answer, which somebody between the server's front and the model asked for.
struct Detour {
  Completion* next = nullptr;         // where the answer would have gone
  std::shared_ptr<const void> owner;  // keeps who asked for it
  std::size_t step = 0;               // whose meaning is the owner's
};

// Who made a request on behalf of another, and may lose interest in its answer.
class Interest {
 public:
  // Any thread; must not block for longer than a short lock.
  virtual bool over() const noexcept = 0;

 protected:
  ~Interest() = default;
};

class Request {
 public:
  explicit Request(Completion& completion) : completion_(&completion) {}
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  // --- what the client asked; views into `message` ---
  BufferRef message;
  std::string_view model_name;
  std::string_view model_version;  // empty: the default version
  std::string_view id;
  std::vector<InputTensor> inputs;
  std::vector<RequestedOutput> outputs;  // empty: all
  std::vector<Parameter> parameters;
  uint64_t priority = 0;               // 0 = default, 1 = highest
  std::optional<Nanoseconds> timeout;  // the `timeout` parameter: how long it may queue
  TimePoint deadline = kNever;         // the call's own (grpc-timeout)
  // Bytes that typed contents were converted into, for inputs that did not come raw.
  BufferRef converted;

  // --- set by the model version that checked it ---
  std::shared_ptr<const ModelSpec> spec;  // response views point into it
  // inputs[input_of[i]] is the model's input i; kAbsent for an optional one that was left out.
  static constexpr uint32_t kAbsent = UINT32_MAX;
  std::vector<uint32_t> input_of;
  int64_t rows = 1;  // its share of a batch: dim 0, or 1 when the model does not batch
  RequestTimes times;
  int64_t batch_rows = 0;  // of the batch that answered it; 0: none did

  // --- set by routing ---
  std::shared_ptr<const std::string> arm;            // which of a split's arms it was; null: none
  std::shared_ptr<const std::string> fallback_from;  // who failed to answer it; null: nobody
  std::shared_ptr<const std::string> answered_by;    // who did in their place; null: the first
  Trigger trigger = Trigger::kNone;                  // why the first answer was not good enough
  std::optional<float> confidence;                   // of the answer, where a policy looks at it
  bool doubtful = false;                             // the best answer there is, not good enough
  std::string ticket;                                // a person's; empty: none
  uint32_t chain_depth = 0;                          // how many fallback chains it is in

  // --- the answer ---
  Response response;

  // --- for its Completion: which call this is ---
  uint64_t call_id = 0;
  void* call = nullptr;
  std::unique_ptr<TraceContext> trace;  // null: it is not traced

  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const {
    return cancelled_.load(std::memory_order_relaxed) ||
           (interest_ != nullptr && interest_->over());
  }
  // Whoever made it for another request; lives as long as its Completion.
  void made_for(const Interest& interest) { interest_ = &interest; }

  // For who holds it: the answer comes to `via` first, which ends the detour and answers again, or
  // reopens the request and gives it to another servable. `owner` keeps `via` until then.
  void begin_detour(Completion& via, std::shared_ptr<const void> owner);
  Detour& detour() { return detours_.back(); }
  std::shared_ptr<const void> end_detour();
  // As if it had never been answered.
  void reopen();

  // Empties everything but the capacity of its vectors, for reuse by the Completion.
  void reset();

 private:
  friend struct ReleaseRequest;
  friend void answer(RequestPtr request) noexcept;

  Completion* completion_;
  const Interest* interest_ = nullptr;  // null: its own
  std::vector<Detour> detours_;
  std::atomic<bool> cancelled_{false};
  bool answered_ = false;
};

// Sends `request->response`, which the caller has filled.
void answer(RequestPtr request) noexcept;
// Sends an error.
void answer(RequestPtr request, Status status) noexcept;

}  // namespace headrace
