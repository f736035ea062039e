"""What a trusted environment's process gives up before it answers anybody: rights, the network, other programs.

All of it is done while the process has one thread, and none of it can be taken back. It keeps bugs from becoming more
than they are; it is no hardware: whoever has the root of the machine reads the memory of any process. Linux alone.
"""

import ctypes
import os
import platform
import pwd
import resource
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from consensus.ledger.errors import InvariantError, LocalError

OWN_USER: Final = "a user of its own"
NETWORK_NAMESPACE: Final = "a network namespace of its own"
FILTER: Final = "a filter of system calls"
NO_NEW_PRIVILEGES: Final = "no new privileges"
NO_DUMPS: Final = "no core dumps"

_CLONE_NEWNET = 0x4000_0000
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_KILL, _REFUSE, _ALLOW = 0x8000_0000, 0x0005_0000 | 1, 0x7FFF_0000  # the second one answers EPERM
_LOAD, _EQUALS, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32_BIT = 0x4000_0000
_SYSTEM_CALLS = {
    "x86_64": (0xC000_003E, 41, (59, 101, 310, 311, 322, 425)),
    "aarch64": (0xC000_00B7, 198, (221, 117, 270, 271, 281, 425)),
}
"""By machine: its number, ``socket``, and what else is refused.

These are execve, ptrace, process_vm_readv, process_vm_writev, execveat, io_uring_setup.
"""


@dataclass(frozen=True, slots=True)
class User:
    """Whom a process becomes."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Walls:
    """What is in force around a process, and what is not, in words for people."""

    uid: int
    standing: tuple[str, ...]
    missing: tuple[str, ...]


def find_user(text: str) -> User:
    """Return the user that a name or a number names; a number need not be known to the machine.

    Raises:
        LocalError: ``unknown_user``; also for root, which is not what it is for.
    """
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
        user = User(entry.pw_uid, entry.pw_gid)
    except (KeyError, OverflowError):
        if not text.isdecimal() or int(text) >= 2**31:
            raise LocalError("unknown_user", f"this machine has no user {text!r}") from None
        user = User(int(text), int(text))
    if user.uid == 0 or user.gid == 0:
        raise LocalError("unknown_user", "an environment's own user is not root")
    return user


def raise_walls(user: User | None) -> Walls:
    """Give up what can be given up, and become ``user`` where there is one and this is root.

    Raises:
        LocalError: ``not_root`` where it is to be another user than it is and may not become it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    is_root = os.geteuid() == 0
    done = {
        NETWORK_NAMESPACE: is_root and libc.unshare(_CLONE_NEWNET) == 0,
        OWN_USER: _become(user),
        NO_NEW_PRIVILEGES: libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
    }
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # It also keeps other processes of this user from reading our memory.
    done[NO_DUMPS] = libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
    done[FILTER] = done[NO_NEW_PRIVILEGES] and _filter_calls(libc)
    if done[FILTER]:
        _check_filter()
    standing = tuple(name for name, is_done in done.items() if is_done)
    return Walls(os.geteuid(), standing, tuple(name for name in done if name not in standing))


def _become(user: User | None) -> bool:
    """Become a user for ever; tell whether this is one of its own now."""
    if user is None:
        return False
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        with suppress(PermissionError):
            os.setuid(0)
            raise InvariantError("a process that gave up being root became it again")
    elif os.geteuid() != user.uid:
        raise LocalError("not_root", f"only root may run a program as the user {user.uid}; this is {os.geteuid()}")
    return True


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Let the kernel refuse sockets that are not unix ones, new programs, and a look into other processes."""
    if (known := _SYSTEM_CALLS.get(platform.machine())) is None:
        return False
    machine, socket_call, refused = known
    code = [
        _step(_LOAD, _MACHINE_AT),
        _step(_EQUALS, machine, past_true=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
        _step(_AT_LEAST, _X32_BIT, past_false=1),
        _step(_RETURN, _KILL),
    ]
    for number in refused:
        code += [_step(_EQUALS, number, past_false=1), _step(_RETURN, _REFUSE)]
    code += [
        _step(_EQUALS, socket_call, past_false=3),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        _step(_EQUALS, socket.AF_UNIX, past_true=1),
        _step(_RETURN, _REFUSE),
        _step(_RETURN, _ALLOW),
    ]
    steps = ctypes.create_string_buffer(b"".join(code))
    # struct sock_fprog: a count, padding, a pointer
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(steps)))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0)


def _step(code: int, value: int, *, past_true: int = 0, past_false: int = 0) -> bytes:
    """Return a step of a filter (struct sock_filter): what it does, with what, how many it then passes over."""
    return struct.pack("=HBBI", code, past_true, past_false, value)


def _check_filter() -> None:
    with suppress(PermissionError):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        raise InvariantError("the filter of system calls lets a network socket through")
