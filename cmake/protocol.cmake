# The wire's messages for Python: one FileDescriptorSet of proto/, made by the protoc of grpcio-tools
# and installed beside headrace/protocol/__init__.py. Descriptors instead of generated code, because
# generated code binds to one protobuf runtime and registers package `inference` for the whole process.
if(NOT Python3_EXECUTABLE)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
endif()
execute_process(
  COMMAND ${Python3_EXECUTABLE} -c "import grpc_tools.protoc"
  RESULT_VARIABLE HEADRACE_NO_PROTOC OUTPUT_QUIET ERROR_QUIET)
if(HEADRACE_NO_PROTOC)
  message(FATAL_ERROR
    "${Python3_EXECUTABLE} has no grpcio-tools, whose protoc compiles proto/. "
    "Install it: ${Python3_EXECUTABLE} -m pip install grpcio-tools")
endif()

set(HEADRACE_PROTO_ROOT ${CMAKE_SOURCE_DIR}/proto)
set(HEADRACE_PROTOS headrace/kserve.proto headrace/model_config.proto headrace/health.proto
    headrace/admin.proto headrace/riva_common.proto headrace/riva_asr.proto)
list(TRANSFORM HEADRACE_PROTOS PREPEND ${HEADRACE_PROTO_ROOT}/ OUTPUT_VARIABLE HEADRACE_PROTO_FILES)
set(HEADRACE_BINPB ${CMAKE_BINARY_DIR}/headrace.binpb)

add_custom_command(
  OUTPUT ${HEADRACE_BINPB}
  COMMAND ${Python3_EXECUTABLE} -m grpc_tools.protoc -I${HEADRACE_PROTO_ROOT} --include_imports
          --descriptor_set_out=${HEADRACE_BINPB} ${HEADRACE_PROTOS}
  DEPENDS ${HEADRACE_PROTO_FILES}
  COMMENT "Compiling proto/ to headrace.binpb"
  VERBATIM)
add_custom_target(headrace_protocol ALL DEPENDS ${HEADRACE_BINPB})
install(FILES ${HEADRACE_BINPB} DESTINATION headrace/protocol)
