"""The numeric profile as digests: the same bits on every CPU, today and in ten years.

If a digest changes, replay of every model ever released under this profile fails: either undo the change, or
give the profile a new name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numpy._core import _multiarray_umath as built

from anabranch.rules.profile import NUMERIC_PROFILE

ROOT = Path(__file__).parents[2]
DISPATCHED = [name for name in built.__cpu_dispatch__ if built.__cpu_features__.get(name)]

GOLDEN = {
    "fedavg-examples-sgd": {
        "coefficients": ["0x1.71acd2b6fd3a4p-4", "0x1.ca65a92058b8dp-6", "0x1.c37738601d92fp-1"],
        "parameters": "a1e6f90c38bd772e70c4ab96bd8cd4d51be74338daf03312ad20fcb23c524495",
        "optimizer": None,
        "ema": "429b948b070ae7278704af38d7e45a460a73e0b3c6af9c84941b07cd82d8988b",
    },
    "fedbuff-root-count-momentum": {
        "coefficients": ["0x1.5555555555555p-2", "0x1.e2b7dddfefa65p-4", "0x1.8a2345cc04427p-3"],
        "parameters": "0aadb0e2b953f7fbd172b8d7307ce871d08116449e5c6c10d0335fd87017fdc7",
        "optimizer": "4dcf7cf6744889d4149bcffb63f1cf53529fc3d1d97400ded9d4459d190f1c14",
        "ema": "8958cdd6cc4f4a5a9cbdc81e0415457ecac5cfb9f50ee829270fb0f1a0810f45",
    },
    "fedbuff-inverse-weights-adam": {
        "coefficients": ["0x1.dcc98abd7928ap-3", "0x1.279bad0f12cc6p-7", "0x1.842f2e9c656aap-1"],
        "parameters": "833b5f46e7b26e2ef970357c15c0f3e1c00f1c5573353abdf47bea7543c63fa6",
        "optimizer": "b05e235f703f787c6036295f5bc82f87dfb5ffcb68eb55a621ddaf9ba086b997",
        "ema": None,
    },
    "fedasync-root-sgd": {
        "coefficients": ["0x1.b27247aff148ep-3", "0x1.b27247aff148ep-3", "-0x1.b27247aff148ep-3"],
        "parameters": "ec03c1968d74fba6e5fd4086a2ae0e8a5d23b113877a5630f044bdfe368e72fb",
        "optimizer": None,
        "ema": "b5202c15593c39d35d8ec729b96249e263fc2b8b4213e0d5987544c70b763b0f",
    },
    "fedasync-hinge-momentum": {
        "coefficients": ["0x1.eb851eb851eb8p-5", "0x1.eb851eb851eb8p-5", "-0x1.eb851eb851eb8p-5"],
        "parameters": "ef3dbcbd5cddfc2706e3fd2c59c5bc0b84855bc5332601358582857fca24157e",
        "optimizer": "e462a10c8e80641663097f4ea04da4ff083d8e4ce52fc5143511358fb990c698",
        "ema": None,
    },
    "afl-dw-yogi": {
        "coefficients": ["0x1.0000000000000p-1"],
        "parameters": "8cf6778815369d780eacd8138f012cae5b6cb5665de96076e2d7e3c03c796ca4",
        "optimizer": "2b720a39f831dbe7863bcb0919674642ec2e50342f476166a7db18c5fe8ab53b",
        "ema": None,
    },
    "ca2fl-adamw": {
        "coefficients": [
            "0x1.5555555555555p-2",
            "0x1.5555555555555p-2",
            "0x1.5555555555555p-2",
            "-0x1.1111111111110p-3",
            "0x1.999999999999ap-3",
        ],
        "parameters": "1016df5c3e0c58b28590ab60d44bc3838d3e2247b165ec3007c9c21d8abd8740",
        "optimizer": "5dc5c9c449acb5fa3e5fc1f352fb303f87dbbff4a36adb89e7008eff7e01d31b",
        "ema": "042e5a70a6440812ac9f8ad178efb2007771ee49a174386a3b60e85d16301860",
    },
    "fedcompass-root-sgd": {
        "coefficients": [
            "0x1.70a3d70a3d70ap-3",
            "0x1.04aaf7cff72bcp-4",
            "0x1.a9ab36e693f5dp-4",
            "0x1.04aaf7cff72bcp-4",
            "0x1.a9ab36e693f5dp-4",
            "-0x1.572b175b4590cp-3",
        ],
        "parameters": "bd7868e9453b0c14ef811509269c7217491fe4827e40c4a6069d2e08a8954477",
        "optimizer": None,
        "ema": "e5428e8b1e6fb23c7a2a3bb95cfeab733a236b0e37a1d7587057518e85adab73",
    },
    "fedfix-sgd": {
        "coefficients": ["0x1.0000000000000p-1", "0x1.999999999999ap-2", "0x1.47ae147ae147bp-2"],
        "parameters": "78d3536a2e82d7ed94c15de17f7afc333d08a73270c60de08ecd884321d6ea97",
        "optimizer": None,
        "ema": "fa9586626f7f843f5df096309b6015e8088b8bc194be50a6fc7d281426773e64",
    },
}


def run(program: list[str], without: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NPY_DISABLE_CPU_FEATURES": " ".join(without)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("without", [[], DISPATCHED[-1:], DISPATCHED], ids=["all", "one-less", "baseline"])
def test_the_digests_do_not_depend_on_vector_instructions(without):
    printed = run([sys.executable, str(ROOT / "tests/rules/golden.py")], without)
    assert json.loads(printed) == GOLDEN, f"this is no longer {NUMERIC_PROFILE}"


def test_the_instructions_are_really_switched_off():
    """Else the test above would prove nothing."""
    show = (
        "from numpy._core import _multiarray_umath as m;"
        "print(*(name for name in m.__cpu_dispatch__ if m.__cpu_features__[name]))"
    )
    assert run([sys.executable, "-c", show], DISPATCHED).split() == []
    assert run([sys.executable, "-c", show], []).split() == DISPATCHED
