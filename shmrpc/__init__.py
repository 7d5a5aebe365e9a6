"""Asyncio RPC between Python processes of one host, through shared memory."""

from shmrpc.client import connect, options, peer
from shmrpc.context import Call, Metadata, Peer, current_call
from shmrpc.contract import method, oneway
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
from shmrpc.local import local
from shmrpc.server import Server, serve

__version__ = "0.1.0"

__all__ = [
    "BadAddress",
    "Call",
    "Cancelled",
    "Closed",
    "Code",
    "ConnectFailed",
    "ConnectionLost",
    "ContractError",
    "ContractMismatch",
    "DeadlineExceeded",
    "ForkedError",
    "HandshakeError",
    "Internal",
    "InvalidArgument",
    "Metadata",
    "Peer",
    "PermissionDenied",
    "ProtocolError",
    "ResourceExhausted",
    "RpcError",
    "Server",
    "Unavailable",
    "Unimplemented",
    "UnsupportedPlatform",
    "WrongLoop",
    "__version__",
    "connect",
    "current_call",
    "local",
    "method",
    "oneway",
    "options",
    "peer",
    "serve",
    "service",
]
