"""How to chat with what the recipe makes, as the sections of a model card: a tool each, commands to be pasted."""

from __future__ import annotations

from dataclasses import dataclass

from recipe.checkpoint.base_origin import BaseOrigin
from recipe.pipeline.stage import shown

# What vLLM takes for --max-lora-rank; its default, 16, refuses adapters of a higher rank.
# https://docs.vllm.ai/en/latest/api/vllm/config/lora/
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
DOWNLOADS = {
    "hf": "hf download {repo} --local-dir model",
    "modelscope": "modelscope download --model {repo} --local_dir model",
}


@dataclass(frozen=True)
class Place:
    """Where a reader of the card finds the files.

    Attributes:
        repo: owner/name at a hub; None in the folder of a run.
        source: which hub.
    """

    repo: str | None = None
    source: str = "hf"

    @property
    def loaded_from(self) -> str:
        """What libraries load: Hugging Face's repositories by their name, others from a folder."""
        return self.repo if self.repo and self.source == "hf" else self.folder

    @property
    def folder(self) -> str:
        return "model" if self.repo else "path/to/this/folder"

    @property
    def download(self) -> str:
        """The command, with its line feed, that fetches `folder`; nothing for the folder of a run."""
        return DOWNLOADS[self.source].format(repo=self.repo) + "\n" if self.repo else ""

    @property
    def first(self) -> str:
        """The same where `loaded_from` is a folder that must be fetched first."""
        return self.download if self.repo and self.source != "hf" else ""


def base_reference(base: BaseOrigin, place: Place) -> str:
    """What loads the base in the layout that the adapter fits: its repository, or a folder."""
    if place.repo is None:
        return shown(base.folder)
    if base.repo and not base.internlm2 and place.source == "hf":
        return base.repo
    return "path/to/the/base"


def _shell(text: str) -> str:
    return f"```bash\n{text.strip()}\n```\n"


def _fetched(place: Place) -> str:
    return f"{_shell(place.first)}\n" if place.first else ""


def transformers(place: Place) -> str:
    """For a merged model."""
    return f"""### transformers

{_fetched(place)}```python
from transformers import pipeline

chat = pipeline("text-generation", "{place.loaded_from}")
messages = [{{"role": "user", "content": "你是谁？"}}]
print(chat(messages, max_new_tokens=128, do_sample=False)[0]["generated_text"][-1]["content"])
```

No code of a model repository is needed: leave `trust_remote_code` off.
"""


def peft(base: BaseOrigin, place: Place) -> str:
    """For an adapter."""
    reference = base_reference(base, place)
    return f"""### PEFT

{_fetched(place)}```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{reference}", dtype="auto")
model = PeftModel.from_pretrained(base, "{place.loaded_from}")
tokenizer = AutoTokenizer.from_pretrained("{place.loaded_from}")
messages = [{{"role": "user", "content": "你是谁？"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
reply = model.generate(**inputs, max_new_tokens=128, do_sample=False)
print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
{_layout_note(base, place)}"""


def _layout_note(base: BaseOrigin, place: Place) -> str:
    if place.repo is None or not base.internlm2:
        return ""
    return f"""
`{base.repo}` holds InternLM2's own layout, which this adapter does not fit: it was trained on the same weights in the
Llama layout. `make model` of the recipe writes them to `work/models/`, without any code of that repository; name that
folder as the base. The merged model needs no such step.
"""


def vllm_merged(place: Place) -> str:
    """For a merged model."""
    return f"""### vLLM

{_shell(f"{place.first}vllm serve {place.loaded_from} --served-model-name assistant")}"""


def vllm_adapter(base: BaseOrigin, place: Place, rank: int) -> str:
    """For an adapter of this rank."""
    smallest = next((each for each in VLLM_RANKS if each >= rank), rank)
    command = (
        f"{place.first}vllm serve {base_reference(base, place)} --enable-lora --max-lora-rank {smallest} "
        f"--lora-modules assistant={place.loaded_from}"
    )
    return f"""### vLLM

{_shell(command)}
Ask for the model `assistant`. The adapter's rank is {rank}; vLLM's default takes 16 at most.
"""


def llama_cpp_merged(place: Place) -> str:
    """For a merged model, which llama.cpp reads once it is converted."""
    commands = (
        f"{place.download}python llama.cpp/convert_hf_to_gguf.py {place.folder} --outfile model.gguf\n"
        f"llama-server --model model.gguf --jinja"
    )
    return f"""### llama.cpp and Ollama

`make gguf` of the recipe writes GGUF files and a Modelfile. llama.cpp's own converter takes this folder too:

{_shell(commands)}"""


def llama_cpp_gguf(place: Place, file: str) -> str:
    """For a folder of GGUF files. file: the one to load."""
    serve = f"{place.download}llama-server --model {place.folder}/{file} --jinja"
    run = f"cd {place.folder}\nollama create my-assistant -f Modelfile && ollama run my-assistant"
    return f"""### llama.cpp

{_shell(serve)}
### Ollama

{_shell(run)}"""
