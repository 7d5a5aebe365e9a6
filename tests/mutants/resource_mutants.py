"""The guards of what happens when the system has no memory, fds or threads."""

from typing import Final

from mutant import Mutant

FAULTS: Final = (
    "tests/resources/test_syscall_faults.py::test_a_system_call_that_fails_ends_in_a_typed_error_and_leaves_nothing"
)

RESOURCES: Final = (
    Mutant(
        "a doorbell that cannot be rung is closed",
        "shmrpc/shm/doorbell.py",
        'connection ends: %s", error)\n            self._closed = True\n            os.close(self._fd)\n',
        'connection ends: %s", error)\n',
        "tests/shm/test_doorbell.py",
    ),
    Mutant(
        "a doorbell that cannot be rung raises into nobody's call",
        "shmrpc/shm/doorbell.py",
        "        except OSError as error:\n            # A wake-up must",
        "        except BadDoorbell as error:\n            # A wake-up must",
        "tests/shm/test_doorbell.py",
    ),
    Mutant(
        "a pipe that could not be set up is closed",
        "shmrpc/shm/doorbell.py",
        "            except BaseException:\n                self.close()\n                raise\n",
        "            except BaseException:\n                raise\n",
        "tests/shm/test_doorbell.py",
    ),
    Mutant(
        "no room for a pidfd by the socket is no missing peer",
        "shmrpc/shm/liveness.py",
        "            if error.errno in SHORTAGES:\n                raise\n            if",
        "            if",
        "tests/shm/test_liveness.py",
    ),
    Mutant(
        "no room for a pidfd by the pid is no missing peer",
        "shmrpc/shm/liveness.py",
        "    except OSError as error:\n        if error.errno in SHORTAGES:\n            raise\n        return None",
        "    except OSError:\n        return None",
        "tests/shm/test_liveness.py",
    ),
    Mutant(
        "who got no memory is not charged",
        "shmrpc/shm/listener.py",
        "        except BaseException:  # it has got nothing\n            self._quota.refund(peer, sock, nbytes)\n",
        "        except BaseException:  # it has got nothing\n            pass\n",
        "tests/shm/test_shm_quota.py::test_who_got_no_memory_is_charged_for_none",
    ),
    Mutant(
        "the pidfd of a client that got no answer is closed",
        "shmrpc/shm/listener.py",
        "            if pidfd is not None:\n                os.close(pidfd)\n            raise\n",
        "            raise\n",
        f"{FAULTS}[memfd_create-EMFILE-server-asyncio]",
    ),
    Mutant(
        "a client is told what the server is short of",
        "shmrpc/shm/listener.py",
        'self._reject(sock, "unavailable", why)',
        'log.debug("nobody is told")',
        "tests/resources/test_memory_limits.py::test_a_limit_below_a_segment_lets_nobody_connect_and_says_why",
    ),
    Mutant(
        "a server that cannot accept does not spin",
        "shmrpc/shm/listener.py",
        "                self._loop.remove_reader(self._sock.fileno())\n                self._loop.call_later",
        "                self._loop.call_later",
        "tests/resources/test_fd_limit.py::test_a_server_that_cannot_accept_waits_and_serves_those_who_waited_when_it_can",
    ),
    Mutant(
        "a server that could not accept goes on",
        "shmrpc/shm/listener.py",
        "                self._loop.call_later(ACCEPT_PAUSE, self._resume)\n                return\n",
        "                return\n",
        "tests/resources/test_accepting.py",
    ),
    Mutant(
        "a server that could not watch its socket tries again",
        "shmrpc/shm/listener.py",
        'trying again in %s s", self.path, error, ACCEPT_PAUSE)\n'
        "            self._loop.call_later(ACCEPT_PAUSE, self._resume)\n",
        'trying again in %s s", self.path, error, ACCEPT_PAUSE)\n',
        "tests/resources/test_accepting.py",
    ),
    Mutant(
        "a server that cannot watch its socket gives it back",
        "shmrpc/shm_gate.py",
        "            address.unlink_own(path, os.lstat(path).st_ino)\n            sock.close()\n",
        "            address.unlink_own(path, os.lstat(path).st_ino)\n",
        f"{FAULTS}[epoll_ctl-ENOMEM-server-asyncio]",
    ),
    Mutant(
        "a server that cannot watch its socket leaves no path",
        "shmrpc/shm_gate.py",
        "            address.unlink_own(path, os.lstat(path).st_ino)\n            sock.close()\n",
        "            sock.close()\n",
        f"{FAULTS}[epoll_ctl-ENOMEM-server-asyncio]",
    ),
    Mutant(
        "what this process is short of is no disagreement",
        "shmrpc/shm/handshake.py",
        "    return error if short else HandshakeError(str(error))",
        "    return HandshakeError(str(error))",
        f"{FAULTS}[mmap-ENOMEM-client-asyncio]",
    ),
    Mutant(
        "a client short of something gets a ConnectFailed",
        "shmrpc/shm/meeting.py",
        '            raise ConnectFailed(f"this process cannot connect to {self.path}: {error}") from None\n',
        "            raise\n",
        f"{FAULTS}[socket-EMFILE-client-asyncio]",
    ),
    Mutant(
        "fds that were lost are noticed",
        "shmrpc/shm/frames.py",
        "            if flags & socket.MSG_CTRUNC:",
        "            if flags & socket.MSG_OOB:",
        "tests/shm/test_frames.py",
    ),
    Mutant(
        "an extent without a thread is a typed error",
        "shmrpc/shm/extents.py",
        "        except RuntimeError as error:\n            raise ResourceExhausted",
        "        except ZeroDivisionError as error:\n            raise ResourceExhausted",
        "tests/resources/test_thread_shortage.py::test_a_client_without_threads_cannot_send_what_needs_an_extent",
    ),
    Mutant(
        "an extent without memory is a typed error",
        "shmrpc/shm/extents.py",
        '        except OSError as error:\n            raise ResourceExhausted(f"no memory for an extent of {region.nbytes}',
        "        except ZeroDivisionError as error:\n"
        '            raise ResourceExhausted(f"no memory for an extent of {region.nbytes}',
        f"{FAULTS}[fallocate-ENOSPC-client-asyncio]",
    ),
    Mutant(
        "a handler without a thread is a typed error",
        "shmrpc/dispatch.py",
        '            raise ResourceExhausted(f"{name} needs a thread,',
        '            raise RuntimeError(f"{name} needs a thread,',
        "tests/test_dispatch.py",
    ),
    Mutant(
        "a handler's own RuntimeError is no missing thread",
        "shmrpc/dispatch.py",
        "            except Exception as error:  # of the function; passed on",
        "            except ValueError as error:  # passed on",
        "tests/test_dispatch.py",
    ),
    Mutant(
        "a plain generator without a thread is closed",
        "shmrpc/dispatch.py",
        "                except ResourceExhausted:\n                    generator",
        "                except ZeroDivisionError:\n                    generator",
        "tests/test_dispatch.py",
    ),
    Mutant(
        "a segment that could not be sealed is unmapped",
        "shmrpc/shm/segment.py",
        "            mapping.close()\n        os.close(fd)\n        raise\n    return Segment(mapping, fd, made, geometry)",
        "            mapping.size()\n        os.close(fd)\n        raise\n    return Segment(mapping, fd, made, geometry)",
        "tests/shm/test_segment.py",
    ),
    Mutant(
        "a blocking stub without a thread says so",
        "shmrpc/blocking.py",
        "        except (OSError, RuntimeError) as error:",
        "        except ZeroDivisionError as error:",
        "tests/resources/test_thread_shortage.py::test_a_client_without_threads_cannot_send_what_needs_an_extent",
    ),
    Mutant(
        "a feed without a thread says so",
        "shmrpc/loop_thread.py",
        "        except RuntimeError as error:\n            raise ResourceExhausted",
        "        except ZeroDivisionError as error:\n            raise ResourceExhausted",
        "tests/test_loop_thread.py",
    ),
    Mutant(
        "a full backlog is waited for",
        "shmrpc/shm/address.py",
        "        sock.close()\n        return None\n",
        '        sock.close()\n        raise ConnectFailed("full") from None\n',
        "tests/resources/test_full_backlog.py",
    ),
    Mutant(
        "a client that could not finish closes its segment",
        "shmrpc/shm/handshake.py",
        "    except BaseException:\n        mine.close()\n        raise\n    finally:\n        frame.close()",
        "    except BaseException:\n        raise\n    finally:\n        frame.close()",
        f"{FAULTS}[pidfd-EMFILE-client-asyncio]",
    ),
    Mutant(
        "a segment whose doorbell cannot be made is closed",
        "shmrpc/shm/handshake.py",
        "        except BaseException:\n            self.segment.close()\n            raise\n",
        "        except BaseException:\n            raise\n",
        f"{FAULTS}[eventfd-ENFILE-client-asyncio]",
    ),
    Mutant(
        "a session that cannot be watched is closed",
        "shmrpc/shm/session.py",
        '            self.close("it could not be started")\n            raise',
        "            raise",
        f"{FAULTS}[epoll_ctl-ENOMEM-client-asyncio]",
    ),
    Mutant(
        "no room for a sender's pidfd is no sender that has ended",
        "shmrpc/shm/frames.py",
        "        if pidfd is not None and -pidfd in liveness.SHORTAGES:\n"
        "            raise OSError(-pidfd, os.strerror(-pidfd))\n",
        "",
        "tests/shm/test_frames.py",
    ),
    Mutant(
        "a control socket that fails while it is read says why",
        "shmrpc/shm/control.py",
        '            raise self._break(ProtocolError(f"the control socket cannot be read: {error}")) from None\n',
        '            log.debug("%s", error)\n',
        "tests/shm/test_control.py",
    ),
)
