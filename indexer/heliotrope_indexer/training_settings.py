"""What `heliotrope train` is told: by defaults, by hand, or by `heliotrope tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from heliotrope_indexer.errors import SettingsError

DAY_S = 86_400.0

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class TrainingSettings(BaseModel):
    """All settings of one training run. The file that `tune` writes is this as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimension: Annotated[int, Field(ge=2, le=1_024)] = 64
    """d of the item vectors."""
    text_axes: Annotated[int, Field(ge=1, le=1_024)] = 128
    """Leading principal axes of the text features that W sees."""
    half_lives_s: Annotated[tuple[_Positive, ...], Field(min_length=1, max_length=4)] = (300.0, 30 * DAY_S)
    """Where the learned half-lives start, one for each horizon."""
    popularity_half_life_s: _Positive = 30 * DAY_S
    """Of the live count; fixed, as the counts are computed once."""
    rating_center: _Share = 0.0
    """Neutral rating as a fraction of the highest: ratings below push away. 0 takes every rating as interest."""
    other_weight: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Weight in the loss of events that are not positive but tell what people turn to, such as low ratings."""
    l2: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Weight in the loss of the squared length of the targets' vectors."""
    residual_l2: Annotated[float, Field(ge=0, le=10)] = 0.3
    """Weight in the loss of the mean squared length of the residuals of all items: the fewer events an item has, the
    more it stands on its text.
    """
    residual_dropout: _Share = 0.1
    """Share of items whose residual and bias are left out of a batch, so that text learns to stand alone."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-3
    epochs: Annotated[int, Field(ge=1, le=1_000)] = 30
    """At most; the best epoch on the validation part is kept."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Epochs without a better NDCG@10 after which training stops."""
    negatives: Annotated[int, Field(ge=1, le=65_536)] = 2_048
    """Drawn items that a batch shares, half of them by popularity, half evenly."""
    context: Annotated[int, Field(ge=1, le=4_096)] = 256
    """Events of the history that a target sees at least, where there are as many."""
    batch_targets: Annotated[int, Field(ge=1, le=65_536)] = 1_024
    next_k: Annotated[int, Field(ge=1, le=64)] = 1
    """A target is asked 0 to next_k - 1 events ahead: the history ends at random that much earlier."""
    bias: bool = True
    residual: bool = True
    decay: bool = True
    negative_feedback: bool = True
    """False: dislikes, hides and low ratings move no interest vector."""
    prior: bool = True
    """False: a user without events has a zero vector."""
    popularity: bool = True
    """False: no live popularity."""
    neighbours: bool = True
    """False: no item speaks for its neighbours."""
    neighbour_ridge: _Positive = 30.0
    """Users that must have taken two items together before it means much."""
    seed: Annotated[int, Field(ge=0)] = 0

    @classmethod
    def read(cls, path: Path) -> TrainingSettings:
        """Raises SettingsError for a file that is missing or holds something else."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SettingsError(f"there is no settings file {path}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} cannot be read: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise SettingsError(f"{path}: {where}: {first['msg']}") from error
