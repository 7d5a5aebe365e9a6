"""Goes into namespaces, and plays a part there: ``isolated_main.py`` with one argument of JSON, see `isolated.Isolated`.

It enters as root, builds a new root of what Python needs and the one folder that is shared, gives the rest up, and takes on
its uid and its user namespace last. Prints a line with the pid, in the namespace of who started it, before all else.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

CLONE = {"mount": 0x20000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000}  # linux/sched.h
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18  # linux/mount.h
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # linux/prctl.h

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(*names: str) -> None:
    flags = 0
    for name in names:
        flags |= CLONE[name]
    check(libc.unshare(flags), f"unshare {names}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    check(libc.mount(*words, ctypes.c_ulong(flags), options.encode() if options else None), f"mount {target}")


def bind(source: str, root: str, *, inside: str | None = None) -> None:
    """Shows a folder or file of the old root at the same place, or another one, of the new root."""
    target = root + (inside or source)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    mount(source, target, None, MS_BIND | MS_REC)


def new_root(root: str, shared: str, shown: list[str], shm: str, *, proc: bool) -> None:
    """Changes to a root that has nothing but what is named; `shm` is the size of its ``/dev/shm``."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for path in shown:
        if os.path.islink(path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.exists(path):
            bind(path, root)
    for device in ("null", "urandom", "zero"):
        bind(f"/dev/{device}", root)
    os.makedirs(f"{root}/dev/shm")
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID, f"mode=1777,size={shm}")
    bind(shared, root, inside="/shared")
    os.makedirs(f"{root}/old")
    if proc:
        os.makedirs(f"{root}/proc")
        mount("proc", f"{root}/proc", "proc", MS_NOSUID)
    check(libc.pivot_root(root.encode(), f"{root}/old".encode()), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/old", MNT_DETACH), "umount")
    os.rmdir("/old")


def become(uid: int, gid: int, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    die_with_parent()  # a process that changes its uid loses this
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # and may not write into its own /proc


def die_with_parent() -> None:
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def enter_user_namespace(inner: dict[str, int] | None) -> None:
    """Into a user namespace in which this process is uid and gid `inner`, or nobody, if that is None."""
    uid, gid = os.getuid(), os.getgid()
    unshare("user")
    if inner is not None:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{inner['uid']} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{inner['gid']} {gid} 1")


def enter(how: dict[str, Any]) -> None:
    namespaces: list[str] = how["namespaces"]
    if "mount" in namespaces:
        new_root(how["root"], how["shared"], how["shown"], how["shm"], proc=how["proc"])
    if how["user"] is not None:
        become(**how["user"])
    if "user" in namespaces:
        enter_user_namespace(how["inner"])


def main(how: dict[str, Any]) -> int:
    privileged = [name for name in how["namespaces"] if name != "user"]
    unshare(*privileged)
    told, tell = os.pipe()
    child = os.fork()  # only a child is in a new pid namespace
    if child:
        print(child, flush=True)
        os.close(1)  # it is the child's alone
        os.close(tell)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    die_with_parent()
    os.close(tell)
    os.read(told, 1)  # until the parent has said its line
    os.close(told)
    enter(how)
    if how["part"] == "probe":
        print('"possible"', flush=True)
        return 0
    import isolation_api  # of the namespace's own file system

    isolation_api.play(how["part"], how["path"], how["settings"])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except OSError as error:
        print(json.dumps(f"refused: {error}"), flush=True)
        sys.exit(3)
