"""What a training does not use is not imported."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from recipe.stages import config
from recipe.training import unused_libraries

# What XTuner's trainer imports, and an adapter of PEFT's, in a process of its own. It prints what is loaded then.
IMPORTS = """
import sys
from recipe.training import unused_libraries, xtuner
unused_libraries.one_config = True
with unused_libraries.left_out(unused_libraries.unused("", deepspeed=False)):
    for name in xtuner.IMPORTED:
        __import__(name)
    import peft, torch, xtuner.tools.train
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["0"]), model)
print("loaded:", *{"bitsandbytes", "deepspeed"} & set(sys.modules))
import bitsandbytes  # for whoever wants it afterwards
"""


@pytest.mark.parametrize(
    ("preset", "deepspeed", "names"),
    [
        ("fast", False, ["bitsandbytes", "deepspeed"]),
        ("lora", True, ["bitsandbytes"]),
        ("qlora", False, ["deepspeed"]),
        ("miniature", True, []),
    ],
)
def test_what_a_config_does_not_name_is_unused(preset: str, deepspeed: bool, names: list[str]) -> None:
    text = config.load_preset(preset).pretty_text
    assert unused_libraries.unused(text, deepspeed=deepspeed) == names


def test_an_optimizer_of_bitsandbytes_is_used() -> None:
    chosen = config.load_preset("fast")
    config.override(chosen, ["optim_wrapper.optimizer.type=bitsandbytes.optim.PagedAdamW32bit"])
    assert unused_libraries.unused(chosen.pretty_text, deepspeed=False) == ["deepspeed"]


def test_the_trainer_and_an_adapter_do_without() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("one_config", [True, False])
def test_nothing_is_left_out_of_a_process_that_trains_by_several_configs(
    one_config: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused_libraries, "one_config", one_config)
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with unused_libraries.left_out(["this", "sys"]):
        assert (importlib.util.find_spec("this") is None) is one_config
        assert importlib.util.find_spec("sys") is not None  # loaded already
    assert importlib.util.find_spec("this") is not None
