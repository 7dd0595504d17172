"""What can be done with a run that was evaluated."""

from __future__ import annotations


def next_steps(run: str, model: str) -> str:
    """A line for each thing, with the command that does it.

    Args:
        run: the run's name; RUN= is left out of the commands of stages where it is the default.
        model: the folder of the base.
    """
    where = "" if run == "main" else f" RUN={run}"
    steps = {
        "对话 talk to it": f"make chat RUN={run}",  # without RUN, what talks is the run that merged last
        "原模型 the base": f"make chat{where} CHAT='--model {model}'",
        "网页 web page": f"make demo RUN={run}",
        "接口 OpenAI's API": f"make api RUN={run}",
        "llama.cpp, Ollama": f"make gguf{where}",
        "发布 publish": f"make publish{where} REPO=owner/name DRY_RUN=1",
    }
    return "\n".join(f"{what}:  {command}" for what, command in steps.items())
