"""Knocks at ports as a stranger: what does each say to somebody without a key? JSON in, JSON out. Runs in a pod.

Standard input: `[{"address": "10.244.1.3", "port": 30000}, …]`; the answer adds `says` to each:

    refused       nobody listens there, or a policy stops us
    401, 404, …   status of `GET /v1/models`; a status below 400 is an open door
    NOAUTH        Redis wants a password
    UNAUTHENTICATED   gRPC wants a key or a token for the methods that it knows
    grpc …        any other status of gRPC
    closed        it hangs up on whatever we say
    silent        it listens and says nothing to HTTP, Redis or gRPC
"""

from __future__ import annotations

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

CONNECT_S = 3.0
ANSWER_S = 3.0
GRPC_METHODS = (
    "/hanmaru.v1.Inference/ListModels",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.serve.ASGIService/HandleRequest",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RuntimeEnvGcsService/PinRuntimeEnvURI",
)
"""One of each service that may be behind a port; only its own refuses, the others are unknown there."""


def knock(address: str, port: int) -> str:
    """What the port says."""
    try:
        answer = _say(
            address, port, f"GET /v1/models HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
        )
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "refused"
    except OSError:
        answer = b""
    if answer.startswith(b"HTTP/"):
        return answer.split(b" ", 2)[1].decode()
    for speak in (_redis, _grpc):
        if found := speak(address, port):
            return found
    return "closed" if answer == b"" else "silent"


def _redis(address: str, port: int) -> str | None:
    try:
        answer = _say(address, port, b"*1\r\n$4\r\nPING\r\n")
    except OSError:
        return None
    if answer.startswith(b"-NOAUTH"):
        return "NOAUTH"
    return f"redis {answer[:40]!r}" if answer[:1] in b"+-" and answer[:1] else None


def _grpc(address: str, port: int) -> str | None:
    try:
        import grpc
    except ImportError:
        return None
    with grpc.insecure_channel(f"{address}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        said = "UNIMPLEMENTED"
        for method in GRPC_METHODS:
            call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
            try:
                call(b"", timeout=ANSWER_S)
            except grpc.RpcError as error:
                code = error.code().name
            else:
                return f"grpc OK {method}"
            if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                return None
            if code != "UNIMPLEMENTED":
                said = code
        return said


def _say(address: str, port: int, words: bytes) -> bytes:
    with socket.create_connection((address, port), timeout=CONNECT_S) as connection:
        connection.settimeout(ANSWER_S)
        connection.sendall(words)
        try:
            return connection.recv(4096)
        except TimeoutError:
            return b"\0"


def main() -> None:
    """Every door at once."""
    doors = json.load(sys.stdin)
    with ThreadPoolExecutor(16) as threads:
        said = threads.map(lambda door: knock(door["address"], door["port"]), doors)
    print(json.dumps([{**door, "says": says} for door, says in zip(doors, said, strict=True)]))


if __name__ == "__main__":
    main()
