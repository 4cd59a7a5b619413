#include "frontend/kserve_service.h"

#include <utility>

#include "frontend/health_watch.h"
#include "frontend/infer_codec.h"
#include "frontend/infer_stream.h"
#include "frontend/probe_codec.h"
#include "frontend/rpc_rights.h"

namespace headrace {
namespace {

// Requests kept for reuse a loop; more than this in flight are allocated and freed.
constexpr std::size_t kPoolSize = 4096;

// Requests are submitted at the end of the turn, or once so many have come, or at once when reading
// the rest of the turn could take long.
constexpr std::size_t kMostTogether = 64;
constexpr std::size_t kLargeBytes = 64 * 1024;

}  // namespace

class KServeService::InferHandler final : public Handler {
 public:
  explicit InferHandler(KServeService& service) : service_(service) {}
  void on_unary(Call& call, BufferRef message) override {
    service_.infer(call, std::move(message));
  }
  void on_cancel(Call& call) override { static_cast<Request*>(call.context)->cancel(); }

 private:
  KServeService& service_;
};

// A method that is answered at once.
class KServeService::ProbeHandler final : public Handler {
 public:
  using Answer = std::function<void(Call&, std::string_view message)>;
  explicit ProbeHandler(Answer answer) : answer_(std::move(answer)) {}
  void on_unary(Call& call, BufferRef message) override { answer_(call, message.view()); }
  void on_cancel(Call&) override {}

 private:
  const Answer answer_;
};

KServeService::KServeService(EventLoop& loop, CallSet& calls, ServerState& state)
    : loop_(loop), calls_(calls), state_(state), routes_(state.routes), health_(state.health) {
  loop_.add_inbox(*this);
}

KServeService::~KServeService() = default;

void KServeService::start() { thread_ = std::this_thread::get_id(); }

void KServeService::refresh() {
  submit_together();  // they hold the servable they were routed to
  routes_.get();
  health_.get();
  if (health_watch_ != nullptr) health_watch_->refresh();
}

std::size_t KServeService::open_streams() const {
  return open_streams_ + (health_watch_ != nullptr ? health_watch_->watchers() : 0);
}

void KServeService::end_watches(const Status& status) {
  if (health_watch_ != nullptr) health_watch_->end_all(status);
}

void KServeService::add_to(MethodTable& methods, std::size_t max_message_bytes) {
  const auto add = [&](std::string path, std::unique_ptr<Handler> handler, std::size_t limit,
                       MethodKind kind = MethodKind::kUnary) {
    const Right right = right_of_rpc(path);
    methods.add(std::move(path), {handler.get(), limit, kind, right});
    handlers_.push_back(std::move(handler));
  };
  constexpr std::size_t kProbeBytes = 64 * 1024;
  const std::string service = "/inference.GRPCInferenceService/";
  add(service + "ModelInfer", std::make_unique<InferHandler>(*this), max_message_bytes);
  auto streams = std::make_unique<InferStreamHandler>(*this);
  streams_ = streams.get();
  add(service + "ModelStreamInfer", std::move(streams), max_message_bytes,
      MethodKind::kBidiStreaming);
  // A server that answers at all is live.
  add(service + "ServerLive",
      std::make_unique<ProbeHandler>([](Call& call, std::string_view) { respond_number(call, 1); }),
      kProbeBytes);
  add(service + "ServerReady", std::make_unique<ProbeHandler>([this](Call& call, std::string_view) {
        respond_number(call, state_.ready.load(std::memory_order_acquire) ? 1 : 0);
      }),
      kProbeBytes);
  add(service + "ModelReady",
      std::make_unique<ProbeHandler>([this](Call& call, std::string_view message) {
        const Result<NameAndVersion> wanted = decode_name_and_version(message);
        if (!wanted) return call.fail(wanted.error());
        const auto found = routes_.get().find(wanted->name, wanted->version);
        // Triton answers OK, false for an unknown model; only a malformed version is an error.
        if (!found && found.error().code() == StatusCode::kInvalidArgument) {
          return call.fail(found.error());
        }
        respond_number(call, found && (*found)->ready() ? 1 : 0);
      }),
      kProbeBytes);
  add("/grpc.health.v1.Health/Check",
      std::make_unique<ProbeHandler>([this](Call& call, std::string_view message) {
        const Result<NameAndVersion> wanted = decode_name_and_version(message);
        if (!wanted) return call.fail(wanted.error());
        const ServingStatus status = serving_status(health_.get(), wanted->name);
        if (status == ServingStatus::kServiceUnknown) {
          return call.fail(Status::not_found("unknown service"));
        }
        respond_number(call, static_cast<uint32_t>(status));
      }),
      kProbeBytes);
  auto watch = std::make_unique<HealthWatch>(calls_, state_.health);
  health_watch_ = watch.get();
  add("/grpc.health.v1.Health/Watch", std::move(watch), HealthWatch::kMaxRequestBytes,
      MethodKind::kServerStreaming);
}

Request* KServeService::allocate() {
  outstanding_.fetch_add(1, std::memory_order_relaxed);
  if (pool_.empty()) return new Request(*this);
  Request* request = pool_.back().release();
  pool_.pop_back();
  return request;
}

void KServeService::release(Request* request) noexcept {
  // Always on the loop's thread (or after it ended): answered requests end in respond().
  request->reset();
  if (pool_.size() < kPoolSize) {
    pool_.emplace_back(request);
  } else {
    delete request;
  }
  outstanding_.fetch_sub(1, std::memory_order_release);
}

RequestPtr KServeService::make_request(const Call& call) {
  RequestPtr request(allocate());
  request->call_id = call.id();
  request->times.arrived = loop_.now();
  request->deadline = call.deadline();
  return request;
}

Status KServeService::submit(const Call& call, RequestPtr& request, BufferRef message,
                             Status refusal) {
  Status status = decode_infer_request(std::move(message), *request);
  if (status.code() == StatusCode::kInternal) return status;
  if (state_.tracing.on()) {
    request->trace = state_.tracing.begin(call.find_metadata("traceparent"), request->id);
  }
  if (!refusal.ok()) {
    answer(std::move(request), std::move(refusal));
    return {};
  }
  // As in Triton, an unknown model is told before what is wrong with its request.
  Result<Route> route = routes_.get().route(*request);
  if (!route) {
    answer(std::move(request), route.error());
  } else if (!status.ok()) {
    answer(std::move(request), std::move(status));
  } else {
    request->arm = std::move(route->arm);
    enqueue(std::move(route->servable), std::move(request));
  }
  return {};
}

void KServeService::infer(Call& call, BufferRef message) {
  RequestPtr request = make_request(call);
  call.context = request.get();
  Status status = submit(call, request, std::move(message));
  if (!status.ok()) answer(std::move(request), std::move(status));
}

void KServeService::enqueue(std::shared_ptr<Servable> servable, RequestPtr request) {
  if (!together_.empty() && servable_ != servable) {
    // Answers of a stream may bring its next requests, in the middle of submit_together().
    if (submitting_) return servable->submit(std::move(request));
    submit_together();
  }
  const bool large = request->message.size() >= kLargeBytes;
  together_.push_back(std::move(request));
  servable_ = std::move(servable);
  if ((together_.size() >= kMostTogether || large) && !submitting_) return submit_together();
  if (!turn_end_requested_) {
    turn_end_requested_ = true;
    loop_.at_turn_end(*this);
  }
}

void KServeService::submit_together() {
  if (together_.empty()) return;
  const std::shared_ptr<Servable> servable = std::move(servable_);
  servable_.reset();
  submitting_ = true;
  submitted_.swap(together_);
  servable->submit_together(submitted_);
  submitted_.clear();
  submitting_ = false;
}

void KServeService::on_turn_end() {
  turn_end_requested_ = false;
  submit_together();
}

void KServeService::complete(RequestPtr request) noexcept {
  if (std::this_thread::get_id() == thread_) return respond(std::move(request));
  // Once it is in the inbox, the loop may answer it and end: not before this thread is done with it.
  completing_.fetch_add(1, std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(request));
  }
  loop_.wake();
  completing_.fetch_sub(1, std::memory_order_release);
}

void KServeService::on_wake() {
  {
    const std::lock_guard lock(mutex_);
    answered_.swap(inbox_);
  }
  for (RequestPtr& request : answered_) respond(std::move(request));
  answered_.clear();
}

void KServeService::respond(RequestPtr request) {
  if (request->trace) state_.tracing.record(*request, Clock::now());
  Call* call = calls_.find(request->call_id);
  if (call == nullptr) return;  // the client is gone
  if (request->call != nullptr) return streams_->answered(*call, std::move(request));
  if (!request->response.status.ok()) return call->fail(request->response.status);
  call->respond(encode_infer_response(*request, Call::kPrefixBytes, scratch_, pieces_), pieces_);
}

}  // namespace headrace
