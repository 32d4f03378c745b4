"""Processes that begin with everything imported: those of a run, and its notebooks' kernels.

A kernel imports for five seconds, and a run starts a dozen. So one process imports, and does
nothing else; all others are forked from it (the forkserver of `multiprocessing`). That is done on
Linux alone: elsewhere a fork may not be safe, and processes are spawned.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from importlib.metadata import EntryPoint
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from nvret.utils import processes

NAME = "nvret-forked"
IMPORTED = (
    "ipykernel.kernelapp", "matplotlib.pyplot",
    "transformers.models.auto.modeling_auto", "transformers.models.bert.modeling_bert",
    "nvret.encode", "nvret.evaluation", "nvret.study.false_negatives", "nvret.study.figures",
    "nvret.study.hardness", "nvret.study.ledger", "nvret.study.mining_figures",
    "nvret.study.notebooks", "nvret.study.tables", "nvret.study.targets", "nvret.training.head",
)  # fmt: skip


@cache
def context() -> BaseContext:
    """What makes the processes of a run. They have the environment of the first of them: see
    `nvret.utils.processes.serve`."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(IMPORTED))
    return found


def use() -> None:
    """Start the kernels of this process by `context`, where it forks; what they are forked from
    begins to import now."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()
        factory = KernelProvisionerFactory.instance()
        own = f"{__name__}:{Forked.__name__}"
        factory.provisioners[NAME] = EntryPoint(NAME, own, factory.GROUP_NAME)
        factory.default_provisioner_name = NAME


class Forked(LocalProvisioner):
    """As jupyter_client starts a kernel, but for what starts it."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        self.process = _Kernel(arguments, options["env"], options.get("cwd"))
        self.process.start()
        self.pid = self.process.pid
        return self.connection_info


class _Kernel(multiprocessing.get_context("forkserver").Process):
    """In the form of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], environment: dict[str, str], cwd: str | None) -> None:
        super().__init__(target=_serve, args=(arguments, environment, cwd))

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _serve(arguments: list[str], environment: dict[str, str], cwd: str | None) -> None:
    processes.serve(environment)
    os.setsid()
    if cwd:
        os.chdir(cwd)
    # Without whom it ends; read from the environment where it is imported, which was long ago
    own = f"--IPKernelApp.parent_handle={os.getppid()}"
    sys.argv = ["ipykernel_launcher", *arguments, own]
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()
