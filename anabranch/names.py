"""What things are called."""

from typing import Annotated

from pydantic import Field

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # silos, jobs, tiers, data bindings: a DNS label
Name = Annotated[str, Field(pattern=NAME)]
