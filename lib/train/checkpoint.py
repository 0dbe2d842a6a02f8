"""What a run writes while it trains: its state, its snapshots, its metrics, and its result."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from lib.data import Dataset
from lib.distributed.collectives import all_reduce_max, rank_and_world_size
from lib.errors import InputError
from lib.runs.export import export_encoder
from lib.runs.files import check_architecture, load_state, save_state, save_weights, write_json
from lib.runs.folder import Run
from lib.train.objective import Objective


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict on the CPU, sharded tensors gathered; all ranks must call it."""
    options = StateDictOptions(full_state_dict=True)
    state: dict[str, Any] = get_model_state_dict(module, options=options)
    return {k: v.detach().cpu() for k, v in state.items()}


class Checkpoint:
    """The files of one run that is being trained. Rank 0 writes them; all ranks must call."""

    def __init__(
        self, run: Run, objective: Objective, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.run, self.objective, self.optimizer, self.device = run, objective, optimizer, device
        self.writes = rank_and_world_size()[0] == 0

    def save(self, position: dict[str, Any]) -> None:
        """The state that `resume` goes on from; `position` holds tensors and plain types."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = {
            **self._version(),
            "position": position,
            "objective": full_state_dict(self.objective),
            "optimizer": get_optimizer_state_dict(self.objective, self.optimizer, options=options),
        }
        if self.writes:
            save_state(self.run.held() / "state.pt", state)

    def _version(self) -> dict[str, str]:
        return {"run": self.run.folder.name, "torch": str(torch.__version__).split("+")[0]}

    def resume(self) -> dict[str, Any] | None:
        """Loads the saved state and returns its position, or None if there is none.

        Raises InputError for a state that is damaged, of another run or of another torch.
        """
        path = self.run.folder / "state.pt"
        found = path.is_file()
        if all_reduce_max(found) != found:
            rank = rank_and_world_size()[0]
            raise InputError(
                f"process {rank} does not see {path}; set UMAE_OUTPUTS to a folder that all nodes "
                "share"
            )
        if not found:
            return None
        state, own = load_state(path), self._version()
        if missing := sorted({*own, "position", "objective", "optimizer"} - state.keys()):
            raise InputError(
                f"{path} lacks {missing[0]!r}; delete it to train this run from its start"
            )
        if state["run"] != own["run"]:
            raise InputError(f"{path} belongs to another run; delete it to start this one again")
        if state["torch"] != own["torch"]:
            raise InputError(
                f"{path} was written by torch {state['torch']}, this is {own['torch']}: its "
                "weights would not be those of one run; install that version to resume, or delete "
                "the file to train from the start"
            )
        check_architecture(self.objective, state["objective"], path)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.objective, state["objective"], options=options)
        set_optimizer_state_dict(
            self.objective, self.optimizer, state["optimizer"], options=options
        )
        return state["position"]

    def log(self, line: dict[str, Any], seconds: float, steps: int) -> None:
        """Adds a line to metrics.jsonl, and what depends on the machine's speed to timing.jsonl.

        `seconds`: what the last `steps` of the epoch took; an attempt that resumed took no others.
        """
        if self.writes:
            self.run.add_line("metrics.jsonl", line)
            timing = {"epoch": line["epoch"], "steps": steps, "seconds": seconds}
            self.run.add_line("timing.jsonl", timing)

    def snapshot(self, epoch: int) -> None:
        """Keeps the weights after `epoch`, for probes along training."""
        weights = full_state_dict(self.objective.mae)
        if self.writes:
            self.run.held()
            save_weights(self.run.weights_path(epoch), weights)

    def finish(self, result: dict[str, Any], data: Dataset) -> None:
        """Final weights, the encoder for timm, and last the result that marks the run finished."""
        weights = full_state_dict(self.objective.mae)
        if self.writes:
            folder = self.run.held()
            save_weights(folder / "model.safetensors", weights)
            export_encoder(weights, self.run.config, folder / "encoder", data, result)
            write_json(folder / "result.json", {**result, **self.run.origin()})
            (folder / "state.pt").unlink(missing_ok=True)
