"""Check whether a file could be written or a port opened, without doing so (`connmond --check-config`).

- Each function raises the OSError that the real attempt would raise, so that the caller can print it alike.
- Permissions are those of the effective user. Root may write nearly everywhere: check as the node's user.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from connmon.config import Address

_EFFECTIVE = os.access in os.supports_effective_ids


def check_directory(path: str) -> None:
    """Raise OSError if no file can be made in this directory."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise _error(errno.ENOTDIR, path)
    _check_access(path, os.W_OK | os.X_OK)
    system = os.statvfs(path)
    free = system.f_bfree if os.geteuid() == 0 else system.f_bavail
    if system.f_blocks and not free:
        raise _error(errno.ENOSPC, path)


def check_parent(path: str) -> None:
    """Raise OSError if this file or directory, which does not exist, cannot be made."""
    check_directory(os.path.dirname(os.path.realpath(path)))


def check_file(path: str) -> None:
    """Raise OSError if this file cannot be opened for reading and writing, or made."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if not path or path.endswith(os.sep):
            raise
        try:
            check_parent(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        return
    if stat.S_ISDIR(status.st_mode):
        raise _error(errno.EISDIR, path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    _check_access(path, os.R_OK | os.W_OK)


def can_bind(address: Address) -> bool:
    """Return whether the address is free. Raises OSError if this process could not listen there."""
    free = True
    infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, where in infos:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(where)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                free = False
    return free


def _check_access(path: str, mode: int) -> None:
    if not os.access(path, mode, effective_ids=_EFFECTIVE):
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        raise _error(errno.EROFS if read_only else errno.EACCES, path)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
