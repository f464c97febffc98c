"""What the columns of tables and the states of a job mean, for the help of each screen. No Textual in it."""

from __future__ import annotations

STATES = {
    "waiting": "of a study's cell: it is not queued yet",
    "queued": "it waits for its turn",
    "paused": "it waits until you resume it",
    "running": "a worker is at it",
    "done": "its files are written",
    "failed": "its error says why, and what to do",
    "cancelled": "somebody ended it",
    "interrupted": "its worker died; it is queued again, but only once if the run itself made the worker die",
}

_COLUMNS = {
    # jobs
    "id": "the end of the run's id, which every command takes",
    "run_id": "every command takes the end of it too",
    "model": "as it was asked for",
    "state": "see the signs below",
    "outcome": "see the signs below; of a running job its stage, of a failed one its error",
    "asked": "metrics, perturbations and texts of the run",
    "result": "k, and perplexity over that of the intact model: of the critical set, and of the worst control's leading draw",
    "verdict": "the sentence that the run ends with",
    "progress": "the stage and how far it is, or the error",
    "took": "working time of a worker, without waiting",
    "age": "since it was created",
    # studies
    "question": "what the study asks",
    "cells": "runs that are done, of all, and how many failed",
    "answer": "the answer's sentence, once all cells have ended",
    "cell": "number of the run in the study",
    "why": "the error of a cell that failed, and what to do",
    # rankings
    "rank": "place in the ranking, 1 is the most critical",
    "target": "parameter [output feature, input feature]",
    "parameter": "name of the tensor",
    "out_feature": "output feature: the row of the matrix",
    "in_feature": "input feature: the column of the matrix",
    "layer": "number of the decoder block, from 0",
    "component": "part of the block: q, k, v, o, gate, up, down ...",
    "expert": "which expert of a mixture of experts",
    "value": "the weight itself",
    "score": "the metric's value; weights are ranked by it",
    "standard_error": "of the score, over the texts",
    "fan_out": "how many weights read what this one writes",
    "stable": "in the top k of every repeat of the ranking",
    # damage
    "metric": "the ranking that the damaged weights come from",
    "perturbation": "what is done to the weights",
    "k": "how many weights are damaged at once",
    "selection": "critical: the k ranked highest; others are controls",
    "draw": "of a random control: one draw, or the leading one (ahead of the others) and the median",
    "texts": "how many texts it was measured on: critical sets on all, draws until they are far behind",
    "perplexity": "exp of the mean loss per token, with the damage, on these texts",
    "delta": "change of the loss in nats per token, paired by text",
    "interval": "95 % interval of the change, over the texts",
    "ratio": "perplexity over that of the intact model",
    "p": "(1 + draws ahead of the critical set) / (1 + draws)",
    # models and devices
    "device": "where it is kept",
    "dtype": "number format of the weights",
    "size": "memory of the weights",
    "parameters": "how many weights it has",
    "expires": "how long it stays in memory unless it is used before",
    "jobs": "how many jobs used it",
    "used": "since its last use",
}


def meaning_of(column: str) -> str:
    """What a column says, by its key; empty where its title says it all."""
    return _COLUMNS.get(column, "")
