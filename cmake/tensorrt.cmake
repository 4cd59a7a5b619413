# libheadrace_tensorrt.so (csrc/backends/tensorrt/nvinfer_engine.cc), opened by the backend when an engine is
# loaded. Built where TensorRT_ROOT has the headers; without TensorRT's library it is compiled and not linked to
# one, and finds libnvinfer in a process that has loaded it.
find_path(HEADRACE_NVINFER_INCLUDE NvInfer.h HINTS ${TensorRT_ROOT} ENV TensorRT_ROOT
  PATH_SUFFIXES include)
find_path(HEADRACE_CUDA_INCLUDE cuda_runtime_api.h HINTS ENV CUDA_HOME PATHS /usr/local/cuda
  PATH_SUFFIXES include)
find_library(HEADRACE_CUDART NAMES cudart_static HINTS ${HEADRACE_CUDA_INCLUDE}/..
  PATH_SUFFIXES lib64 lib)
if(NOT HEADRACE_NVINFER_INCLUDE OR NOT HEADRACE_CUDA_INCLUDE OR NOT HEADRACE_CUDART)
  message(STATUS "TensorRT not found: engines are answered UNAVAILABLE (set TensorRT_ROOT and CUDA_HOME)")
  return()
endif()
find_library(HEADRACE_NVINFER NAMES nvinfer tensorrt_rtx HINTS ${TensorRT_ROOT} ENV TensorRT_ROOT
  PATH_SUFFIXES lib lib64)
message(STATUS "TensorRT from ${HEADRACE_NVINFER_INCLUDE}, library: ${HEADRACE_NVINFER}")
add_library(headrace_tensorrt MODULE
  ${CMAKE_SOURCE_DIR}/csrc/backends/tensorrt/nvinfer_engine.cc
  ${CMAKE_SOURCE_DIR}/csrc/core/dtype.cc ${CMAKE_SOURCE_DIR}/csrc/core/tensor.cc)
target_include_directories(headrace_tensorrt SYSTEM PRIVATE
  ${HEADRACE_NVINFER_INCLUDE} ${HEADRACE_CUDA_INCLUDE})
target_link_libraries(headrace_tensorrt PRIVATE headrace_flags ${HEADRACE_CUDART} Threads::Threads
  rt ${CMAKE_DL_LIBS})
if(HEADRACE_NVINFER)
  target_link_libraries(headrace_tensorrt PRIVATE ${HEADRACE_NVINFER})
endif()
if(SKBUILD)
  install(TARGETS headrace_tensorrt DESTINATION headrace)
endif()
