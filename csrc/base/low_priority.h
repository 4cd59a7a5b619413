// Work that leaves the processors to the threads that serve: loading, warming up and freeing models.
//
//   run_at_low_priority([&] { compiled = compile(file); });   // returns when it is done
//
// Each call has a thread of its own, for a process without privileges cannot raise a thread again.
// Threads that `work` starts inherit the low priority: none of them may serve. Nor may it hold what
// serving threads wait for, such as the interpreter's lock: on a busy machine it runs rarely.
#pragma once

#include <functional>

namespace headrace {

// What `work` throws arrives here. Where the system gives no thread it runs on the calling one.
void run_at_low_priority(const std::function<void()>& work);

}  // namespace headrace
