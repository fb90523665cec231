"""Proof that a conversion kept the model: the largest difference of its logits, as other programs compute them.

The weights are in fp32 and the arithmetic in fp64. In fp32 two right programs differ by more than a subtle fault does:
a real model's residuals reach tens of thousands, and for SmolLM2 transformers differs from itself by 1e-4 with another
attention kernel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from conf.errors import InputError
from moe.decoder import Decoder
from moe.formats import checkpoints, gguf, llama_cpp
from moe.text.tokenizer import FILE as TOKENIZER

BOUND = 1e-4
LLAMA_CPP_BOUND = 1e-2  # it computes in fp32 only
ROWS, LENGTH = 2, 32
SAMPLE = (
    "Hello, world! It's 2024: 3.14159, naïve café;  two  spaces.\n\n\tdef f(x): return x_1\n"
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。🌙"
)


def batch(vocab_size: int) -> Tensor:
    """The tokens [ROWS, LENGTH] that certificates are about: the same for the same vocabulary."""
    return torch.randint(0, vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0), device="cpu")


@torch.no_grad()
def logits(model: Decoder, tokens: Tensor) -> Tensor:
    """Our logits [B, T, V] of tokens [B, T], on the CPU wherever the model is."""
    tokens = tokens.to(model.device)
    model.double()
    states = model(tokens, torch.ones_like(tokens)).states
    out = model.logits(states).view(*tokens.shape, -1)
    model.float()  # fp32 there and back is bitwise the same
    return out.cpu()


def _ends_in_transformers(folder: Path) -> set[int]:
    from transformers import GenerationConfig

    found = GenerationConfig.from_pretrained(folder).eos_token_id
    return set(found) if isinstance(found, list) else {found} - {None}


@torch.no_grad()
def by_transformers(path: Path, tokens: Tensor) -> tuple[Tensor, str]:
    """(logits, who read the weights) of a checkpoint as transformers computes them.

    Its own reader opens folders and the GGUF architectures that it knows. It takes `llama` with experts for a dense
    model, so those weights are read by `moe.formats.gguf`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, MixtralForCausalLM, modeling_gguf_pytorch_utils
    from transformers.utils import logging

    logging.set_verbosity_error()  # it advises against fp64
    logging.disable_progress_bar()
    given: dict[str, Any] = {"dtype": torch.float64, "experts_implementation": "eager"}
    if not checkpoints.is_gguf(path):
        theirs, reader = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **given), "transformers"
    else:
        # given, because transformers' reader of GGUF leaves out the width of an expert
        given["config"] = AutoConfig.for_model(**gguf.read_config(path))
        if given["config"].model_type == "mixtral":
            tensors = gguf.read(path)[1]
            theirs, reader = MixtralForCausalLM.from_pretrained(None, state_dict=tensors, **given), "moe.formats.gguf"
            del tensors
        else:
            modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors  # this bar has no switch
            theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **given)
            reader = "transformers"
    return theirs.eval()(tokens.to(theirs.device)).logits.cpu(), reader


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference; NaN where either has one."""
    return float((ours - theirs).abs().max())


def check(found: float, what: str, bound: float = BOUND) -> None:
    """Raise InputError for a difference above `bound`, or NaN."""
    if not found <= bound:
        raise InputError(f"{what}: the logits differ by {found:.1e}; rounding explains at most {bound:.0e}")


def prove(model: Decoder, source: Path, *, exact: bool = True) -> Tensor:
    """Print the largest logit difference of `model` to the checkpoint it came from; unless it need not be `exact`, more
    than BOUND is an error. Returns the source's logits of `batch`, as transformers computes them."""
    tokens = batch(model.vocab_size)
    theirs = by_transformers(source, tokens)[0]
    found = difference(logits(model, tokens), theirs)
    print(told(source, found))
    if exact:
        check(found, str(source))
    return theirs


def told(source: Path, found: float) -> str:
    """The line that says how far a model is from the checkpoint it came from."""
    return f"{source}: the logits differ from the parent's by at most {found:.1e} over {ROWS * LENGTH} tokens"


def certify(path: Path, reference: Tensor, stop: Sequence[int] = ()) -> dict[str, Any]:
    """What a written folder or .gguf file computes, against reference logits [ROWS, LENGTH, V]: an entry of
    certificate.json. Raises InputError above BOUND, or if other programs do not end an answer on the ids of `stop`."""
    tokens = batch(reference.shape[-1])
    theirs, reader = by_transformers(path, tokens)
    found = difference(theirs, reference)
    check(found, str(path))
    entry: dict[str, Any] = {"reader": reader, "max_logit_difference": found, "ends": list(stop)}
    if path.suffix != ".gguf" and not set(stop) <= (known := _ends_in_transformers(path)):
        raise InputError(f"{path}: transformers ends an answer on {sorted(known)}, and not on all of {sorted(stop)}")
    if path.suffix == ".gguf" and llama_cpp.installed():
        with llama_cpp.opened(path) as opened:
            found = difference(opened.logits(tokens), reference)
            ids = opened.ids(SAMPLE)
            missed = [token for token in stop if not opened.ends(token)]
        check(found, f"{path} in llama.cpp", LLAMA_CPP_BOUND)
        if missed:
            raise InputError(f"{path}: llama.cpp does not end an answer on {missed}")
        whole = tokenizers.Tokenizer.from_str(checkpoints.tokenizer_files(path)[TOKENIZER].decode())
        whole.no_truncation()
        same = ids == whole.encode(SAMPLE, add_special_tokens=False).ids
        entry["llama_cpp"] = {"max_logit_difference": found, "tokenizer_agrees": same}
        if not same:
            print(f"{path}: llama.cpp cuts a sample text into other pieces than {TOKENIZER}")
    return entry
