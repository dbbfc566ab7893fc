"""What every config object is made of: checked numbers, frozen fields. How two of them differ."""

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


def differences(key: str, old: object, new: object) -> list[tuple[str, object, object]]:
    """Key, old and new value of what differs in nested dicts, which themselves stand at `key`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for name in sorted(set(old) | set(new))
            for found in differences(f"{key}.{name}".lstrip("."), old.get(name), new.get(name))
        ]
    return [] if old == new else [(key, old, new)]
