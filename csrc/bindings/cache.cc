#include <chrono>

#include "bindings/bindings.h"
#include "cache/response_cache.h"

namespace py = pybind11;
using namespace py::literals;

namespace headrace {
namespace {

std::shared_ptr<CachedServable> make_cached(std::shared_ptr<ResponseCache> cache,
                                            std::shared_ptr<Servable> servable, double ttl_s,
                                            double bypass_below) {
  CacheOptions options;
  options.ttl =
      std::chrono::duration_cast<Nanoseconds>(std::chrono::duration<double>(std::max(0.0, ttl_s)));
  options.bypass_below = bypass_below;
  std::shared_ptr<CachedServable> cached =
      CachedServable::make(std::move(cache), std::move(servable), options);
  // The last reference may be Python's, and with it the version's, whose end waits for threads.
  CachedServable* const raw = cached.get();
  return {raw, [held = std::move(cached)](CachedServable*) mutable {
            if (PyGILState_Check() == 0) return held.reset();
            const py::gil_scoped_release release;
            held.reset();
          }};
}

}  // namespace

void bind_cache(py::module_& module) {
  py::class_<ResponseCache, std::shared_ptr<ResponseCache>>(module, "ResponseCache")
      .def(py::init<std::size_t>(), "capacity"_a)
      .def_property_readonly("capacity", &ResponseCache::capacity)
      .def("statistics", [](const ResponseCache& self) {
        const ResponseCache::Statistics values = self.statistics();
        return py::dict("entries"_a = values.entries, "bytes"_a = values.bytes,
                        "evictions"_a = values.evictions);
      });
  py::class_<CachedServable, Servable, std::shared_ptr<CachedServable>>(module, "CachedServable")
      .def(py::init(&make_cached), "cache"_a, "servable"_a, py::kw_only(), "ttl_s"_a = 0.0,
           "bypass_below"_a = 0.0)
      .def("statistics", [](const CachedServable& self) {
        const CachedServable::Statistics values = self.statistics();
        return py::dict("hits"_a = values.hits, "hit_ns"_a = values.hit_ns,
                        "misses"_a = values.misses, "miss_ns"_a = values.miss_ns,
                        "bypassed"_a = values.bypassed, "bypassing"_a = values.bypassing);
      });
}

}  // namespace headrace
