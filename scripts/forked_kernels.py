"""Notebook kernels that are forked: papermill starts one, talks to it and ends it as ever.

Many notebooks in a row then import torch, timm and matplotlib once (`scripts.forked`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import Any
from unittest.mock import patch

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from scripts.forked import Forked


class ForkedKernel(LocalProvisioner):
    """What Jupyter starts, signals and ends a kernel's process by."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        file = cmd[cmd.index("-f") + 1 :]
        cwd = kwargs.get("cwd") or os.getcwd()
        self.process = Forked(kernel, file, env=kwargs["env"], cwd=cwd)
        self.pid = self.pgid = self.process.pid
        self.cwd = cwd
        return self.connection_info


def kernel(arguments: list[str]) -> None:
    """As `python -m ipykernel_launcher -f FILE`, which chooses how figures are shown.

    Without ipykernel's notes for somebody who starts a kernel by hand.
    """
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    inline = "module://matplotlib_inline.backend_inline"
    matplotlib.rcParams["backend"] = os.environ.get("MPLBACKEND", inline)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    IPKernelApp.launch_instance(["-f", *arguments, "--log-level=ERROR"])


@contextmanager
def forked_kernels() -> Iterator[None]:
    """Kernels that are started within are forked."""
    factory = KernelProvisionerFactory.instance()
    entry = EntryPoint("forked", f"{__name__}:ForkedKernel", factory.GROUP_NAME)
    before = factory.default_provisioner_name
    with patch.dict(factory.provisioners, forked=entry):
        factory.default_provisioner_name = "forked"
        try:
            yield
        finally:
            factory.default_provisioner_name = before
