"""Names that other programs have for our options: lm-eval, transformers, vLLM, Slurm, docker and gh among them."""

from __future__ import annotations

# Our name -> names elsewhere, all without dashes at the front. A name may stand for several of our options: the first one
# that the command has is meant.
SYNONYMS: dict[str, str] = {
    "model": "model-id model-name model-name-or-path model-path model-dir model-args pretrained hf-model checkpoint ckpt "
    "repo repo-id name-or-path tokenizer",
    "revision": "model-revision branch rev commit tag",
    "dtype": "precision torch-dtype data-type weight-dtype compute-dtype bf16 fp16 fp32 half",
    "device": "device-map device-id accelerator gpu gpus cuda",
    "metric": "metrics method methods score scores criterion importance saliency",
    "topk": "k top-k top n-weights num-weights n-top num-top",
    "structure": "unit units structured",
    "scope": "granularity",
    "include": "modules target-modules layers only",
    "exclude": "skip ignore skip-modules ignored-modules",
    "weights": "targets target-weights weight",
    "candidates": "num-candidates n-candidates pool",
    "data-file": "data data-path texts text-file file input input-file train-file validation-file eval-file corpus prompts",
    "dataset": "dataset-name datasets task tasks data hf-dataset calibration-dataset calib-data",
    "text-column": "text-field text-key column dataset-text-field",
    "eval-limit": "limit n-samples num-samples nsamples samples max-samples max-examples num-examples "
    "num-calibration-samples max-eval-samples examples n",
    "seq-len": "max-length max-len max-model-len max-seq-len max-seq-length seqlen seq-length sequence-length model-seqlen "
    "context-length context-size ctx-size n-ctx block-size",
    "packed": "pack packing group-texts concat",
    "bos": "add-bos add-bos-token",
    "batch-size": "batch bs b per-device-eval-batch-size per-device-train-batch-size max-batch-size",
    "gradients": "gradient-mode grad-mode",
    "offload": "cpu-offload offload-cpu cpu-offload-gb offload-folder",
    "perturb": "perturbation perturbations damage corruption mode",
    "no-perturbation": "no-perturb no-damage rank-only skip-perturbation",
    "fast-perturbation": "fast quick",
    "bits": "wbits w-bit num-bits nbits",
    "control": "controls baseline baselines",
    "control-seeds": "n-controls num-controls control-draws draws n-random num-random seeds",
    "kl": "kl-divergence",
    "dose": "doses factors scale-factors",
    "stability": "resamples bootstrap n-boot",
    "new-tokens": "max-tokens max-new-tokens num-predict n-predict num-tokens length",
    "temperature": "temp t",
    "seed": "random-seed rng-seed manual-seed random-state",
    "output": "output-dir output-path output-folder out out-dir outdir save-dir save-path destination dest",
    "force": "overwrite overwrite-output-dir yes y",
    "retries": "max-retries requeue",
    "after": "dependency depends-on needs",
    "wait-for-memory": "wait",
    "keep-alive": "keepalive ttl",
    "no-cache": "ignore-cache disable-cache",
    "detach": "background bg async no-wait",
    "pin": "pinned keep",
    "config": "config-file cfg conf spec preset yaml",
    "json": "format output-format",
    "limit": "count max num last lines top n tail head",
    "lines": "limit count tail num n",
    "offset": "skip start",
    "state": "status states filter",
    "kind": "type kinds",
    "search": "filter query grep find text q",
    "filter": "search query grep where",
    "sort": "sort-by order order-by by",
    "reverse": "desc descending asc ascending r",
    "since": "after from newer-than start-time",
    "all": "a all-jobs everything",
    "follow": "f tail watch",
    "older-than": "before until age days",
    "dry-run": "simulate what-if n",
    "csv": "tsv table",
}

# What no option of ours stands for, and what to do instead. Names have no dashes at the front.
ELSEWHERE: dict[str, str] = {
    "trust-remote-code": "set CWTOOL_TRUST_REMOTE_CODE=1 for the daemon, then `cwtool daemon restart`: it runs the code "
    "that comes with models",
    "token": "set HF_TOKEN, or log in with `hf auth login`",
    "hf-token": "set HF_TOKEN, or log in with `hf auth login`",
    "use-auth-token": "set HF_TOKEN, or log in with `hf auth login`",
    "cache-dir": "set HF_HUB_CACHE for models, HF_DATASETS_CACHE for datasets",
    "verbose": "the daemon keeps a log: `cwtool daemon logs`, and of a run `cwtool logs`",
    "debug": "the daemon keeps a log: `cwtool daemon logs`, and of a run `cwtool logs`",
    "no-color": "set NO_COLOR=1",
    "color": "set NO_COLOR=1 for none, FORCE_COLOR=1 for colours in a pipe",
}


def meanings(name: str) -> list[str]:
    """Our options that a name may stand for, with no dashes at the front: `model` for `model_name_or_path`."""
    plain = name.lstrip("-").lower().replace("_", "-")
    return [ours for ours, theirs in SYNONYMS.items() if plain == ours or plain in theirs.split()]


def advice(name: str) -> str:
    """What to do instead of an option that there is nowhere; empty where nothing is known of it."""
    return ELSEWHERE.get(name.lstrip("-").lower().replace("_", "-"), "")
