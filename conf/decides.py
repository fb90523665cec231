"""What another value of a knob does to a stage that has begun or is done: every knob's effect, said once.

A stage names the settings that it hangs on (`cluster.run.open_stage`); what becomes of it when one of them differs is
looked up here. A knob that the table does not have decides: the safe side.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Effect(Enum):
    decides = "decides"  # another value makes another result: what there is of the stage does not count
    lasts = "lasts"  # how long a stage goes on: one that is not done may go on to another end, where the stage says so
    measures = "measures"  # of the closing measurement alone: a stage that is done is measured again, not made again
    rounds = "rounds"  # the same result to rounding, not to the bit
    free = "free"  # the same result to the bit


_DECIDES, _LASTS, _MEASURES, _ROUNDS, _FREE = Effect
_FIT = {
    _DECIDES: "epochs batch_rows batch_tokens ramp ramp_from accumulate lr_scale patience",
    _LASTS: "steps",
    _FREE: "eval_every eval_rows save_every keep log_every",  # but see _UNLESS
}
_RANKINGS = "files max_bad_fraction at_least row_length too_long held_out replay"
_PHRASES = "good worse more less names"
_PLACE = {_ROUNDS: "gpus", _FREE: "cpus"}
_PLACES = {_ROUNDS: "count gpus", _FREE: "cpus"}
RENAMED = {"ppo.rollouts": "ppo.actors.rollout.count"}  # knobs that older versions called otherwise


def _and(more: Mapping[Effect, str]) -> dict[Effect, str]:
    return {effect: " ".join(filter(None, (_FIT.get(effect), more.get(effect)))) for effect in Effect}


TABLE: dict[str, Mapping[Effect, str]] = {  # section: its knobs by effect
    "run": {_DECIDES: "seed", _FREE: "name dir config rebuild faults"},
    "model": {
        _DECIDES: "hidden_size layers heads kv_heads head_dim experts top_k expert_size context rope_theta norm_eps "
        "qk_norm init_std balance_coef z_coef jitter"
    },
    "compute": {_DECIDES: "precision", _ROUNDS: "experts checkpointing"},
    "parent": {_DECIDES: "model experts top_k granularity noise"},
    "convert": {_FREE: "source target forms upcycle"},
    "adapt": {_DECIDES: "lora_rank lora_alpha lora_targets freeze only_new_rows"},
    "doctor": {_FREE: "max_load min_entropy min_balance window stop"},  # to stop is to fail, not to be done early
    "spikes": {_DECIDES: "action window warmup loss_deviations norm_deviations rollback_steps limit"},
    "checkpoints": {_FREE: "asynchronous copy_gb best every on_error"},
    "gpu": {_FREE: "memory tflops bandwidth mfu"},
    "plan": {_FREE: "detail"},
    "corpus": {
        _DECIDES: "files format encoding html txt template keep max_documents max_bad_fraction max_line_bytes "
        "val_fraction test_fraction steps languages sensitive lexicon limits pii against score buckets weights tail "
        "near",
    },
    "proxy": {_DECIDES: "by corpora held_out documents tokens batch_rows row_length seeds", _FREE: "timeout"},
    "why": {_FREE: "record id stage step"},
    "forget": {_FREE: "records ids conversations"},  # what the corpus obeys is the list that they end in
    "tokenizer": {_DECIDES: "path extend merge vocab_size isolate_han min_frequency"},
    "tokens": {_DECIDES: "row_length rows_per_shard", _FREE: "actors"},
    "tasks": {_DECIDES: "domain options queries per_task held_out prompts"},
    "optim": {
        _DECIDES: "lr kind muon_rms muon_momentum min_lr_ratio warmup schedule decay_share weight_decay no_decay ema "
        "beta1 beta2 eps clip"
    },
    "pretrain": _and({_DECIDES: "replay replay_share", _FREE: "retention retention_rise"}),
    "sft": _and({_DECIDES: "row_length too_long files max_bad_fraction weights replay"}),
    "sft.curriculum": {_DECIDES: "stages revisit pace"},
    "rank": {
        _DECIDES: "prompts answers temperatures max_new_tokens principles margin judges weights",
        _FREE: "actors timeout restarts labelled feedback",  # on what people said, not on where
    },
    "judge": {
        _DECIDES: "url model folder compare votes temperature max_new_tokens retries",
        _FREE: "key_env concurrency per_minute timeout max_missing",
    },
    "teach": {
        _DECIDES: "passages characters least questions temperature max_new_tokens grounded copied alike least_question "
        "most_question least_answer most_answer easiest hardest turns related",
        _FREE: "max_lost",
    },
    "label": {_FREE: "files out"},
    "reward": _and({_DECIDES: "loss principles files max_bad_fraction row_length held_out"}),
    "hfft": _and({_DECIDES: _RANKINGS}),
    "cohft": _and({_DECIDES: f"{_RANKINGS} plain mask"}),
    "cohft.en": {_DECIDES: _PHRASES},
    "cohft.zh": {_DECIDES: _PHRASES},
    "ppo": {
        _DECIDES: "start prompts samples keep max_new_tokens segment rewards terms normalise ensemble advantages "
        "epochs minibatches accumulate lr critic_lr clip dual_clip value_clip gamma lam whiten cut_off "
        "routes staleness importance_cap kl_coef kl_in kl_estimate kl_target kl_horizon entropy_coef stop_kl "
        "grad_clip critic_warmup replay replay_tasks replay_weight",
        _LASTS: "iterations",
        _ROUNDS: "micro_tokens",  # what is computed together moves the last bit
        _FREE: "name max_kl max_disagreement save_every timeout restarts keep_samples keep_samples_mb pool_mb",
    },
    "ppo.actors.rollout": _PLACES,
    "ppo.actors.reward": _PLACE,
    "ppo.actors.reference": _PLACE,
    "ppo.actors.learner": _PLACES,
    "ppo.actors.critic": _PLACES,
    "compare": {_MEASURES: "models wins reward"},
    "inspect": {_FREE: "step queries query"},
    "replay": {_FREE: "step"},
    "evaluate": {
        _MEASURES: "prompts rows max_new_tokens temperature top_p",
        _FREE: "model suites files tasks out timeout",
    },
    "prune": {_FREE: "model target keep"},
    "serve": {
        _FREE: "model host port slots max_new_tokens queue max_body_bytes header_timeout body_timeout drain_timeout "
        "stream_seconds stream_bytes replay_seconds hosts origins auth keys keys_env key_in_flight key_per_minute int8 "
        "bf16",
    },
    "promote": {_FREE: "model share votes confidence tolerance stop"},
    "cluster": {
        _ROUNDS: "workers threads gpus_per_worker deterministic slots shard expert_parallel",
        _FREE: "cpus_per_worker wait start_timeout gpus object_store_mb worker_logs temp_dir",
    },
    "sweep": {_FREE: "concurrent stop grace"},
    "tracker": {_FREE: "kind project entity mode samples rows heat_every upload timeout finish_timeout"},
    "pipeline": {_MEASURES: "samples", _FREE: "stages"},
}

_FITTED = ("pretrain", "sft", "reward", "hfft", "cohft")
# Free, unless another setting makes something of it: early stopping looks at the evaluations, and a rollback goes to
# the checkpoints that there are.
_UNLESS = {
    "eval_every": lambda section, settings: settings.get(f"{section}.patience", 0) > 0,
    "eval_rows": lambda section, settings: settings.get(f"{section}.patience", 0) > 0,
    "save_every": lambda section, settings: settings.get("spikes.action") == "rollback",
    "keep": lambda section, settings: settings.get("spikes.action") == "rollback",
}
EFFECTS = {
    f"{section}.{name}": effect
    for section, by_effect in TABLE.items()
    for effect, names in by_effect.items()
    for name in names.split()
}


def effect(knob: str, settings: Mapping[str, Any]) -> Effect:
    """Of a leaf of a stage's `settings`, {"pretrain.steps": 60, ...}: a knob, or something below one."""
    section, _, name = knob.rpartition(".")
    found = EFFECTS.get(knob, Effect.decides)
    if found is Effect.free and section in _FITTED and name in _UNLESS:
        return Effect.decides if _UNLESS[name](section, settings) else Effect.free
    return found
