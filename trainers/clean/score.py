"""How surprised a language model is at each document, in bits per byte: what near copies are chosen, and documents
sorted into head, middle and tail by. Any causal model folder serves (CCNet, Wenzek et al. 2020)."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.storage import sha256
from conf.errors import InputError
from conf.knobs.text import Corpus
from trainers.clean import shards
from trainers.clean.copies import Shards, Spread
from trainers.files.readers import expand, title

TOKENS = 1024  # of a document; how it begins tells how it goes on
BATCH = 8192  # tokens of a forward pass, padding included
STEP = 0.01  # bits per byte: the bins in which quantiles are counted, and to which scores are rounded
BUCKETS = ("head", "middle", "tail")  # thirds of a language's or source's documents, the least surprising first
ALL = ""  # the group of what is compared with all documents


def score(there: Shards, model: str, spread: Spread) -> None:
    """Write `<name>.bits.npy` for each shard: [rows] bits per byte, NaN for what does not stay. `exact.npy` says which
    documents are copies: they are not scored."""
    items = [{"at": at} for at in range(len(there.names))]
    for _ in spread(shard, there.common(model=model), items):
        pass


def shard(folder: Path, item: Mapping[str, Any]) -> None:
    """Score the documents of one shard that stay, unless it is done."""
    name, first = item["names"][item["at"]], item["firsts"][item["at"]]
    path = folder / f"{name}.bits.npy"
    if path.exists():
        return
    table = shards.read(folder, name, ["text", "characters", "reason", "step"])
    gone = np.load(folder / "exact.npy", mmap_mode="r", allow_pickle=False)["id"]
    ids = first + np.arange(len(table))
    stays = shards.passing(table) & (ids < item["end"]) & ~np.isin(ids, gone)
    found = np.full(len(table), np.nan, np.float32)
    rows = np.flatnonzero(stays)
    texts = table["text"].to_pylist()
    found[rows] = bits([texts[row] for row in rows], item["model"])
    shards.save(path, found)


def bits(texts: Sequence[str], model: str) -> NDArray[np.float32]:
    """[texts] bits per byte of the first `TOKENS` tokens, to `STEP`. Raises `InputError` where there is no model."""
    import torch

    network, tokenizer = _opened(model)
    most = min(TOKENS, getattr(network.config, "max_position_embeddings", TOKENS))
    begin = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    begin = [one for one in begin if one is not None]
    encoded = [tokenizer.encode(text[: 8 * most], add_special_tokens=False)[: most - len(begin)] for text in texts]
    found = np.zeros(len(texts), np.float32)
    for places in _batches([len(ids) + len(begin) for ids in encoded]):
        rows = [begin + encoded[place] for place in places]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=network.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=network.device)
        with torch.inference_mode():
            logits = network(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for place, row, total in zip(places, rows, (nats * mask[:, 1:]).sum(1).tolist(), strict=True):
            size = len(tokenizer.decode(row[len(begin) or 1 :]).encode())
            found[place] = round(total / math.log(2) / max(1, size) / STEP) * STEP
    return found


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows of about one length, as many as fit into a pass."""
    held: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (lengths[place], place)):
        if held and lengths[place] * (len(held) + 1) > BATCH:
            yield held
            held = []
        if lengths[place] > 1:
            held.append(place)
    if held:
        yield held


def check(model: str) -> None:
    """Raise `InputError` where there is no model."""
    if not (Path(model) / "config.json").is_file():
        raise InputError(f"corpus.score={model}: no model here (config.json is missing)")


def digests(model: str) -> dict[str, str]:
    """{file: sha256} of what decides a model folder's scores."""
    files = sorted(path for path in Path(model).glob("*") if path.suffix in (".json", ".safetensors"))
    return {path.name: sha256(path) for path in files}


@cache
def _opened(model: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        network = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"corpus.score={model}: no causal model to open ({str(error).splitlines()[0]})") from None
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def sources(cfg: Corpus) -> dict[str, str]:
    """{file: its source}: the name of what `corpus.files` gave it by, 'web' of data/web/*.jsonl or data/web.jsonl."""
    found: dict[str, str] = {}
    for pattern in cfg.files:
        parts = [part for part in Path(pattern).parts if not any(mark in part for mark in "*?[")]
        name = title(parts[-1]) if parts else pattern
        for file in expand([pattern], asked_format=cfg.format):
            found.setdefault(file, name.partition(":")[0].partition(".")[0])
    return found


def groups(languages: Sequence[str], sources: Sequence[str], by: Sequence[str]) -> NDArray[np.object_]:
    """[documents] what each is compared with: the documents of its language, of its source, or of both. One in no
    language that is known is compared with all: garbage would otherwise have a head of its own."""
    columns = [languages if name == "language" else sources for name in by]
    named = [" ".join(names) for names in zip(*columns, strict=True)]
    if "language" in by:
        named = [name if language else ALL for name, language in zip(named, languages, strict=True)]
    return np.array(named, object)


def sort(
    bits: NDArray[np.float32],
    groups: NDArray[np.object_],
    bounds: Mapping[str, Sequence[float]],
    stays: NDArray[np.bool_],
    bucket: NDArray[np.object_],
    beyond: NDArray[np.float64],
) -> None:
    """Sort the documents that stay into head, middle and tail of their group, and out where its tail is cut off."""
    for row in np.flatnonzero(stays):
        *thirds, last = bounds[groups[row]]
        if bits[row] > last + STEP / 2:
            stays[row], beyond[row] = False, last
        else:
            bucket[row] = BUCKETS[int((bits[row] > np.array(thirds) + STEP / 2).sum())]


def weights(names: Iterable[tuple[str, str, str]], given: Mapping[str, float]) -> NDArray[np.float64]:
    """[documents] the product of the weights that their names have, (language, source, bucket) each."""
    known: dict[tuple[str, str, str], float] = {}
    found = []
    for each in names:
        if each not in known:
            known[each] = math.prod(given.get(name, 1.0) for name in each)
        found.append(known[each])
    return np.array(found, np.float64)


def times(weight: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[documents] how often each is taken: its weight, a broken one up or down by what its id draws."""
    whole = np.floor(weight)
    with np.errstate(over="ignore"):  # splitmix64 (Steele et al. 2014)
        drawn = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        drawn = (drawn ^ (drawn >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        drawn = (drawn ^ (drawn >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    drawn ^= drawn >> np.uint64(31)
    return (whole + (drawn / 2.0**64 < weight - whole)).astype(np.int64)


def check_weights(cfg: Corpus) -> None:
    """Raise `InputError` for a weight of what there is not."""
    known = {*sources(cfg).values(), *BUCKETS, "zh", "en"} if cfg.weights else set[str]()
    for name in cfg.weights:
        if name in BUCKETS and not cfg.score:
            raise InputError(f"corpus.weights.{name} needs a model that sorts: corpus.score=<folder>")
        a_language = "language" in cfg.steps and re.fullmatch("[a-z]{2,4}", name)
        if name not in known and not a_language:
            raise InputError(f"corpus.weights.{name}: no such source, language or bucket: {', '.join(sorted(known))}")


def counted(languages: Sequence[str], scores: NDArray[np.float32]) -> dict[str, dict[str, int]]:
    """{language: {bin: documents}} of documents with a score."""
    found: dict[str, Counter[str]] = {}
    for language, one in zip(languages, scores.tolist(), strict=True):
        if not math.isnan(one):
            found.setdefault(language, Counter())[str(round(one / STEP))] += 1
    return {language: dict(counts) for language, counts in found.items()}


def bounds(told: Iterator[list[dict[str, dict[str, int]]]], tail: float) -> dict[str, list[float]]:
    """{group: bits per byte of the ends of head and middle, and of where the tail is cut off}."""
    found: dict[str, Counter[str]] = {}
    for shard in (one for item in told for one in item):
        for language, counts in shard.items():
            found.setdefault(language, Counter()).update(counts)
    if ALL in found:
        found[ALL] = sum(found.values(), Counter())
    ends = [number / len(BUCKETS) for number in range(1, len(BUCKETS))]
    return {
        language: [*(quantile(counts, end) for end in ends), quantile(counts, 1 - tail) if tail else math.inf]
        for language, counts in sorted(found.items())
    }


def quantile(counts: Mapping[str, int], share: float) -> float:
    """The least number of bits per byte that at least a `share` of the documents do not exceed."""
    wanted = share * sum(counts.values())
    below = 0
    for one in sorted(map(int, counts)):
        below += counts[str(one)]
        if below >= wanted:
            return one * STEP
    return math.inf
