"""Every promise has a bug that turns its test red: plant each in a copy of the sources and see.

A line: what is promised, the file, the right code, the bug, the test that must fail.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]

BUGS = [
    (
        "routing weights are renormalised",
        "moe/router.py",
        "weights = weights / weights.sum(-1, keepdim=True)",
        "weights = weights * 1.0",
        "tests/moe/test_router.py",
    ),
    (
        "gate and up keep their places on disk",
        "moe/folder.py",
        "first, second = both.chunk(2)",
        "second, first = both.chunk(2)",
        "tests/moe/test_folder.py",
    ),
    (
        "packed documents do not see each other",
        "moe/attention.py",
        "(at >= self.starts.unsqueeze(2))",
        "(at >= 0 * self.starts.unsqueeze(2))",
        "tests/moe/test_decoder.py",
    ),
    (
        "generation with a cache equals generation without",
        "moe/engine.py",
        "cache[row, :, : moved.length] = cache[last, :, : moved.length]",
        "pass",
        "tests/moe/test_engine.py",
    ),
    (
        "log-probs are those of the whole distribution",
        "moe/engine.py",
        "return ids, logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)",
        "return ids, (probabilities / cumulative[:, -1:]).log().gather(1, ids.unsqueeze(1)).squeeze(1)",
        "tests/moe/test_engine.py",
    ),
    (
        "user text never becomes a special token",
        "moe/tokenizer.py",
        "self._backend.encode_special_tokens = True",
        "self._backend.encode_special_tokens = False",
        "tests/moe/test_chat.py",
    ),
    (
        "prompts carry no loss",
        "moe/chat.py",
        'learnt = int(message["role"] == "assistant")',
        "learnt = 1",
        "tests/moe/test_chat.py",
    ),
    (
        "packing loses no target",
        "trainers/packing.py",
        "range(0, max(1, len(ids) - 1), row_length - 1)",
        "range(0, max(1, len(ids) - 1), row_length)",
        "tests/trainers/test_packing.py",
    ),
    (
        "nothing follows an answer's last token",
        "rlhf/losses.py",
        "following_value = values[:, t] * mask[:, t]",
        "following_value = values[:, t] + 1",
        "tests/rlhf/test_losses.py",
    ),
    (
        "the KL penalty pulls towards the chat model",
        "rlhf/losses.py",
        "(earned - kl_coef * (logprobs - reference))",
        "(earned + kl_coef * (logprobs - reference))",
        "tests/rlhf/test_losses.py",
    ),
    (
        "a rhyme is paid where it falls",
        "rlhf/actors.py",
        "bisect_right(written, place)",
        "bisect_right(written, place) - 1",
        "tests/rlhf/test_actors.py",
    ),
    (
        "an update is applied once",
        "rlhf/actors.py",
        "        assert batch.version == self.version,",
        "        assert True,",
        "tests/rlhf/test_actors.py",
    ),
    (
        "a stale policy does not answer",
        "rlhf/actors.py",
        "            assert request.key.version == self.version,",
        "            assert True,",
        "tests/rlhf/test_actors.py",
    ),
    (
        "a changed file is noticed",
        "cluster/storage.py",
        "if not quick and sha256(path) !=",
        "if False and sha256(path) !=",
        "tests/cluster/test_storage.py",
    ),
    (
        "a bad line is named by its number",
        "trainers/readers.py",
        'f"{path}:{line}: ',
        'f"{path}:{line + 1}: ',
        "tests/trainers/test_readers.py",
    ),
    (
        "MegaBlocks computes our SwiGLU",
        "moe/experts_megablocks.py",
        "F.silu(gate) * up",
        "F.silu(up) * gate",
        "tests/moe/test_megablocks.py",
    ),
    (
        "MegaBlocks gives each expert its own tokens",
        "moe/experts_megablocks.py",
        "sizes = counts.cpu().long()",
        "sizes = counts.roll(1).cpu().long()",
        "tests/moe/test_megablocks.py",
    ),
    (
        "text that is not composed survives",
        "moe/families.py",
        'out |= {"normalizer": None, "pre_tokenizer": _sequence(parts), "decoder"',
        'out |= {"pre_tokenizer": _sequence(parts), "decoder"',
        "tests/moe/test_families.py",
    ),
    (
        "every byte of UTF-8 has a piece",
        "moe/families.py",
        "for piece in (*marks, *(spelled[byte] for byte in _IN_TEXT)):",
        "for piece in marks:",
        "tests/moe/test_families.py",
    ),
    (
        "old merges come before new ones",
        "moe/vocabulary.py",
        'self._description["model"]["merges"] += [list(pair) for pair in self._ranks]',
        'self._description["model"]["merges"][:0] = [list(pair) for pair in self._ranks]',
        "tests/moe/test_vocabulary.py",
    ),
    (
        "a new row is the mean of its old pieces",
        "moe/vocabulary.py",
        "new[index] = old[ids].mean(0)",
        "new[index] = old[ids[0]]",
        "tests/moe/test_vocabulary.py",
    ),
    (
        "LoRA's factors are scaled by alpha over rank",
        "moe/adapt.py",
        "alpha=self.scale)",
        "alpha=1.0)",
        "tests/moe/test_adapt.py",
    ),
    (
        "old rows of the vocabulary stay as they are",
        "moe/adapt.py",
        "_NewRows(module.weight[:old_rows])",
        "_NewRows(module.weight[: old_rows - 1])",
        "tests/moe/test_adapt.py",
    ),
    (
        "the busiest experts are kept",
        "moe/prune.py",
        "argsort(descending=True,",
        "argsort(descending=False,",
        "tests/moe/test_prune.py",
    ),
    (
        "int8 values fit the scale that is kept",
        "moe/quantize.py",
        "(weight / scales.float().unsqueeze(-1))",
        "(weight / (weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127))",
        "tests/moe/test_quantize.py",
    ),
    (
        "a collapsed router is told once",
        "moe/doctor.py",
        "new = lasting - self._told",
        "new = lasting",
        "tests/moe/test_doctor.py",
    ),
    (
        "a continued run judges as one that never stopped",
        "moe/doctor.py",
        '            self.examine(line, int(line["step"]))',
        "            pass",
        "tests/moe/test_doctor.py",
    ),
    (
        "a dead expert is noticed",
        "moe/doctor.py",
        'if values[f"{of}load/{e}"] == 0)',
        'if values[f"{of}load/{e}"] < 0)',
        "tests/moe/test_doctor.py",
    ),
    (
        "the plan counts both moments of AdamW",
        "moe/footprint.py",
        "if muon else 2 * total) / work.shards",
        "if muon else total) / work.shards",
        "tests/moe/test_plan.py",
    ),
    (
        "a dense parent's gate stays the gate",
        "moe/parents.py",
        '_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}',
        '_MIXTRAL = {"gate": "w3", "up": "w1", "down": "w2"}',
        "tests/moe/test_upcycle.py",
    ),
    (
        "llama.cpp gets rows in its order",
        "moe/gguf.py",
        "tensor = neighbours(tensor, cfg.kv_heads)",
        "pass",
        "tests/moe/test_gguf.py",
    ),
    (
        "finer experts compute the same",
        "moe/upcycle.py",
        ".transpose(0, 1) * parts)",
        ".transpose(0, 1))",
        "tests/moe/test_upcycle.py",
    ),
    (
        "NaN is no proof",
        "moe/certificate.py",
        "if not found <= bound:",
        "if found > bound:",
        "tests/moe/test_upcycle.py",
    ),
    (
        "a changed parent is noticed",
        "trainers/pretrain.py",
        "sha256(path) for path",
        "path.stat().st_size for path",
        "tests/trainers/test_pretrain.py",
    ),
    (
        "an unproven conversion leaves nothing",
        "moe/convert.py",
        "shutil.rmtree(out, ignore_errors=True)",
        "pass",
        "tests/moe/test_convert.py",
    ),
    (
        "a rotation turns by its angle",
        "moe/native.c",
        "to[i] = a * c[i] - b * s[i];",
        "to[i] = a * c[i] + b * s[i];",
        "tests/moe/test_native.py",
    ),
    (
        "padding of a chunk has no gradient",
        "moe/native.c",
        "memset(x, 0, vocabulary * sizeof(float));",
        "(void)x;",
        "tests/moe/test_native.py",
    ),
    (
        "documents do not see each other in the kernels",
        "moe/attention.c",
        "MIN(KEYS, start[query + q] - key)",
        "MIN(KEYS, start[query + q] - key - 1)",
        "tests/moe/test_native.py",
    ),
    (
        "nothing is compiled during a run",
        "moe/native.py",
        "if not built().exists():",
        "if build():",
        "tests/moe/test_native.py",
    ),
    (
        "workers' gradients are summed",
        "moe/parallel.py",
        "module.set_gradient_divide_factor(1.0)",
        "pass",
        "tests/moe/test_parallel.py",
    ),
    (
        "clipping sees all workers' gradients",
        "moe/parallel.py",
        "dist.all_reduce(squares)",
        "pass",
        "tests/moe/test_parallel.py",
    ),
    (
        "the auxiliary loss is counted once under checkpointing",
        "moe/decoder.py",
        "auxiliary=self.cfg.balance_coef",
        "auxiliary=(1 + self.checkpointing) * self.cfg.balance_coef",
        "tests/moe/test_parallel.py",
    ),
    (
        "no bias is exported",
        "moe/config.py",
        '"attention_bias": False',
        '"attention_bias": True',
        "tests/moe/test_folder.py",
    ),
    (
        "padding of an expert's tile carries no weight",
        "moe/experts.py",
        "weight = weight.new_zeros(slots)",
        "weight = weight.new_ones(slots)",
        "tests/moe/test_gemm.py",
    ),
    (
        "rows that pad a product are cut off",
        "moe/gemm.py",
        "return product(x, weight.t())[:n]",
        "return product(x, weight.t())",
        "tests/moe/test_gemm.py",
    ),
    (
        "dice go on where a checkpoint left them",
        "trainers/state.py",
        "checkpoint.load_random(folder, own_rank(), seed)",
        "pass",
        "tests/trainers/test_loop.py::test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not",
    ),
    (
        "the cursor is where the checkpoint left it",
        "trainers/state.py",
        "setattr(self, name, numbers[name])",
        'setattr(self, name, numbers[name] + (name == "position"))',
        "tests/trainers/test_loop.py::test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not",
    ),
    (
        "a resumed run judges steps by those before the kill",
        "trainers/state.py",
        'self.watch.load(numbers["watch"])',
        "pass",
        "tests/trainers/test_loop.py::test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not",
    ),
    (
        "a resumed run has the optimizer's state",
        "moe/checkpoint.py",
        "load_state_tensors(model, optimizer, {name: tensor for name, (_, tensor) in stored.items()})",
        "pass",
        "tests/moe/test_checkpoint.py",
    ),
    (
        "a refused step moves nothing",
        "trainers/loop.py",
        "    if verdict.accepted:\n        old =",
        "    if True:\n        old =",
        "tests/trainers/test_loop.py::test_what_is_not_finite_moves_nothing",
    ),
    (
        "rows of a course that is given up are left out",
        "trainers/loop.py",
        "    state.go_to(plan, position)\n",
        "",
        "tests/trainers/test_loop.py::test_a_spike_is_left_out_and_told_with_its_documents",
    ),
    (
        "the averaged weights are the stage's model",
        "trainers/loop.py",
        "state.average.put_into(state.model)",
        "pass",
        "tests/trainers/test_loop.py::test_the_averaged_weights_are_evaluated_and_returned",
    ),
    (
        "micro-batches weigh by their tokens",
        "trainers/step.py",
        "loss.total / units.to(loss.total)",
        "loss.total / (loss.units * accumulate)",
        "tests/trainers/test_loop.py::test_accumulation_changes_nothing",
    ),
    (
        "a batch grows by its ramp",
        "trainers/feed.py",
        "(1 - fit.ramp_from) * step / growing",
        "(1 - fit.ramp_from) * step / fit.steps",
        "tests/trainers/test_loop.py::test_a_step_takes_the_rows_that_its_knobs_say",
    ),
    (
        "a set goes on where the phase before left it",
        "trainers/course.py",
        "before += _counts(",
        "before += 0 * _counts(",
        "tests/trainers/test_course.py",
    ),
    (
        "slots are added in one order",
        "moe/parallel.py",
        "value + held[slot + slots] for slot, value in held.items() if slot < slots",
        "value + held[2 * slots - 1 - slot] for slot, value in held.items() if slot < slots",
        "tests/trainers/test_step.py",
    ),
    (
        "a slot throws dice of its own",
        "trainers/step.py",
        "torch.manual_seed(seed * slots + slot)",
        "pass",
        "tests/trainers/test_step.py",
    ),
    (
        "wsd decays only at the end",
        "moe/optimizer.py",
        "if cfg.schedule is Schedule.wsd else warm",
        "if False else warm",
        "tests/moe/test_optimizer.py",
    ),
    (
        "matrices in no_decay do not decay",
        "moe/optimizer.py",
        "p.dim() > 1 and not any(fnmatchcase(name, glob) for glob in cfg.no_decay)",
        "p.dim() > 1",
        "tests/moe/test_optimizer.py",
    ),
    (
        "the average's decay warms up",
        "moe/average.py",
        "min(self.decay, (1 + self.updates) / (10 + self.updates))",
        "self.decay",
        "tests/moe/test_average.py",
    ),
    (
        "an overflow halves the loss scale",
        "moe/precision.py",
        "self.scale = max(1.0, self.scale / 2)",
        "pass",
        "tests/moe/test_precision.py",
    ),
    (
        "a spike never enters the window",
        "trainers/spikes.py",
        "        if not kind:\n",
        '        if kind != "not finite":\n',
        "tests/trainers/test_spikes.py",
    ),
    (
        "a NaN never enters the window",
        "trainers/spikes.py",
        "        if not kind:\n",
        '        if not kind or kind == "not finite":\n',
        "tests/trainers/test_spikes.py",
    ),
    (
        "no jitter in evaluation",
        "moe/decoder.py",
        "noisy = self.jitter and self.training and",
        "noisy = self.jitter and",
        "tests/moe/test_router.py",
    ),
    (
        "a rank alone does not ask the others",
        "moe/router.py",
        "counts = counts if alone else global_sum(counts)",
        "counts = global_sum(counts)",
        "tests/moe/test_router.py",
    ),
    (
        "balance is over the global batch",
        "moe/router.py",
        "counts = counts if alone else global_sum(counts)",
        "pass",
        "tests/moe/test_parallel.py",
    ),
    (
        "a lower loss restarts patience",
        "trainers/stopping.py",
        "self.best, self.since = loss, 0",
        "self.best = loss",
        "tests/trainers/test_stopping.py",
    ),
    (
        "tied answers are not put in order",
        "moe/losses.py",
        "(ranks.unsqueeze(2) < ranks.unsqueeze(1))",
        "(ranks.unsqueeze(2) <= ranks.unsqueeze(1))",
        "tests/moe/test_losses.py",
    ),
    (
        "an answer without a rank is not the best",
        "moe/losses.py",
        " & (ranks >= 0).unsqueeze(2)",
        "",
        "tests/moe/test_losses.py",
    ),
    (
        "an answer without a rank is not the worst",
        "trainers/reward.py",
        "[-1 if rank is None else rank",
        "[99 if rank is None else rank",
        "tests/trainers/test_reward.py",
    ),
    (
        "the better answer has to be ahead by the margin",
        "moe/losses.py",
        "-F.logsigmoid(ahead - margin)",
        "-F.logsigmoid(ahead + margin)",
        "tests/moe/test_losses.py",
    ),
    (
        "answers to two queries are not compared",
        "trainers/preferences.py",
        'owner = at // length * length + batch["query"].flatten()[at]',
        "owner = at // length * length",
        "tests/trainers/test_preferences.py",
    ),
    (
        "each score learns its own principle",
        "trainers/preferences.py",
        "Judged.of(batch, name, scores[:, number])",
        "Judged.of(batch, name, scores[:, -1 - number])",
        "tests/trainers/test_preferences.py",
    ),
    (
        "scores keep their names on disk",
        "moe/config.py",
        "sorted(labels, key=int)",
        "sorted(labels, key=int, reverse=True)",
        "tests/moe/test_folder.py",
    ),
    (
        "no held-out ranking has a query that was learnt from",
        "trainers/reward.py",
        'json.dumps(record["messages"], ensure_ascii=False)',
        'record["where"]',
        "tests/trainers/test_reward.py",
    ),
    (
        "recompute is no operation of the model",
        "trainers/meter.py",
        "for checkpointing in (False, self._checkpointing)",
        "for checkpointing in (self._checkpointing, self._checkpointing)",
        "tests/trainers/test_meter.py",
    ),
    (
        "only chosen experts are active",
        "moe/footprint.py",
        'parts["experts"] // cfg.experts * cfg.top_k',
        'parts["experts"]',
        "tests/trainers/test_meter.py",
    ),
    (
        "evaluation is no training time",
        "trainers/meter.py",
        " - self._parts[EVALUATE]",
        "",
        "tests/trainers/test_meter.py",
    ),
    (
        "a rewind drops later lines",
        "cluster/tracker.py",
        "self._file.close()\n        self._keep(step)",
        "self._file.close()\n        self._keep(step + 1)",
        "tests/cluster/test_tracker.py",
    ),
    (
        "attempts are one W&B run",
        "cluster/tracker.py",
        "if not kept.exists():",
        "if True:",
        "tests/cluster/test_tracker.py",
    ),
    (
        "W&B gets no step twice",
        "cluster/tracker.py",
        'line["step"] >= self._known',
        "True",
        "tests/cluster/test_tracker.py",
    ),
    (
        "W&B gets no command line",
        "cluster/tracker.py",
        "x_disable_meta=True",
        "x_disable_meta=False",
        "tests/cluster/test_tracker.py",
    ),
    (
        "a twin is as wide as a token's experts",
        "trainers/twin.py",
        "expert_size=model.top_k * model.expert_size",
        "expert_size=model.expert_size",
        "tests/trainers/test_twin.py",
    ),
    (
        "the older mix is drawn from",
        "trainers/pretrain.py",
        "(1 - cfg.replay_share, cfg.replay_share)",
        "(1.0, 0.0)",
        "tests/trainers/test_pretrain.py",
    ),
    (
        "a changed older mix is noticed",
        "trainers/pretrain.py",
        "return sha256(about)",
        "return str(len(cfg.replay) > 0)",
        "tests/trainers/test_pretrain.py",
    ),
    (
        "time is summed over steps",
        "cluster/costs.py",
        'line["time/step"] * (line["step"] - before)',
        'line["time/step"]',
        "tests/cluster/test_report.py",
    ),
    (
        "a task's loss is of the answer alone",
        "moe/evaluation.py",
        "starts=[len(prompt) for prompt in prompts]",
        "starts=[1 for prompt in prompts]",
        "tests/trainers/test_evaluate.py",
    ),
    (
        "a choice is the whole answer, its end included",
        "moe/evaluation.py",
        "[*prompt, *ids, tokenizer.im_end]",
        "[*prompt, *ids]",
        "tests/trainers/test_evaluate.py",
    ),
    (
        "answers to tasks are greedy",
        "trainers/suites.py",
        "replace(cfg, temperature=0.0)",
        "cfg",
        "tests/trainers/test_evaluate.py",
    ),
    (
        "held-out text is not what was learnt",
        "trainers/suites.py",
        'texts(run / "corpus", "val")',
        'texts(run / "corpus", "train")',
        "tests/trainers/test_evaluate.py",
    ),
    (
        "BLEU takes each Chinese character for a word",
        "moe/evaluation.py",
        'BLEU(tokenize="zh", ',
        "BLEU(",
        "tests/moe/test_evaluation.py",
    ),
    (
        "a token is scored from the place before it",
        "moe/scoring.py",
        "segments.unsqueeze(0)).states[places - 1]",
        "segments.unsqueeze(0)).states[places]",
        "tests/moe/test_evaluation.py",
    ),
    (
        "sequences scored together do not see each other",
        "moe/scoring.py",
        "torch.arange(1, len(sequences) + 1).repeat_interleave(lengths)",
        "torch.ones_like(tokens)",
        "tests/moe/test_evaluation.py",
    ),
    (
        "echoed log-probs stand beside their own tokens",
        "serving/replies.py",
        "[None, *scores.logprobs][hidden:]",
        "[*scores.logprobs, None][hidden:]",
        "tests/serving/test_completions.py",
    ),
    (
        "easy comes before hard",
        "trainers/difficulty.py",
        "np.lexsort((*reversed(keys), codes))",
        "np.lexsort((*(-key for key in reversed(keys)), codes))",
        "tests/trainers/test_difficulty.py",
    ),
    (
        "difficulty is relative to the task",
        "trainers/difficulty.py",
        'tasks = [sample["task"] for sample in samples]',
        'tasks = ["" for sample in samples]',
        "tests/trainers/test_difficulty.py",
    ),
    (
        "a grade is of the answer alone",
        "trainers/difficulty.py",
        "-(np.array(scored.logprobs) * mask).sum() / mask.sum()",
        "-np.array(scored.logprobs).mean()",
        "tests/trainers/test_difficulty.py",
    ),
    (
        "easy and hard are not swapped",
        "trainers/sft.py",
        'int(sample["rank"] * stages)',
        'stages - 1 - int(sample["rank"] * stages)',
        "tests/trainers/test_sft.py",
    ),
    (
        "later stages revisit",
        "trainers/sft.py",
        "old = cfg.curriculum.revisit if stage else 0.0",
        "old = 0.0",
        "tests/trainers/test_sft.py",
    ),
    (
        "replay has its share",
        "trainers/sft.py",
        "share * (1.0 - cfg.replay) for",
        "share for",
        "tests/trainers/test_sft.py",
    ),
    (
        "forgetting is after over before",
        "trainers/sft.py",
        '"forgetting": new / old',
        '"forgetting": old / new',
        "tests/trainers/test_sft.py",
    ),
    (
        "user turns carry no loss",
        "moe/chat.py",
        'learnt = int(message["role"] == "assistant")',
        'learnt = int(message["role"] != "system")',
        "tests/trainers/test_sft.py",
    ),
    (
        "every answer of a conversation carries loss",
        "moe/chat.py",
        'learnt = int(message["role"] == "assistant")',
        "learnt = int(message is messages[-1])",
        "tests/trainers/test_sft.py",
    ),
    (
        "what was taken does not change under later steps",
        "moe/checkpoint.py",
        "share[kind][name] = copy.copy_(full)",
        "share[kind][name] = full",
        "tests/moe/test_checkpoint.py",
    ),
    (
        "torch's dice are saved",
        "moe/checkpoint.py",
        '    torch.set_rng_state(state["torch"])',
        "    pass",
        "tests/moe/test_checkpoint.py",
    ),
    (
        "NumPy's dice are saved",
        "moe/checkpoint.py",
        "    np.random.set_state((",
        "    id((",
        "tests/moe/test_checkpoint.py",
    ),
    (
        "Python's dice are saved",
        "moe/checkpoint.py",
        "    random.setstate((3,",
        "    id((3,",
        "tests/moe/test_checkpoint.py",
    ),
    (
        "files are flushed before they count",
        "cluster/storage.py",
        "    for path in files:\n        fsync(path)\n",
        "",
        "tests/cluster/test_storage.py",
    ),
    (
        "a manifest notices its own change",
        "cluster/storage.py",
        ".encode() == path.read_bytes()",
        ".encode() is not None",
        "tests/cluster/test_storage.py",
    ),
    (
        "a save ends the abandoned future",
        "cluster/storage.py",
        "    drop_checkpoints(folder, after=step)\n",
        "",
        "tests/cluster/test_storage.py",
    ),
    (
        "the best checkpoint is kept",
        "cluster/storage.py",
        "kept.add(min(scores)[2])",
        "kept.add(max(scores)[2])",
        "tests/cluster/test_saver.py",
    ),
    (
        "a resumed run knows its best",
        "cluster/saver.py",
        '"score": score if score is not None and math.isfinite(score) else None',
        '"score": None',
        "tests/cluster/test_saver.py",
    ),
    (
        "a failing rank is named at once",
        "cluster/saver.py",
        'raise OSError("; ".join(failed))',
        "continue",
        "tests/cluster/test_saver.py",
    ),
    (
        "FAULT hurts no real run",
        "cluster/fault.py",
        "    if text and not run.faults:",
        "    if False:",
        "tests/cluster/test_fault.py",
    ),
    (
        "a stream's row is given once",
        "trainers/feed.py",
        "self._used += len(part[POSITION])",
        "pass",
        "tests/trainers/test_feed.py",
    ),
    (
        "an end by spikes names its knob",
        "trainers/loop.py",
        'STOPPED: f"{knob}: {verdict.reason}',
        'STOPPED: f"{verdict.reason}',
        "tests/trainers/test_loop.py::test_a_spike_that_ends_the_stage_names_the_knob",
    ),
]


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str

    @property
    def red(self) -> bool:
        return self.code == 1 and (" failed" in self.output or " error" in self.output)  # a fixture may notice it first


class Planter:
    """Plants bugs, one at a time, in a copy of the sources, and runs their tests there."""

    def __init__(self, place: Path) -> None:
        self.place, self.planted = place, 0
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "planting.py"],
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def plant(self, file: str, right: str, bug: str, test: str) -> Outcome:
        self.planted += 1
        copy = self.place / str(self.planted)
        for name in ("conf", "moe", "cluster", "trainers", "rlhf", "serving", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("data", "pyproject.toml"):
            (copy / name).symlink_to(ROOT / name)
        code = (copy / file).read_text("utf-8")
        assert code.count(right) == 1, f"{file} no longer says: {right}"
        (copy / file).write_text(code.replace(right, bug), "utf-8")
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"tree": str(copy), "test": test}) + "\n")
        self.process.stdin.flush()
        outcome = Outcome(**json.loads(self.process.stdout.readline()))
        shutil.rmtree(copy)
        return outcome

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


Outcomes = dict[str, "Future[Outcome]"]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What the tests say of each bug that was asked for; two are planted at a time."""
    items = [cast(pytest.Function, item) for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params["promise"] for item in items}
    planters: queue.SimpleQueue[Planter] = queue.SimpleQueue()
    all_planters = [Planter(tmp_path_factory.mktemp("planted")) for _ in range(2)]
    for planter in all_planters:
        planters.put(planter)

    def plant(file: str, right: str, bug: str, test: str) -> Outcome:
        planter = planters.get()
        try:
            return planter.plant(file, right, bug, test)
        finally:
            planters.put(planter)

    with ThreadPoolExecutor(2) as pool:
        yield {promise: pool.submit(plant, *how) for promise, *how in BUGS if promise in asked}
    for planter in all_planters:
        planter.close()


@pytest.mark.parametrize("promise", [bug[0] for bug in BUGS])
def test_the_planted_bug_turns_its_test_red(promise: str, outcomes: Outcomes) -> None:
    outcome = outcomes[promise].result()
    assert outcome.red, f"{promise}: still green\n{outcome.output[-2000:]}"
