"""Several processes that measure one store: how a process learns which share of it is its own."""

import concurrent.futures
import os
import threading
import warnings
from typing import Any

_PATIENCE = 300  # seconds to wait until all processes are there
_MOST_PORT = 65535


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> tuple[int, int]:
    """The number of this process, from 0, and the number of processes, which share the chunks of a store.

    Numbers without a coordinator are taken as they are, as in a job array. Otherwise the processes meet, if a
    coordinator is given or JAX recognises a cluster. They part again at once, because nothing that they do later needs
    another process, and one that dies would take the others with it.

    Raises:
      ValueError: for numbers that do not fit each other, or processes that do not meet.
    """
    if coordinator is None and (num_processes, process_id) != (None, None):
        if num_processes is None or process_id is None:
            raise ValueError("--num-processes and --process-id belong together: pass both, or neither")
        return _checked(process_id, num_processes), num_processes
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= _MOST_PORT:
            raise ValueError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:4321, got {coordinator!r}")
        if num_processes is not None and process_id is not None:
            _checked(process_id, num_processes)
    elif "1" in (os.environ.get("SLURM_NTASKS"), os.environ.get("OMPI_COMM_WORLD_SIZE")):
        return 0, 1  # a job of one process, to which JAX would give one of its devices only
    import jax

    if jax.distributed.is_initialized():
        return jax.process_index(), jax.process_count()
    given = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    try:
        _meet(given)
    except TimeoutError:
        raise ValueError(
            f"the other processes did not come within {_PATIENCE} seconds: start all of them together, with process "
            "ids of their own, or pass --num-processes 1 --process-id 0 to measure in this one alone"
        ) from None
    except Exception as error:  # whatever the recognition of clusters makes of this one
        return _alone(given, error)
    try:
        # The devices are made here, while all processes are there.
        return jax.process_index(), jax.process_count()
    finally:
        jax.distributed.shutdown()


def _meet(given: dict[str, Any]) -> None:
    """Starts JAX's coordinator in process 0, and waits until all processes are there."""
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # which would keep SIGTERM from ending the process
    met: concurrent.futures.Future[None] = concurrent.futures.Future()

    def work() -> None:
        try:
            # Beyond its own limit, JAX would abort the process.
            jax.distributed.initialize(**given, initialization_timeout=1000 * _PATIENCE)
            met.set_result(None)
        except Exception as error:
            met.set_exception(error)

    with warnings.catch_warnings():
        if "JOB_COMPLETION_INDEX" not in os.environ:  # a pod of Kubernetes that is no part of an indexed job
            warnings.filterwarnings("ignore", r"\s*Kubernetes environment detected", UserWarning)
        threading.Thread(target=work, name="hmt-join", daemon=True).start()
        met.result(timeout=_PATIENCE)


def _checked(process_id: int, num_processes: int) -> int:
    if process_id >= num_processes:
        raise ValueError(
            f"--process-id must be from 0 to {num_processes - 1}, got {process_id}: processes count from 0"
        )
    return process_id


def _alone(given: dict[str, Any], error: Exception) -> tuple[int, int]:
    """The share of a process for which JAX recognises no cluster, or one that it can't use."""
    import jax

    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if given["coordinator_address"] is not None:
        is_unknown = "must be defined" in text or "must be a nonnegative" in text
        reason = "JAX recognises no cluster here" if is_unknown else text
        remedy = "choose a --coordinator whose port is free on the machine of process 0"
        if None in given.values():
            remedy = "pass --num-processes and --process-id"
        raise ValueError(f"the processes can't meet ({reason}): {remedy}") from error
    if "must be called before" in text:  # JAX runs in this process already, and knows of all that there are
        return jax.process_index(), jax.process_count()
    if "should be defined" not in text:
        warnings.warn(
            f"JAX recognises a cluster here, but can't use it ({text}): this process measures all images; to share "
            "them, pass --num-processes and --process-id",
            stacklevel=2,
        )
    return 0, 1
