// CPU time and memory of a process and all its living descendants, read from /proc.
//
// A descendant that was started and reaped between two readings is counted through its parent's
// cumulated child times; one that dies unreaped is lost (no peer of this benchmark does that).
#pragma once

#include <sys/types.h>

namespace loadgen {

struct ProcessUsage {
  double user_s = 0;  // all threads, the ended ones too
  double system_s = 0;
  double rss_mib = 0;  // shared pages are counted once a process
  int processes = 0;   // 0: the process does not exist
  int threads = 0;
};

ProcessUsage read_process_usage(pid_t root);

// CPU seconds that all cores together were not idle (time stolen by the hypervisor included).
double read_machine_busy_s();

}  // namespace loadgen
