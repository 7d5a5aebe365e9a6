"""Asyncio RPC between Python processes of one host, through shared memory."""

from shmrpc import guards
from shmrpc.blocking import connect_sync
from shmrpc.buffers import Buffer
from shmrpc.client import connect, endpoints, introspect, options, peer
from shmrpc.context import Call, Endpoint, Lease, Metadata, Peer, Reply, current_call
from shmrpc.dispatch import service
from shmrpc.errors import (
    BadAddress,
    Cancelled,
    Closed,
    Code,
    ConnectFailed,
    ConnectionLost,
    ContractError,
    ContractMismatch,
    DeadlineExceeded,
    ForkedError,
    HandshakeError,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
    Unimplemented,
    UnsupportedPlatform,
    WrongLoop,
)
from shmrpc.health import Health, set_health
from shmrpc.interceptors.call import Intercepted, Interceptor, Proceed
from shmrpc.introspection import Introspection
from shmrpc.local import local
from shmrpc.policy import method, oneway
from shmrpc.retry import Retry
from shmrpc.server import Server, serve
from shmrpc.sharing import buffer, empty, leases

__version__ = "0.1.0"

__all__ = [
    "BadAddress",
    "Buffer",
    "Call",
    "Cancelled",
    "Closed",
    "Code",
    "ConnectFailed",
    "ConnectionLost",
    "ContractError",
    "ContractMismatch",
    "DeadlineExceeded",
    "Endpoint",
    "ForkedError",
    "HandshakeError",
    "Health",
    "Intercepted",
    "Interceptor",
    "Internal",
    "Introspection",
    "InvalidArgument",
    "Lease",
    "Metadata",
    "Peer",
    "PermissionDenied",
    "Proceed",
    "ProtocolError",
    "Reply",
    "ResourceExhausted",
    "Retry",
    "RpcError",
    "Server",
    "Unavailable",
    "Unimplemented",
    "UnsupportedPlatform",
    "WrongLoop",
    "__version__",
    "buffer",
    "connect",
    "connect_sync",
    "current_call",
    "empty",
    "endpoints",
    "guards",
    "introspect",
    "leases",
    "local",
    "method",
    "oneway",
    "options",
    "peer",
    "serve",
    "service",
    "set_health",
]
