"""`[adapter]` of a job file: which parameters train. `anabranch.terms` is where others import it from."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from anabranch.names import Name
from anabranch.unsaid import unsaid

MODULE = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"  # "classifier", "encoder.layer.0.attention"
Modules = tuple[Annotated[str, Field(pattern=MODULE, max_length=200)], ...]

OF_LORA = ("rank", "alpha", "dropout", "targets", "freeze_a", "ranks")


class Adapter(BaseModel, extra="forbid", frozen=True):
    """What of the task's model trains and travels; the rest stays as it is, at every silo alike. docs/adapters.md.

    lora: pairs of small matrices beside `targets`, and `heads` whole. head: `heads` alone. full: what the task left
    trainable.
    """

    kind: Literal["lora", "head", "full"] = "lora"
    rank: int = Field(default=8, ge=1, le=65536)
    alpha: float = Field(default=16.0, gt=0)  # what the pair adds is scaled by alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what goes into the pair
    targets: (
        Modules | Literal["all-linear"]
    ) = ()  # ends of module names; none: what peft takes for the architecture
    heads: Modules = ()  # ends of names of modules that are trained whole
    freeze_a: bool = False  # FFA-LoRA: only B trains and travels, so that averages are exact
    ranks: dict[Name, Annotated[int, Field(ge=1)]] | None = Field(
        default=None, exclude_if=unsaid
    )  # silo → how many of the `rank` components it trains; others train all

    @model_validator(mode="after")
    def _fits(self) -> "Adapter":
        for key in OF_LORA if self.kind != "lora" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is a key of lora; {self.kind} does not read it, leave it out")
        if self.kind == "head" and not self.heads:
            raise ValueError(
                'kind = "head" trains heads alone: name them, for example heads = ["classifier"]'
            )
        for silo, rank in (self.ranks or {}).items():
            if rank > self.rank:
                raise ValueError(f"ranks.{silo} is {rank}, above rank = {self.rank}, which is what travels")
        if self.kind == "full" and self.heads:
            raise ValueError(
                "heads is a key of lora and head; with full everything the task leaves trainable trains"
            )
        return self

    def rank_at(self, silo: str | None) -> int:
        """How many components of each pair `silo` trains; None: somebody who is no silo of the job."""
        return (self.ranks or {}).get(silo or "", self.rank)
