"""The process of a command: its signals, its exit code, and the one line that an error becomes."""

import concurrent.futures
import contextlib
import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from hmt_jax import _devices

FAILED, UNEXPECTED = 2, 1
_INTERRUPTED, _RESUMABLE = 130, 75  # as shells count signals, and EX_TEMPFAIL of sysexits.h
_CLOSED_OUTPUT = 141  # the exit code of a process that SIGPIPE ends
_STOPPING = {signal.SIGINT: ("Ctrl-C", _INTERRUPTED), signal.SIGTERM: ("SIGTERM", _RESUMABLE)}


class _Stopped(BaseException):
    """A signal that stops the command."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def run(command: Callable[[], None], remedy: Callable[[], str], *, is_debugged: bool = False) -> int:
    """The exit code of a command, after an error or a signal has become one line on stderr.

    The command runs in a thread of its own, because Python sees to signals in the main thread only, and there not
    before compiled code returns, which may take minutes. A signal ends the process at once. So commands must leave
    their files whole at any moment.

    Args:
      command: the command.
      remedy: after a signal, the text that says how to go on.
      is_debugged: whether an error shows its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may not be in the terminal's encoding
    try:
        with _signals_raise():
            try:
                _in_thread(command)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        return 0
    except _Stopped as stopped:
        cause, code = _STOPPING[signal.Signals(stopped.number)]
        _say(f"\nstopped by {cause}: {remedy()}")
        _end_at_once(code)
    except BrokenPipeError:  # the reader of the output has closed it, as in `hmt models | head`
        return closed_output()
    except SystemExit as error:  # of a model in the user's own file, for instance
        _say(f"error: the process was asked to exit ({error.code})")
        return FAILED
    except BaseException as error:
        if is_debugged:
            _say("".join(traceback.format_exception(error)).rstrip())
        code, text = failed(error)
        discard_unwritable_output()
        _say(text)
        return code


def failed(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of an error. The traceback of an unexpected one is written to a file."""
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError):
        return FAILED, (
            f"error: the memory is full ({what}): close other programs and run the same command again, or use fewer or "
            "smaller images"
        )
    if _devices.is_out_of_memory(error):
        return FAILED, (
            f"error: the device is out of memory ({what}): end other programs that use it, or lower the batch size, "
            "and run the command again"
        )
    if isinstance(error, (ValueError, TypeError, OSError, FloatingPointError, ImportError)):
        return FAILED, f"error: {str(error).strip() or type(error).__name__}"
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="hmt-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as reason:
        return UNEXPECTED, f"{text}error: unexpected {type(error).__name__}: {what} (no file for this text: {reason})"
    return UNEXPECTED, f"error: unexpected {type(error).__name__}: {what} (its traceback is in {file.name})"


def closed_output() -> int:
    """The exit code after the reader of the output has closed it."""
    discard_unwritable_output()
    return _CLOSED_OUTPUT


def discard_unwritable_output() -> None:
    """Discards output that can't be written: Python would try again when it exits, and fail with a traceback."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _in_thread(command: Callable[[], None]) -> None:
    result: concurrent.futures.Future[None] = concurrent.futures.Future()

    def work():
        try:
            result.set_result(command())
        except BaseException as error:
            result.set_exception(error)

    # As a daemon, so that a command that was stopped does not keep the process.
    threading.Thread(target=work, name="hmt", daemon=True).start()
    result.result()


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Raises `_Stopped` on Ctrl-C and SIGTERM. Signals that the process ignores, as with `nohup`, stay ignored."""

    def stop(number, _):
        raise _Stopped(number)

    former = {}
    try:
        if threading.current_thread() is threading.main_thread():  # Python refuses handlers of other threads
            for number in _STOPPING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not a handler of Python's
                    former[number] = signal.signal(number, stop)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, AttributeError):  # a closed pipe, or no stderr at all
        print(text, file=sys.stderr, flush=True)


def _end_at_once(code: int) -> NoReturn:
    with contextlib.suppress(OSError, AttributeError):
        sys.stdout.flush()
    os._exit(code)
