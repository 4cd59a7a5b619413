"""The peer most people would write: ModelInfer on grpcio, messages parsed and built with protobuf.

Identity of one input, raw contents in, raw contents out. Stubs are tritonclient's. Run with
``--mode sync`` (``grpc.server`` on a thread pool) or ``--mode aio`` (``grpc.aio.server``).
"""

import argparse
import asyncio
import signal
from concurrent import futures

import device
import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


def infer(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    """Answers output Y = input X, as a hand-written server would."""
    if len(request.inputs) != 1 or len(request.raw_input_contents) != 1:
        raise ValueError("this model takes one input with raw contents")
    source = request.inputs[0]
    device.run(source.shape[0])
    response = service_pb2.ModelInferResponse(
        model_name=request.model_name, model_version="1", id=request.id
    )
    output = response.outputs.add()
    output.name = "Y"
    output.datatype = source.datatype
    output.shape.extend(source.shape)
    response.raw_output_contents.append(request.raw_input_contents[0])
    return response


class SyncService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def ServerLive(  # noqa: N802 (the service's name)
        self, request: service_pb2.ServerLiveRequest, context: grpc.ServicerContext
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    def ModelInfer(  # noqa: N802 (the service's name)
        self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        return infer(request)


class AioService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    async def ServerLive(  # noqa: N802 (the service's name)
        self, request: service_pb2.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelInfer(  # noqa: N802 (the service's name)
        self, request: service_pb2.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        return infer(request)


def serve_sync(port: int, workers: int) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=workers))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(SyncService(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=None))
    server.wait_for_termination()


async def serve_aio(port: int) -> None:
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(AioService(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=["sync", "aio"], default="sync")
    parser.add_argument("--workers", type=int, default=10, help="threads of the sync server")
    options = parser.parse_args()
    if options.mode == "sync":
        serve_sync(options.port, options.workers)
    else:
        asyncio.run(serve_aio(options.port))


if __name__ == "__main__":
    main()
