"""The science of cwtool: rank the critical weights of a causal language model, damage them, measure what that does.

Knows nothing of sockets, terminals or jobs. In a notebook::

    from cwa_engine.models.loading import load_model
    from cwa_engine.pipeline import analyze
    from cwa_engine.spec import RunSpec

    result = analyze(load_model("gpt2"), RunSpec(model="gpt2", topk=(10,)))

This package, and its modules `spec`, `result`, `events`, `errors`, `catalog`, `statistics` and the registries, import
without torch; only the modules that compute need it.
"""

__version__ = "0.1.0"
