"""What a task's model takes, so that a reviver can make inputs of that kind (docs/revival.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """Pictures of `shape` (channels, height, width), as the model gets them, with values from `low` to `high`."""

    shape: tuple[int, int, int]
    low: float = 0.0
    high: float = 1.0
    flips: bool = True  # a picture and its mirror image mean the same


@dataclass(frozen=True)
class Texts:
    """Token ids (n, `length`), `pad` where there are none any more: the model sees by itself where that is.

    A reviver makes vectors, not ids, and puts them in the place of what the module called `embedding` answers.
    Raises ValueError for a length below 4.
    """

    length: int  # tokens, as the model gets them
    embedding: str  # the module that looks ids up; the end of its name is enough: "word_embeddings"
    pad: int = 0
    first: int | None = None  # the token that every text begins with, such as [CLS]

    def __post_init__(self) -> None:
        if self.length < 4:
            raise ValueError(f"Texts(length={self.length}): 4 tokens or more")
