#include "bindings/python_pool.h"

#include <pthread.h>

#include <cstring>
#include <utility>

#include "bindings/python_status.h"

namespace py = pybind11;

namespace headrace {
namespace {

constexpr std::size_t kQueueBound = 4096;
// A worker gives the GIL back after this many jobs.
constexpr std::size_t kJobsPerHold = 64;

PythonReply run_job(const PythonJob& job) {
  PythonReply reply{job.call_id, Status(), BufferRef(), job.info};
  try {
    const py::bytes request(reinterpret_cast<const char*>(job.message.data()), job.message.size());
    const py::object answer = (*job.handler)(request, job.info);
    const std::string_view bytes = py::bytes(answer);
    reply.message = BufferRef::allocate(Call::kPrefixBytes + bytes.size());
    std::memcpy(reply.message.data() + Call::kPrefixBytes, bytes.data(), bytes.size());
  } catch (const py::error_already_set& error) {
    // grpcio's text for a handler that raised.
    reply.status = status_of_exception(error, StatusCode::kUnknown, "Exception calling application: ");
  } catch (const std::exception& error) {
    reply.status = {StatusCode::kUnknown, std::string("Exception calling application: ") + error.what()};
  }
  return reply;
}

}  // namespace

PythonReplies::PythonReplies(EventLoop& loop, CallSet& calls) : loop_(loop), calls_(calls) {
  loop_.add_inbox(*this);
}

void PythonReplies::post(PythonReply reply) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(reply));
  }
  loop_.wake();
}

void PythonReplies::on_wake() {
  std::vector<PythonReply> replies;
  {
    const std::lock_guard lock(mutex_);
    if (inbox_.empty()) return;
    replies.swap(inbox_);
  }
  std::vector<BodyPiece> rest;
  for (PythonReply& reply : replies) {
    Call* call = calls_.find(reply.call_id);
    if (call == nullptr) continue;  // the client is gone
    const CallInfo& info = *reply.info;
    if (reply.status.ok()) {
      call->respond(std::move(reply.message), rest, &info.initial_metadata, &info.trailing_metadata);
    } else {
      call->fail(reply.status, &info.trailing_metadata);
    }
  }
}

PythonPool::PythonPool(std::size_t threads, std::string name)
    : size_(threads), name_(std::move(name)) {}

PythonPool::~PythonPool() { stop(); }

bool PythonPool::submit(PythonJob job) {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || jobs_.size() >= kQueueBound) return false;
    jobs_.push_back(std::move(job));
    // A thread at a time, while there is more work than threads: most servers need one.
    if (threads_.size() < size_ && jobs_.size() > threads_.size()) {
      threads_.emplace_back([this] { run(); });
    }
  }
  changed_.notify_one();
  return true;
}

void PythonPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void PythonPool::run() {
  ::pthread_setname_np(::pthread_self(), name_.c_str());
  std::vector<PythonJob> taken;
  std::vector<PythonReply> replies;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      // A share of what waits: the others' handlers may block.
      const std::size_t share = (jobs_.size() + threads_.size() - 1) / threads_.size();
      while (!jobs_.empty() && taken.size() < std::min(share, kJobsPerHold)) {
        taken.push_back(std::move(jobs_.front()));
        jobs_.pop_front();
      }
    }
    {
      const py::gil_scoped_acquire gil;
      for (const PythonJob& job : taken) {
        if (job.info->cancelled.load(std::memory_order_relaxed)) continue;
        PythonReply reply = run_job(job);
        job.replies->post(std::move(reply));
      }
    }
    taken.clear();
  }
}

void PythonHandler::on_unary(Call& call, BufferRef message) {
  auto info = std::make_shared<CallInfo>();
  info->method = call.path();
  info->peer = call.peer();
  info->metadata = call.metadata();
  info->deadline = call.deadline();
  // Valid as long as the call waits: the job, then its reply, holds the CallInfo.
  call.context = info.get();
  const uint64_t id = call.id();
  if (!pool_.submit({&handler_, std::move(message), std::move(info), id, replies_})) {
    call.fail(Status::unavailable("the server's Python handlers are busy; try again"));
  }
}

void PythonHandler::on_cancel(Call& call) {
  static_cast<CallInfo*>(call.context)->cancelled.store(true, std::memory_order_relaxed);
}

}  // namespace headrace
