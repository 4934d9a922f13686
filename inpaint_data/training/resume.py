"""Where in an epoch a run stopped, and how Lightning resumes from there, on as many ranks as there are now."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from inpaint_data.errors import UsageError
from inpaint_data.order import Consumed

if TYPE_CHECKING:
    from inpaint_data.training.datamodule import InpaintDataModule


@dataclass(frozen=True)
class Start:
    """Where a stream began in an epoch: behind so many steps of other readers, and the shards that they had begun.

    Attributes:
        steps: batches on each rank.
        begun: of each source the shards, by their places in its list.
    """

    steps: int
    begun: list[list[int]]


@dataclass(frozen=True)
class Streamed:
    """What earlier runs took from an epoch of shards that come one after another.

    Attributes:
        steps: batches on each rank.
        readers: how many there were, worker processes of all ranks.
        batch_size: samples in a batch.
        begun: of each source, which of the epoch's shards were begun, at most; as of `Start`.
        start: where these readers began.
        is_counted: whether shards were dealt out by their counts of samples.
    """

    steps: int
    readers: int
    batch_size: int
    begun: list[list[int]]
    start: Start
    is_counted: bool = False

    @property
    def dealt(self) -> tuple[int, int, bool]:
        """What decides which reader gets what."""
        return self.readers, self.batch_size, self.is_counted


@dataclass(frozen=True)
class Resume:
    """What earlier runs took from one epoch; nothing from any other."""

    epoch: int = 0
    consumed: list[Consumed] = field(default_factory=list)
    streamed: Streamed | None = None

    def of_epoch(self, epoch: int) -> Sequence[Consumed]:
        return self.consumed if epoch == self.epoch else ()

    def state(self, epoch: int, more: Consumed) -> dict[str, Any]:
        """For a checkpoint: what was consumed of an epoch, `more` after what is known here."""
        parts = [*self.of_epoch(epoch), *([more] if more.batches > 0 else [])]
        return {"epoch": epoch, "consumed": [[part.batch_size, part.batches] for part in parts]}

    def of_stream(self, epoch: int) -> Streamed | None:
        return self.streamed if epoch == self.epoch else None

    def state_of_stream(self, epoch: int, taken: Streamed, world: int) -> dict[str, Any]:
        """`state` of shards that come one after another."""
        consumed = [[taken.batch_size, taken.steps * world]] if taken.steps else []
        return {"epoch": epoch, "consumed": consumed, "streamed": asdict(taken)}

    @classmethod
    def load(cls, state: dict[str, Any]) -> "Resume":
        """Raises UsageError for a checkpoint that another version wrote."""
        try:
            consumed = [Consumed(int(size), int(count)) for size, count in state["consumed"]]
            streamed = state.get("streamed")
            if streamed is not None:
                start = Start(int(streamed["start"]["steps"]), list(map(list, streamed["start"]["begun"])))
                streamed = Streamed(**{**streamed, "begun": list(map(list, streamed["begun"])), "start": start})
            return cls(int(state["epoch"]), consumed, streamed)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint's place in the epoch cannot be read ({error}); start from weights"
            ) from None


class ResumeElsewhere(Callback):
    """Tells Lightning how far an epoch is in the steps of this run, whose ranks may be more or fewer than before.

    Lightning counts batches of a rank. What is left of the epoch decides where in that count the run resumes, so that
    the epoch ends with its last batch.
    """

    def __init__(self, module: "InpaintDataModule") -> None:
        self.module = module

    def on_load_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002 - Lightning's signature
        checkpoint: dict[str, Any],
    ) -> None:
        state = checkpoint.get(type(self.module).__qualname__)
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
        if not state or not progress or not state["consumed"] or trainer.state.fn != "fit":
            return
        resume = Resume.load(state)
        loader = self.module.train_dataloader()
        this = replace(self.module.next_pass("fit"), epoch=resume.epoch, consumed=(), streamed=None)
        step = loader.steps(this)
        left = 0
        if not progress["is_last_batch"]:
            self.module.resume = resume
            left = loader.left(replace(this, consumed=resume.consumed, streamed=resume.streamed))
        epochs = checkpoint["loops"]["fit_loop"].get("epoch_progress")
        if getattr(trainer, "overfit_batches", 0):
            epochs = None  # all of which are epoch 0 here
        if left:
            _go_on_with_epoch(epochs, resume.epoch)
        elif epochs is not None and epochs["current"]["completed"] > resume.epoch:
            # Lightning would give one batch of the next epoch, by the count of the last one.
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False
            return
        step -= left
        moved = step - progress["current"]["processed"]
        for name in ("ready", "started", "processed", "completed"):
            progress["current"][name] += moved


def _go_on_with_epoch(progress: dict[str, dict[str, int]] | None, epoch: int) -> None:
    """Count an epoch as begun alone, of which batches are left: whoever stops by `max_steps` has Lightning count it as
    done, and would begin the next one."""
    if progress is None or progress["current"]["processed"] <= epoch:
        return
    past = progress["current"]["processed"] - epoch
    for counts in progress.values():
        for name in ("processed", "completed"):
            counts[name] -= past
