"""A `transformers.Trainer` for one cycle: the job's steps, an order of the data that is the cycle's own, and saves in
the cycle's folder, so that an agent that was killed goes on inside the cycle.

Every cycle has a fresh optimizer and a fresh schedule of the learning rate, as a first `trainer.train()` has.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy, TrainOutput

from anabranch.terms import seconds
from silo_agent.training import saved

if TYPE_CHECKING:
    from transformers import Trainer

    from silo_agent.training.script import Cycle

_brought_optimizer: WeakKeyDictionary["Trainer", bool] = WeakKeyDictionary()  # of trainers that were seen
_GO_ON, _SAVE, _LEAVE = 0, 1, 2


def train(cycle: "Cycle", trainer: "Trainer") -> TrainOutput:
    """`trainer.train()` from the cycle's base, or from the last save of this cycle.

    Raises ValueError for a trainer with an optimizer of its own that has already seen another cycle.
    """
    _renew(trainer)
    args, seed = trainer.args, cycle.seed % 2**32
    args.max_steps, args.output_dir = cycle.steps, str(cycle.folder)
    args.seed = args.data_seed = trainer.accelerator.dataloader_config.data_seed = seed
    # When to save is the follower's to say. A best model of its own would need saves of the trainer's.
    args.save_strategy, args.save_total_limit, args.load_best_model_at_end = SaveStrategy.NO, 1, False
    follower = Follower(cycle)
    trainer.add_callback(follower)
    saved.seed_all(seed)
    try:
        output = trainer.train(resume_from_checkpoint=_last_save(cycle.folder))
    finally:
        trainer.remove_callback(follower)
    cycle.step = trainer.state.global_step
    return output


class Follower(TrainerCallback):  # type: ignore[misc]
    """Saves as the job file's `save_every` says, and when the agent stops, after which it ends the script."""

    def __init__(self, cycle: "Cycle") -> None:
        self._cycle = cycle
        self._every = seconds(cycle.config.training.save_every)
        self._saved_at = time.monotonic()
        self._order = _GO_ON

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._cycle.step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        due = time.monotonic() - self._saved_at >= self._every
        self._order = _agreed(_LEAVE if self._cycle.leaving else _SAVE if due else _GO_ON, args.device)
        # The end of the last step is the end of the cycle: nothing is left to save.
        control.should_save = self._order != _GO_ON and state.global_step < state.max_steps

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._saved_at = time.monotonic()
        if self._order == _LEAVE:
            raise SystemExit(0)


def _agreed(order: int, device: torch.device) -> int:
    """Rank 0's word: all ranks save at the same step, for saving may take all of them."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return order
    word = torch.tensor(order, device=device)
    dist.broadcast(word, 0)
    return int(word.item())


def _renew(trainer: "Trainer") -> None:
    """As if it had been made for this cycle: one trainer may serve all of them."""
    if trainer not in _brought_optimizer:
        _brought_optimizer[trainer] = trainer.optimizer is not None
    elif _brought_optimizer[trainer]:
        raise ValueError("a Trainer with an optimizer of your own serves one cycle: make it inside the loop")
    else:
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.model_wrapped = trainer.model


def _last_save(folder: Path) -> str | None:
    """The newest whole save. The state is what a trainer writes last: without it, it was killed while it saved."""
    saves = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for save in reversed(saves):
        try:
            json.loads((save / "trainer_state.json").read_text("utf-8"))
            return str(save)
        except (OSError, ValueError):
            continue
    return None
