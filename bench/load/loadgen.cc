// headrace_loadgen: drives one gRPC unary method; reports throughput, latency, the server's CPU.
//
// Closed loop: a fixed number of calls in flight; an answer starts the next call. Open loop: calls
// start on a schedule whatever the server does, and latency counts from the scheduled time, so a
// stall is charged to every call it delayed (no coordinated omission).
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "connection.h"
#include "log_histogram.h"
#include "options.h"
#include "process_usage.h"
#include "step_stats.h"

namespace loadgen {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kLate = 1'000'000;  // an arrival sent this much after its time counts as late
constexpr double kBurst = 8;          // arrivals of a burst, on average
constexpr int kMaxReopens = 100;

int64_t to_ns(double seconds) { return static_cast<int64_t>(seconds * 1e9); }

double own_cpu_s() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

class LoadGenerator final : public Caller {
 public:
  explicit LoadGenerator(const Options& options)
      : options_(options), random_(options.seed), open_loop_(options.rate > 0) {}
  ~LoadGenerator() override {
    if (timer_ >= 0) close(timer_);
    if (epoll_ >= 0) close(epoll_);
  }

  int run();

 private:
  enum class Phase { kWarmUp, kMeasure, kDrain, kDone };

  void answered(Connection& connection, int64_t start_ns, const std::string& error,
                const std::string& detail) override;
  bool reopen(Connection& connection);
  void watch(Connection& connection);
  void advance();
  void begin_measuring();
  void send_due();
  void wait();
  int64_t gap_ns();
  std::size_t outstanding() const;
  // Ends calls whose deadline has passed; answers when to look again.
  int64_t expire();
  // The step of the schedule that this time belongs to; null: none.
  StepStats* step_at(int64_t time_ns);
  void print() const;

  const Options& options_;
  std::mt19937_64 random_;
  const bool open_loop_;
  int epoll_ = -1;
  int timer_ = -1;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> touched_;  // have something to flush
  std::size_t turn_ = 0;
  int reopens_ = 0;
  bool failed_ = false;
  int burst_left_ = 0;

  Phase phase_ = Phase::kWarmUp;
  int64_t begin_ns_ = 0;  // of the measured window; planned until reached
  int64_t end_ns_ = 0;
  int64_t next_arrival_ns_ = 0;

  std::vector<StepStats> steps_;  // from begin_ns_ on
  LogHistogram latency_;
  std::map<std::string, uint64_t> errors_;
  std::string first_error_;
  uint64_t right_ = 0;  // right answers counted for throughput
  uint64_t wrong_ = 0;
  uint64_t answers_ = 0;  // all since the window began, for CPU per call
  uint64_t arrivals_ = 0;
  uint64_t dropped_ = 0;
  uint64_t late_ = 0;
  int64_t worst_lag_ns_ = 0;
  std::size_t unanswered_ = 0;
  ProcessUsage before_, after_;
  double own_before_ = 0, own_after_ = 0;
  double machine_before_ = 0, machine_after_ = 0;
  int64_t usage_begin_ns_ = 0, usage_end_ns_ = 0;
};

int LoadGenerator::run() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;
  if (epoll_ < 0 || timer_ < 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, timer_, &event) != 0) {
    std::fprintf(stderr, "headrace_loadgen: epoll: %s\n", std::strerror(errno));
    return 1;
  }
  for (int i = 0; i < options_.connections; ++i) {
    connections_.push_back(std::make_unique<Connection>(options_, *this));
    if (!reopen(*connections_.back())) return 1;
  }
  begin_ns_ = now_ns() + to_ns(options_.warm_up_s);
  end_ns_ = std::numeric_limits<int64_t>::max();
  next_arrival_ns_ = now_ns();
  if (!open_loop_) {
    for (auto& connection : connections_) {
      for (int i = 0; i < options_.streams; ++i) connection->submit(now_ns());
    }
  }
  for (auto& connection : connections_) {
    if (connection->flush()) watch(*connection);
  }
  while (phase_ != Phase::kDone && !failed_) {
    advance();
    if (open_loop_) send_due();
    if (phase_ != Phase::kDone) wait();
  }
  if (failed_) return 1;
  print();
  return 0;
}

bool LoadGenerator::reopen(Connection& connection) {
  std::string why;
  if (reopens_++ >= kMaxReopens + options_.connections) {
    why = "the server keeps closing connections";
  } else if (connection.open(why)) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = &connection;
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd(), &event) == 0) return true;
    why = std::strerror(errno);
  }
  std::fprintf(stderr, "headrace_loadgen: %s%s%s\n", why.c_str(),
               first_error_.empty() ? "" : "; first error: ", first_error_.c_str());
  failed_ = true;
  return false;
}

void LoadGenerator::watch(Connection& connection) {
  epoll_event event{};
  event.events = EPOLLIN;
  if (connection.wants_write()) event.events |= EPOLLOUT;
  event.data.ptr = &connection;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd(), &event);
}

void LoadGenerator::answered(Connection& connection, int64_t start_ns, const std::string& error,
                             const std::string& detail) {
  const int64_t now = now_ns();
  if (error.empty() && options_.slo_s > 0 && now - start_ns > to_ns(options_.slo_s)) {
    return answered(connection, start_ns, "late", detail);
  }
  if (!error.empty() && first_error_.empty()) {
    first_error_ = error + (detail.empty() ? "" : ": " + detail);
  }
  const bool began_in_window =
      phase_ != Phase::kWarmUp && start_ns >= begin_ns_ && start_ns < end_ns_;
  // Open loop: what arrived in the window counts, also when it is answered while draining. Closed
  // loop: throughput counts answers in the window; latency only calls that also began in it.
  const bool counts = open_loop_ ? began_in_window : phase_ == Phase::kMeasure;
  if (phase_ == Phase::kMeasure || phase_ == Phase::kDrain) ++answers_;
  if (StepStats* step = step_at(start_ns)) step->answered(start_ns, now, error);
  if (counts) {
    if (error.empty()) {
      ++right_;
      if (began_in_window) latency_.record(now - start_ns);
    } else {
      ++wrong_;
      ++errors_[error];
    }
  }
  const bool running = phase_ == Phase::kWarmUp || phase_ == Phase::kMeasure;
  if (!open_loop_ && running && connection.is_open()) connection.submit(now);
}

void LoadGenerator::begin_measuring() {
  // Reading /proc takes a moment in which we do not serve the sockets: the window begins after it.
  if (options_.server_pid != 0) before_ = read_process_usage(options_.server_pid);
  own_before_ = own_cpu_s();
  machine_before_ = read_machine_busy_s();
  begin_ns_ = now_ns();
  usage_begin_ns_ = begin_ns_;
  end_ns_ = begin_ns_ + to_ns(options_.duration_s);
  next_arrival_ns_ = std::max(next_arrival_ns_, begin_ns_);
  int64_t from = begin_ns_;
  for (const auto& [rate, seconds] : options_.steps) {
    StepStats& step = steps_.emplace_back();
    step.rate = rate;
    step.begin_ns = from;
    step.end_ns = from += to_ns(seconds);
  }
  phase_ = Phase::kMeasure;
}

StepStats* LoadGenerator::step_at(int64_t time_ns) {
  for (StepStats& step : steps_) {
    if (time_ns >= step.begin_ns && time_ns < step.end_ns) return &step;
  }
  return nullptr;
}

int64_t LoadGenerator::expire() {
  int64_t next = std::numeric_limits<int64_t>::max();
  if (options_.deadline_s <= 0) return next;
  const int64_t now = now_ns();
  for (auto& connection : connections_) {
    if (!connection->is_open()) continue;
    next = std::min(next, connection->expire(now));
    if (!connection->flush()) {
      if (!reopen(*connection)) return now;
    } else if (connection->wants_write()) {
      watch(*connection);
    }
  }
  return next;
}

void LoadGenerator::advance() {
  const int64_t now = now_ns();
  if (phase_ == Phase::kWarmUp && now >= begin_ns_) begin_measuring();
  if (phase_ == Phase::kMeasure) {
    const bool enough = options_.requests > 0 && right_ + wrong_ >= options_.requests;
    if (enough || (options_.requests == 0 && now >= end_ns_)) {
      if (!open_loop_) end_ns_ = now;
      phase_ = Phase::kDrain;
    }
  }
  if (phase_ == Phase::kDrain) {
    // The closed loop drains too, so that no server has to deal with calls cut off at the end.
    unanswered_ = outstanding();
    if (unanswered_ == 0 || now >= end_ns_ + to_ns(options_.drain_s)) {
      usage_end_ns_ = now_ns();
      own_after_ = own_cpu_s();
      machine_after_ = read_machine_busy_s();
      if (options_.server_pid != 0) after_ = read_process_usage(options_.server_pid);
      phase_ = Phase::kDone;
    }
  }
}

int64_t LoadGenerator::gap_ns() {
  const StepStats* step = step_at(next_arrival_ns_);
  const double rate = step == nullptr ? options_.rate : step->rate;
  if (options_.arrivals == Arrivals::kBursty) {
    if (burst_left_ > 0) {
      --burst_left_;
      return 0;
    }
    burst_left_ = std::geometric_distribution<int>(1 / kBurst)(random_);
    return to_ns(std::exponential_distribution<double>(rate / kBurst)(random_));
  }
  if (options_.arrivals == Arrivals::kConstant) return to_ns(1.0 / rate);
  return to_ns(std::exponential_distribution<double>(rate)(random_));
}

void LoadGenerator::send_due() {
  if (phase_ != Phase::kWarmUp && phase_ != Phase::kMeasure) return;
  touched_.clear();
  std::size_t waiting = outstanding();
  const int64_t now = now_ns();
  while (next_arrival_ns_ <= now && next_arrival_ns_ < end_ns_) {
    const int64_t intended = next_arrival_ns_;
    next_arrival_ns_ += gap_ns();
    StepStats* const step = step_at(intended);
    if (step != nullptr) ++step->arrivals;
    // The phase turns on the loop's clock; what belongs to it, on the schedule's.
    const bool measured = phase_ == Phase::kMeasure;
    if (measured) {
      ++arrivals_;
      worst_lag_ns_ = std::max(worst_lag_ns_, now - intended);
      if (now - intended > kLate) ++late_;
    }
    Connection& connection = *connections_[turn_++ % connections_.size()];
    if (!connection.is_open() || waiting >= static_cast<std::size_t>(options_.max_outstanding)) {
      if (measured) ++dropped_;
      if (step != nullptr) ++step->dropped;
      continue;
    }
    ++waiting;
    connection.submit(intended);
    if (touched_.empty() || touched_.back() != &connection) touched_.push_back(&connection);
  }
  for (Connection* connection : touched_) {
    if (!connection->is_open()) continue;
    if (connection->flush()) {
      if (connection->wants_write()) watch(*connection);
    } else if (!reopen(*connection)) {
      return;
    }
  }
}

void LoadGenerator::wait() {
  int64_t wake = phase_ == Phase::kWarmUp    ? begin_ns_
                 : phase_ == Phase::kMeasure ? end_ns_
                                             : end_ns_ + to_ns(options_.drain_s);
  if (open_loop_ && phase_ != Phase::kDrain) wake = std::min(wake, next_arrival_ns_);
  wake = std::min(wake, expire());
  itimerspec spec{};
  wake = std::max<int64_t>(wake, 1);
  spec.it_value.tv_sec = wake / kSecond;
  spec.it_value.tv_nsec = wake % kSecond;
  timerfd_settime(timer_, TFD_TIMER_ABSTIME, &spec, nullptr);

  epoll_event events[64];
  const int count = epoll_wait(epoll_, events, 64, 1000);
  for (int i = 0; i < count; ++i) {
    auto* connection = static_cast<Connection*>(events[i].data.ptr);
    if (connection == nullptr) {
      uint64_t expirations = 0;
      [[maybe_unused]] const ssize_t size = read(timer_, &expirations, sizeof expirations);
      continue;
    }
    if (!connection->is_open()) continue;
    const bool wrote = connection->wants_write();
    if (connection->read_ready() && connection->flush()) {
      if (wrote || connection->wants_write()) watch(*connection);
      continue;
    }
    if (!reopen(*connection)) return;
    if (!open_loop_ && phase_ != Phase::kDrain) {
      for (int k = 0; k < options_.streams; ++k) connection->submit(now_ns());
    }
    if (connection->flush()) watch(*connection);
  }
}

std::size_t LoadGenerator::outstanding() const {
  std::size_t sum = 0;
  for (const auto& connection : connections_) sum += connection->in_flight();
  return sum;
}

void LoadGenerator::print() const {
  const double seconds = static_cast<double>(end_ns_ - begin_ns_) * 1e-9;
  const double usage_seconds = static_cast<double>(usage_end_ns_ - usage_begin_ns_) * 1e-9;
  std::printf("{\"loop\": \"%s\", \"connections\": %d, \"streams\": %d, \"rate\": %.3f,\n",
              open_loop_ ? "open" : "closed", options_.connections,
              open_loop_ ? 0 : options_.streams, options_.rate);
  std::printf(" \"requests\": %llu, \"right\": %llu, \"wrong\": %llu, \"seconds\": %.6f, ",
              static_cast<unsigned long long>(right_ + wrong_),
              static_cast<unsigned long long>(right_), static_cast<unsigned long long>(wrong_),
              seconds);
  std::printf("\"requests_per_s\": %.2f,\n \"errors\": {", static_cast<double>(right_) / seconds);
  const char* comma = "";
  for (const auto& [kind, count] : errors_) {
    std::printf("%s%s: %llu", comma, quoted(kind).c_str(), static_cast<unsigned long long>(count));
    comma = ", ";
  }
  std::printf("}, \"first_error\": %s,\n", quoted(first_error_).c_str());
  std::printf(
      " \"latency_us\": {\"mean\": %.2f, \"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, "
      "\"p99.9\": %.2f, \"max\": %.2f},\n",
      latency_.mean_ns() / 1e3, latency_.quantile_ns(0.5) / 1e3, latency_.quantile_ns(0.9) / 1e3,
      latency_.quantile_ns(0.99) / 1e3, latency_.quantile_ns(0.999) / 1e3, latency_.max_ns() / 1e3);
  std::printf(
      " \"open\": {\"arrivals\": %llu, \"dropped\": %llu, \"late\": %llu, "
      "\"worst_send_lag_us\": %.2f, \"unanswered\": %llu},\n",
      static_cast<unsigned long long>(arrivals_), static_cast<unsigned long long>(dropped_),
      static_cast<unsigned long long>(late_), static_cast<double>(worst_lag_ns_) / 1e3,
      static_cast<unsigned long long>(unanswered_));
  if (!steps_.empty()) {
    std::printf(" \"steps\": [");
    for (const StepStats& step : steps_) {
      std::printf(&step == &steps_.front() ? "\n  " : ",\n  ");
      step.print();
    }
    std::printf("],\n");
  }
  const double own = own_after_ - own_before_;
  const double machine = machine_after_ - machine_before_;
  std::printf(" \"client_cores\": %.3f, \"machine_busy_cores\": %.3f, \"reconnects\": %d",
              own / usage_seconds, machine / usage_seconds,
              std::max(0, reopens_ - options_.connections));
  if (options_.server_pid != 0) {
    const double calls = static_cast<double>(std::max<uint64_t>(answers_, 1));
    const double user = after_.user_s - before_.user_s;
    const double system = after_.system_s - before_.system_s;
    // What neither the server nor this client used: other work on the machine disturbs the figures.
    std::printf(",\n \"other_cores\": %.3f", (machine - own - user - system) / usage_seconds);
    std::printf(
        ",\n \"server\": {\"alive\": %s, \"cpu_us_per_call\": %.3f, \"user_us_per_call\": "
        "%.3f, \"system_us_per_call\": %.3f, \"cores\": %.3f, \"rss_mib\": %.1f, "
        "\"processes\": %d, \"threads\": %d}",
        after_.processes > 0 ? "true" : "false", (user + system) / calls * 1e6, user / calls * 1e6,
        system / calls * 1e6, (user + system) / usage_seconds, after_.rss_mib, after_.processes,
        after_.threads);
  }
  std::printf("}\n");
}

}  // namespace
}  // namespace loadgen

int main(int argc, char** argv) {
  const loadgen::Options options = loadgen::parse_options(argc, argv);
  return loadgen::LoadGenerator(options).run();
}
