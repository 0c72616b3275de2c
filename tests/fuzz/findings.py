"""What the regressions of findings share."""

from typing import Any

import pytest

from anabranch.errors import Reason, Refused

DEEP = b"[" * 2000 + b"]" * 2000


def refused(call: Any, *arguments: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    return caught.value.code
