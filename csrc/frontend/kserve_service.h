// KServeService: the RPCs of KServe v2 that are answered in C++ (ModelInfer, ModelStreamInfer and the probes), for one
// event loop. It turns a call into a Request, finds its Servable, and encodes the answer when the
// Request comes back.
//
// Threads: belongs to its loop's thread; complete() is called by any (a Request is answered on an
// instance thread and crosses back here).
// Invariants: a Request's memory returns to this pool before it is used again, so the raw pointer that a
// call keeps for cancellation is valid as long as the call waits.
// ---------------------------------------------------------------------------------------------
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/request.h"
#include "frontend/server_state.h"
#include "rpc/call.h"
#include "transport/event_loop.h"

namespace headrace {

class HealthWatch;

class KServeService final : public Completion, public EventLoop::Inbox, public EventLoop::TurnEnd {
 public:
  KServeService(EventLoop& loop, CallSet& calls, ServerState& state);
  ~KServeService() override;

  // Adds its methods (and grpc.health.v1's) to the loop's table.
  void add_to(MethodTable& methods, std::size_t max_message_bytes);

  // Looks at the newest snapshots, so that this loop lets go of old ones and health's watchers are told.
  void refresh();
  // The server stops: ends the streams that would never end (Health/Watch).
  void end_watches(const Status& status);

  // Requests that have not come back yet, and threads that are still bringing one: at 0 nobody but
  // the loop uses this any more.
  std::size_t outstanding() const {
    const std::size_t requests = outstanding_.load(std::memory_order_acquire);
    return requests + completing_.load(std::memory_order_acquire);
  }
  // Calls of its own that are open and may have nothing to do. The loop's thread.
  std::size_t open_streams() const;
  // From the loop's thread, before it serves.
  void start();

  void complete(RequestPtr request) noexcept override;
  void release(Request* request) noexcept override;
  void on_wake() override;
  void on_turn_end() override;

 private:
  class InferHandler;
  class InferStreamHandler;
  class ProbeHandler;

  RequestPtr make_request(const Call& call);
  // Decodes the message, finds its model, and hands the request over; or answers it with `refusal`. Not OK,
  // and `request` kept: the bytes are no ModelInferRequest.
  Status submit(const Call& call, RequestPtr& request, BufferRef message, Status refusal = {});
  void infer(Call& call, BufferRef message);
  // Has it submitted with others of this turn.
  void enqueue(std::shared_ptr<Servable> servable, RequestPtr request);
  // Hands `together_` to its servable.
  void submit_together();
  void respond(RequestPtr request);
  Request* allocate();

  EventLoop& loop_;
  CallSet& calls_;
  ServerState& state_;
  SnapshotReader<RouteTable> routes_;
  SnapshotReader<HealthTable> health_;
  std::vector<std::unique_ptr<Handler>> handlers_;
  InferStreamHandler* streams_ = nullptr;  // one of handlers_
  HealthWatch* health_watch_ = nullptr;    // one of handlers_
  std::size_t open_streams_ = 0;
  std::thread::id thread_;
  std::vector<std::unique_ptr<Request>> pool_;
  std::atomic<std::size_t> outstanding_{0};
  std::atomic<std::size_t> completing_{0};
  std::string scratch_;
  std::vector<BodyPiece> pieces_;
  std::vector<RequestPtr> answered_;  // of this turn

  // Requests of this turn, all for one servable: they cost one lock and one wake-up together.
  std::vector<RequestPtr> together_;
  std::shared_ptr<Servable> servable_;
  std::vector<RequestPtr> submitted_;  // in submit_together()
  bool submitting_ = false;
  bool turn_end_requested_ = false;

  std::mutex mutex_;
  std::vector<RequestPtr> inbox_;  // guarded by mutex_
};

}  // namespace headrace
