"""What goes to the Hub: the generation engine as a repository that any masked diffusion model there can call.

save_custom_generate("edlm-generate")
huggingface_hub.upload_folder(repo_id="user/edlm-generate", folder_path="edlm-generate")
"""

import re
import tempfile
from importlib.metadata import requires
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from edlm_hf.modeling import custom_generate

CARD = """\
---
library_name: transformers
license: apache-2.0
tags:
- custom_generate
- masked-diffusion
---

# generate() for masked diffusion language models

Exact ancestral or first-hitting sampling, infilling of any mask pattern, batches of ragged prompts, blocks, and
proposals weighed by an energy ([EDLM](https://arxiv.org/abs/2410.21357)), for LLaDA, Dream and other masked diffusion
models. The model is used as it is: nothing is trained or changed.

```python
from transformers import GenerationMixin
engine = GenerationMixin().load_custom_generate("REPOSITORY", trust_remote_code=True)
ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
rows = engine(model, ids, max_new_tokens=64, max_denoising_steps=32)
print(tokenizer.batch_decode(rows, skip_special_tokens=True)[0])
```

`REPOSITORY` is this one. Models with transformers' own `generate` (a `GenerationMixin`) can also be asked directly:
`model.generate(ids, custom_generate="REPOSITORY", trust_remote_code=True, max_new_tokens=64)`.

Arguments besides those of transformers (`attention_mask`, `max_new_tokens`, `max_length`, `temperature`, `top_k`,
`top_p`, `do_sample`, `num_return_sequences`, `eos_token_id`, `pad_token_id`, `logits_processor`, `stopping_criteria`,
`streamer`, `return_dict_in_generate`):

| argument | meaning |
|---|---|
| `max_denoising_steps` | steps of the reverse chain per block (128) |
| `sampler` | `ancestral`, or `first_hitting`: one token per call |
| `block_length` | fill the text in blocks of this many tokens, left to right (all at once) |
| `energy` | weighs proposals: a callable as below, low = likely |
| `energy_model`, `energy_type` | instead of `energy`, a causal language model of the same vocabulary (`ar`, `coar`) |
| `num_candidates` | k proposals that are weighed (8) |
| `energy_window` | w: the energy acts at times in [1 - w, 1] (1.0) |
| `energy_temperature` | tau of the weights softmax(-E / tau) (1.0) |
| `energy_scope` | `sequence`: complete sequences are weighed; `revealed`: what a step reveals |
| `logits_shift` | 1 if the logits at position i - 1 predict token i; unless given 1 for the model type Dream, else 0 |
| `mask_token_id` | the mask token, where neither config nor generation_config of the model says it |
| `generator` | a `torch.Generator`: the same seed and batch give the same tokens |

An energy is called as `energy(candidate_ids (B, k, L), noisy_ids (B, L), proposal_log_probs (B, k), attention_mask)`
and returns (B, k).
"""


def save_custom_generate(folder: str | Path) -> Path:
    """Write a folder for `model.generate(..., custom_generate=folder)`, or to be pushed to the Hub.

    It holds `custom_generate/generate.py`, the modelling code beside it, the packages it needs, and a model card.

    Args:
        folder: new or empty; it appears when everything in it is complete.

    Returns:
        The folder.

    Raises:
        ValueError: the folder exists and is not empty.
    """
    target = Path(folder).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"folder {folder} exists and is not an empty folder. Give a new folder.")
    source = Path(custom_generate.__file__)
    needed = [line for line in requires("edlm-hf") if re.fullmatch(r"(torch|transformers)\b[^;]*", line)]

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
        complete = Path(staging, target.name)
        code = complete / "custom_generate"
        code.mkdir(parents=True)
        (complete / "README.md").write_text(CARD)
        (code / "requirements.txt").write_text("\n".join(needed) + "\n")
        (code / "generate.py").write_bytes(source.read_bytes())
        for file in map(Path, get_relative_import_files(source)):
            (code / file.name).write_bytes(file.read_bytes())
        if target.exists():
            target.rmdir()
        complete.rename(target)
    return target
