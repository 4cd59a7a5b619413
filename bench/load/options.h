// Options of headrace_loadgen and their command line.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tls.h"

namespace loadgen {

enum class Arrivals { kPoisson, kConstant, kBursty };

struct Options {
  std::string host = "127.0.0.1";
  std::string port;
  std::string path = "/inference.GRPCInferenceService/ModelInfer";
  std::string authority;  // default: host:port
  std::vector<std::pair<std::string, std::string>> metadata;
  std::string message;  // the request's protobuf bytes, without gRPC's prefix

  std::shared_ptr<SSL_CTX> tls;  // null: cleartext

  bool check_equal = false;     // the answer's message must be `expected`
  bool check_contains = false;  // the answer's message must hold `expected` somewhere
  std::string expected;

  int connections = 1;
  int streams = 1;  // closed loop: calls in flight a connection
  double rate = 0;  // calls a second; > 0 makes the loop open
  Arrivals arrivals = Arrivals::kPoisson;
  // Open loop: (rate, seconds) one after the other, instead of one rate; each is reported by itself.
  std::vector<std::pair<double, double>> steps;
  double slo_s = 0;             // a right answer that comes later is an error, "late"; 0: never
  double deadline_s = 0;        // each call's: sent as grpc-timeout, and reset then; 0: none
  int max_outstanding = 10000;  // open loop: an arrival beyond this is dropped and counted
  uint64_t seed = 1;            // of the Poisson schedule

  double warm_up_s = 1;
  double duration_s = 5;
  uint64_t requests = 0;  // closed loop: stop after so many measured answers; 0: by duration
  double drain_s = 5;     // how long to wait for the last answers after the window
  pid_t server_pid = 0;   // whose CPU and memory to report, with its descendants; 0: nobody's
};

// Prints what is wrong and exits with 2 when the command line makes no sense; 0 after --help.
Options parse_options(int argc, char** argv);

}  // namespace loadgen
