# libheadrace_cuda.so (csrc/kernels/cuda/int8_cuda.h): machine code for sm_80 and sm_90, and PTX for what
# comes later. A library of its own, opened when it is wanted: nothing else needs CUDA. Not part of `all`, but
# of wheels: nvcc takes a minute. `make cuda` builds and inspects it.
if(HEADRACE_CUDA STREQUAL "OFF")
  return()
endif()
find_program(HEADRACE_NVCC nvcc PATHS ENV CUDA_HOME PATH_SUFFIXES bin)
set(HEADRACE_NVCC_VERSION 0)
if(HEADRACE_NVCC)
  execute_process(COMMAND ${HEADRACE_NVCC} --version OUTPUT_VARIABLE HEADRACE_NVCC_SAYS ERROR_QUIET)
  if(HEADRACE_NVCC_SAYS MATCHES "release ([0-9]+\\.[0-9]+)")
    set(HEADRACE_NVCC_VERSION ${CMAKE_MATCH_1})
  endif()
endif()
if(HEADRACE_NVCC_VERSION VERSION_LESS 12)  # no C++20 before
  if(HEADRACE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HEADRACE_CUDA=ON, but there is no nvcc 12 or later (CUDA_HOME, PATH)")
  endif()
  message(STATUS "nvcc 12 or later not found: built without CUDA kernels (set CUDA_HOME)")
  return()
endif()
# It may be there and of no use: without its headers, or with a host compiler that it refuses.
if(NOT DEFINED HEADRACE_NVCC_WORKS)
  set(HEADRACE_NVCC_PROBE ${CMAKE_BINARY_DIR}/CMakeFiles/nvcc_probe)
  file(WRITE ${HEADRACE_NVCC_PROBE}.cu "#include <cuda_fp16.h>\n__global__ void probe() {}\n")
  execute_process(
    COMMAND ${HEADRACE_NVCC} -std=c++20 --shared -cudart static -gencode arch=compute_80,code=sm_80
      -Xcompiler -fPIC -ccbin ${CMAKE_CXX_COMPILER} ${HEADRACE_NVCC_PROBE}.cu -o ${HEADRACE_NVCC_PROBE}.so
    RESULT_VARIABLE HEADRACE_NVCC_FAILED OUTPUT_QUIET ERROR_VARIABLE HEADRACE_NVCC_ERROR)
  if(HEADRACE_NVCC_FAILED EQUAL 0)
    set(HEADRACE_NVCC_WORKS ON CACHE INTERNAL "")
  elseif(HEADRACE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "${HEADRACE_NVCC} does not compile:\n${HEADRACE_NVCC_ERROR}")
  else()
    message(STATUS "${HEADRACE_NVCC} does not compile: built without CUDA kernels")
    return()
  endif()
endif()
message(STATUS "CUDA kernels with nvcc ${HEADRACE_NVCC_VERSION} from ${HEADRACE_NVCC}")

set(HEADRACE_CUDA_LIBRARY ${CMAKE_BINARY_DIR}/libheadrace_cuda.so)
file(GLOB HEADRACE_CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/kernels/cuda/*)
# Called as it is: the CUDA language of CMake would make every configuration compile a CUDA program.
add_custom_command(
  OUTPUT ${HEADRACE_CUDA_LIBRARY}
  COMMAND ${HEADRACE_NVCC} -std=c++20 -O3 --shared -cudart static
    -gencode arch=compute_80,code=sm_80 "-gencode=arch=compute_90,code=[sm_90,compute_90]"
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra -Xlinker --exclude-libs,ALL
    -ccbin ${CMAKE_CXX_COMPILER} -I ${CMAKE_SOURCE_DIR}/csrc
    ${CMAKE_SOURCE_DIR}/csrc/kernels/cuda/int8_cuda.cu -o ${HEADRACE_CUDA_LIBRARY}
  DEPENDS ${HEADRACE_CUDA_SOURCES}
  COMMENT "CUDA kernels for sm_80, sm_90 and PTX"
  VERBATIM)
if(SKBUILD)
  set(HEADRACE_CUDA_IN_ALL ALL)
  install(FILES ${HEADRACE_CUDA_LIBRARY} DESTINATION headrace)
endif()
add_custom_target(headrace_cuda ${HEADRACE_CUDA_IN_ALL} DEPENDS ${HEADRACE_CUDA_LIBRARY})
