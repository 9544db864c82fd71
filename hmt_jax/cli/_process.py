"""The process of a command: its signals, its exit code, and the one line that an error becomes."""

import concurrent.futures
import contextlib
import contextvars
import io
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

CLOSED_OUTPUT = 141  # the exit code of a process that SIGPIPE ends
_ONEDNN_FLAGS = (
    "--xla_cpu_experimental_onednn_custom_call=true --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
)
_SECONDS_ASLEEP = 0.1
_SECONDS_TO_FINISH = 10
_FAILED, _UNEXPECTED = 2, 1
_INTERRUPTED, _RESUMABLE = 130, 75  # as shells count signals, and EX_TEMPFAIL of sysexits.h
_STOPPING = {signal.SIGINT: ("Ctrl-C", _INTERRUPTED), signal.SIGTERM: ("SIGTERM", _RESUMABLE)}


class _Stop:
    """Whether SIGTERM has come, for work that ends itself then."""

    def __init__(self) -> None:
        self.has_come, self.is_put_off = threading.Event(), False


_STOP: contextvars.ContextVar[_Stop | None] = contextvars.ContextVar("_STOP", default=None)


@contextlib.contextmanager
def putting_off() -> Iterator[Callable[[], bool]]:
    """Lets SIGTERM wait, for at most 10 s, for work that can keep its state. Yields a function: whether it has come."""
    stop = _STOP.get() or _Stop()  # a new one if no command is running
    stop.is_put_off = True
    try:
        yield stop.has_come.is_set
    finally:
        stop.is_put_off = False


def main(
    parsed: Callable[[list[str]], Any],
    arguments: list[str],
    *,
    program: str,
    reworded: Callable[[str], str] = lambda text: text,
) -> int:
    """The exit code of the command that arguments name, after it has run.

    It is 0, 2 for an error of the user's, 1 for an unexpected one, 130 after Ctrl-C, and 75 after SIGTERM: the same
    command then goes on.

    Args:
      parsed: the command with its arguments, an object with `run` and `remedy`.
      arguments: the arguments.
      program: what was typed before them.
      reworded: what a message of the library says in words of the command line.
    """
    typed = f"{program} {shlex.join(arguments)}".rstrip()
    chosen: list[Any] = []

    def command() -> int:
        _check_once(arguments)
        # TFDS warns through absl if a decoder is not installed or a folder holds no data. Our own messages say more.
        logging.getLogger("absl").setLevel(logging.ERROR)
        if (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8":
            os.environ.setdefault("PYTHON_TYRO_UTF8_BOXES", "False")
        try:
            chosen.append(parsed(arguments))
        except SystemExit as error:  # tyro has printed the help or what is wrong
            return int(error.code or 0)
        use_fast_convolutions()
        chosen[0].run()
        return 0

    def remedy() -> str:
        return chosen[0].remedy(typed) if chosen else f"start again with: {typed}"

    return run(command, remedy, reworded=reworded, is_debugged="--debug" in arguments)


def _check_once(arguments: list[str]) -> None:
    """Raises ValueError for an option that is there twice, of which tyro would take the last."""
    options = [argument.partition("=")[0] for argument in arguments if re.match("--[a-z]", argument)]
    if doubled := [option for option in dict.fromkeys(options) if options.count(option) > 1]:
        raise ValueError(f"{doubled[0]} is there twice: pass it once, with all its values after it")


def run(
    command: Callable[[], int],
    remedy: Callable[[], str],
    *,
    reworded: Callable[[str], str],
    is_debugged: bool = False,
) -> int:
    """The exit code of a command. An error or a signal is reported in one line on stderr.

    The command runs in a thread of its own, because Python handles signals only in the main thread, and there only
    after compiled code has returned, which may take minutes. A signal ends the process at once, so the files of a
    command must be complete at any moment; only work within `putting_off` may first keep its state.

    Args:
      command: the command, which returns its exit code.
      remedy: returns the advice that is printed after a signal.
      reworded: turns a message of the library into words of the command line.
      is_debugged: whether an error shows its traceback.
    """
    escape_unwritable_characters()
    requested = _Stop()
    try:
        with _signals_end(remedy, requested), _short_warnings(reworded):
            try:
                return _in_thread(command, requested)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it, as in `hmt models | head`
        discard_unwritable_output()
        return CLOSED_OUTPUT
    except BaseException as error:
        if requested.has_come.is_set() and _is_preempted(error):
            _say(_stopped("SIGTERM", remedy))
            return _RESUMABLE
        if is_debugged:
            _say("".join(traceback.format_exception(error)).rstrip())
        code, text = failed(error)
        discard_unwritable_output()
        _say(reworded(text))
        return code


def _is_preempted(error: BaseException) -> bool:
    from hmt_jax import checkpoints

    return isinstance(error, checkpoints.PreemptedError)


def use_fast_convolutions() -> None:
    """Lets XLA on CPU convolve with oneDNN: a ResNet is measured 1.4 times as fast, with equal margins up to rounding.

    XLA reads its flags when JAX first looks for devices. An unknown flag would end the process, and other releases do
    not know these. XLA cannot write programs with such convolutions into the compilation cache, so every run compiles
    them anew.
    """
    import jaxlib

    if not jaxlib.__version__.startswith("0.12."):
        return
    if os.environ.setdefault("XLA_FLAGS", _ONEDNN_FLAGS) == _ONEDNN_FLAGS:
        cannot_write = r"Error writing persistent compilation cache entry .*std::bad_alloc"
        warnings.filterwarnings("ignore", cannot_write, UserWarning)


def escape_unwritable_characters() -> None:
    """Lets stdout and stderr escape characters that their encoding lacks, which names of files may contain."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def failed(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of an error. The traceback of an unexpected one is written to a file."""
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    from hmt_jax import _devices

    if isinstance(error, MemoryError):
        return _FAILED, (
            f"error: the memory is full ({what}): close other programs and run the same command again, or use fewer or "
            "smaller images"
        )
    if _devices.is_out_of_memory(error):
        return _FAILED, (
            f"error: the device is out of memory ({what}): end other programs that use it, or lower the batch size, "
            "and run the command again"
        )
    if isinstance(error, (ValueError, OSError, FloatingPointError, ImportError)):
        return _FAILED, f"error: {str(error).strip() or type(error).__name__}"
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="hmt-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError as reason:
        return (
            _UNEXPECTED,
            f"{text}error: unexpected {type(error).__name__}: {what} (no file for its traceback: {reason})",
        )
    return _UNEXPECTED, f"error: unexpected {type(error).__name__}: {what} (the traceback is in {file.name})"


def discard_unwritable_output() -> None:
    """Discards output that can't be written: Python would try again when it exits, and fail with a traceback."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def _in_thread(command: Callable[[], int], requested: _Stop) -> int:
    result: concurrent.futures.Future[int] = concurrent.futures.Future()
    context = contextvars.copy_context()
    context.run(_STOP.set, requested)

    def work():
        try:
            result.set_result(context.run(command))
        except BaseException as error:
            result.set_exception(error)

    # As a daemon, so that a command that was stopped does not keep the process alive.
    threading.Thread(target=work, name="hmt", daemon=True).start()
    # The system may hand a signal to any thread. Python then handles it when the main thread next wakes up.
    while not concurrent.futures.wait([result], timeout=_SECONDS_ASLEEP).done:
        pass
    return result.result()


@contextlib.contextmanager
def _signals_end(remedy: Callable[[], str], requested: _Stop) -> Iterator[None]:
    """Ends the process on Ctrl-C and SIGTERM, after saying how to go on."""

    def stop(number, _):
        if number == signal.SIGTERM and requested.is_put_off and not requested.has_come.is_set():
            requested.has_come.set()
            timer = threading.Timer(_SECONDS_TO_FINISH, end, (number,))
            timer.daemon = True
            timer.start()
        else:
            end(number)

    def end(number):
        cause, code = _STOPPING[signal.Signals(number)]
        _say(_stopped(cause, remedy))
        with contextlib.suppress(OSError, AttributeError):
            sys.stdout.flush()
        os._exit(code)

    with handled(stop):
        yield


def _stopped(cause: str, remedy: Callable[[], str]) -> str:
    return f"\nstopped by {cause}: {remedy()}"


@contextlib.contextmanager
def handled(stop: Callable[[int, Any], None]) -> Iterator[None]:
    """Calls `stop` on Ctrl-C and SIGTERM, except for signals that the process ignores, as with `nohup`."""
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


@contextlib.contextmanager
def _short_warnings(reworded: Callable[[str], str]) -> Iterator[None]:
    """Prints warnings as one line, without the place in the code."""
    former = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {reworded(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = former


def _say(text: str) -> None:
    with contextlib.suppress(OSError, AttributeError):  # a closed pipe, or no stderr at all
        print(text, file=sys.stderr, flush=True)
