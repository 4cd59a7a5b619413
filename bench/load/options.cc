#include "options.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace loadgen {
namespace {

constexpr const char* kHelp =
    R"(headrace_loadgen --target HOST:PORT [options]: a gRPC unary load client, HTTP/2.

what is sent
  --message FILE            request message, serialised protobuf (default: empty message)
  --path PATH               default /inference.GRPCInferenceService/ModelInfer
  --authority TEXT          default: the target
  --metadata NAME:VALUE     may be given several times
  --tls-ca FILE             TLS: PEM file with the authority that signed the server's certificate;
                            names in it are not looked at. Without it: cleartext
  --tls-cert FILE --tls-key FILE    mTLS: PEM files with what the client shows
what counts as an answer (grpc-status 0 always)
  --expect-equal FILE       the response message is exactly these bytes
  --expect-contains FILE    the response message holds these bytes
how
  --connections N           default 1
  --streams N               closed loop: calls in flight a connection, default 1
  --rate R                  open loop: R calls a second over all connections; latency counts from
                            the intended time of sending
  --steps R:S,R:S,...       open loop: R calls a second for S seconds, then the next; instead of
                            --rate and --duration. Each step is reported by itself
  --deadline S              each call's: sent as grpc-timeout; a call without an answer by then is
                            reset and counts as an error, as gRPC clients do it
  --slo S                   a right answer that comes later counts as an error
  --arrivals poisson|constant|bursty
                            default poisson; bursty: eight at once on average, at Poisson times
  --max-outstanding N       open loop: more arrivals than this unanswered are dropped, default 10000
  --seed N                  of the Poisson schedule, default 1
how long
  --warm-up S               not measured, default 1
  --duration S              default 5
  --requests N              closed loop: stop after N measured answers instead
  --drain S                 wait so long for the last answers, default 5
  --server-pid PID          report CPU per call and memory of this process and its descendants

Prints one JSON object. Exit status: 0 measured (errors are in it), 1 could not, 2 bad usage.
)";

[[noreturn]] void fail(const std::string& why) {
  std::fprintf(stderr, "headrace_loadgen: %s (--help lists the options)\n", why.c_str());
  std::exit(2);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

double number(const std::string& name, const std::string& text, double low, double high) {
  double value = 0;
  std::size_t used = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != text.size() || used == 0 || !(value >= low && value <= high)) {
    fail(name + " wants a number from " + std::to_string(low) + " to " + std::to_string(high) +
         ", not '" + text + "'");
  }
  return value;
}

// "100:5,1000:60" -> rates and seconds.
std::vector<std::pair<double, double>> steps_of(const std::string& text) {
  std::vector<std::pair<double, double>> steps;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const std::string step = text.substr(at, end - at);
    const std::size_t colon = step.find(':');
    if (colon == std::string::npos) fail("--steps wants RATE:SECONDS,..., not '" + text + "'");
    steps.emplace_back(number("--steps' rate", step.substr(0, colon), 1e-3, 1e7),
                       number("--steps' seconds", step.substr(colon + 1), 0.01, 86400));
    at = end + 1;
  }
  return steps;
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options o;
  std::string target;
  TlsFiles tls;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") {
      std::fputs(kHelp, stdout);
      std::exit(0);
    }
    if (i + 1 >= argc) fail("unknown option or missing value: " + name);
    const std::string value = argv[++i];
    if (name == "--target") {
      target = value;
    } else if (name == "--message") {
      o.message = read_file(value);
    } else if (name == "--path") {
      o.path = value;
    } else if (name == "--authority") {
      o.authority = value;
    } else if (name == "--metadata") {
      const std::size_t colon = value.find(':', 1);
      if (colon == std::string::npos) fail("--metadata wants NAME:VALUE, not '" + value + "'");
      o.metadata.emplace_back(value.substr(0, colon), value.substr(colon + 1));
    } else if (name == "--tls-ca") {
      tls.ca = value;
    } else if (name == "--tls-cert") {
      tls.certificate = value;
    } else if (name == "--tls-key") {
      tls.key = value;
    } else if (name == "--expect-equal" || name == "--expect-contains") {
      if (o.check_equal || o.check_contains) fail("give one --expect option");
      (name == "--expect-equal" ? o.check_equal : o.check_contains) = true;
      o.expected = read_file(value);
    } else if (name == "--connections") {
      o.connections = static_cast<int>(number(name, value, 1, 10000));
    } else if (name == "--streams") {
      o.streams = static_cast<int>(number(name, value, 1, 100000));
    } else if (name == "--rate") {
      o.rate = number(name, value, 1e-3, 1e7);
    } else if (name == "--steps") {
      o.steps = steps_of(value);
    } else if (name == "--slo") {
      o.slo_s = number(name, value, 1e-6, 3600);
    } else if (name == "--deadline") {
      o.deadline_s = number(name, value, 1e-3, 3600);
    } else if (name == "--arrivals") {
      if (value != "poisson" && value != "constant" && value != "bursty") {
        fail("--arrivals is poisson, constant or bursty");
      }
      o.arrivals = value == "poisson"    ? Arrivals::kPoisson
                   : value == "constant" ? Arrivals::kConstant
                                         : Arrivals::kBursty;
    } else if (name == "--max-outstanding") {
      o.max_outstanding = static_cast<int>(number(name, value, 1, 1e7));
    } else if (name == "--seed") {
      o.seed = static_cast<uint64_t>(number(name, value, 0, 1e15));
    } else if (name == "--warm-up") {
      o.warm_up_s = number(name, value, 0, 3600);
    } else if (name == "--duration") {
      o.duration_s = number(name, value, 0.01, 86400);
    } else if (name == "--requests") {
      o.requests = static_cast<uint64_t>(number(name, value, 1, 1e15));
    } else if (name == "--drain") {
      o.drain_s = number(name, value, 0, 3600);
    } else if (name == "--server-pid") {
      o.server_pid = static_cast<pid_t>(number(name, value, 1, 1 << 30));
    } else {
      fail("unknown option " + name);
    }
  }
  const std::size_t colon = target.rfind(':');
  if (colon == std::string::npos) fail("--target HOST:PORT is needed");
  o.host = target.substr(0, colon);
  o.port = target.substr(colon + 1);
  if (o.authority.empty()) o.authority = target;
  if (tls.ca.empty() && !(tls.certificate.empty() && tls.key.empty())) {
    fail("--tls-cert and --tls-key need --tls-ca");
  }
  if (!tls.ca.empty()) {
    std::string why;
    o.tls = make_tls(tls, why);
    if (o.tls == nullptr) fail(why);
  }
  if (!o.steps.empty()) {
    o.rate = o.steps.front().first;
    o.duration_s = 0;
    for (const auto& [rate, seconds] : o.steps) o.duration_s += seconds;
  }
  if (o.requests > 0 && o.rate > 0) fail("--requests is for the closed loop; use --duration");
  return o;
}

}  // namespace loadgen
