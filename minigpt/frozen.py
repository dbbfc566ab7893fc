"""What every config object is made of: checked numbers, frozen fields."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def whole(value: object) -> object:
    """Read 2e6 as the integer it is; anything else is left for the type check."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Positive = Annotated[int, BeforeValidator(whole), Field(gt=0, le=2**63 - 1)]
Count = Annotated[int, BeforeValidator(whole), Field(ge=0, le=2**63 - 1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Frozen(BaseModel):
    """A config object: unknown keys and wrong types are errors, fields never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
