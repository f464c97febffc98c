"""Find the critical weights of a real 135M model, damage them, then rank again on the warm model.

`make demo` runs this. Everything goes through the command line, as a user would type it, but with a daemon and folders of
its own: neither what a shell has set nor what its user has done before makes a difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CWTOOL = str(Path(sys.executable).with_name("cwtool"))
COLD = ["run", "--model", "smollm2-135m", "--metric", "grad_x_weight", "--topk", "10", "--eval-limit", "32"]
WARM = ["run", "--model", "smollm2-135m", "--metric", "grad_squared", "--eval-limit", "16", "--no-perturbation"]


# What runs the interpreter, says which devices there are, and describes the terminal that shows it all.
KEPT = (
    "PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    "TERM", "COLORTERM", "NO_COLOR", "LANG", "LC_ALL", "LC_CTYPE",
)  # fmt: skip
HOME = Path(tempfile.mkdtemp(prefix="cwtool-demo-", dir="/tmp"))  # short, for a path of a socket has 107 bytes at most
OWN = {name: os.environ[name] for name in KEPT if name in os.environ} | {
    "HOME": str(HOME),
    "CWTOOL_HOME": str(HOME / "state"),
    "XDG_RUNTIME_DIR": str(HOME),
    "HF_HUB_OFFLINE": "1",  # the model is in a package
}


def main() -> None:
    try:
        cold, cold_notes = first_progress(COLD)
        warm, _ = first_progress(WARM)
    finally:
        cwtool("daemon", "stop")
    print("\nTime from the command's start to its first progress on a loaded model:")
    print(f"  first run   {cold:6.2f} s   {'; '.join(cold_notes)}")
    print(f"  second run  {warm:6.2f} s   {cold / warm:.0f} times sooner: the daemon held the model warm")
    print(f"\nAll files are in {HOME}, and nothing else was written.")


def first_progress(command: list[str]) -> tuple[float, list[str]]:
    """Run a command in full view; seconds from its start to the first progress of its baseline, and what was noted until
    the model was there."""
    print(f"\n$ cwtool {' '.join(command)}", flush=True)
    began = time.time()
    cwtool(*command)
    run_id = json.loads(read("jobs", "list", "--limit", "1", "--json"))["jobs"][0]["run_id"]
    events = [json.loads(line) for line in read("logs", run_id, "--json").splitlines()]
    first = next(event for event in events if event["kind"] == "progress" and event["stage"] == "baseline")
    loaded = next(event for event in events if event["kind"] == "stage_finished" and event["stage"] == "load")
    notes = [event["text"] for event in events if event["kind"] == "note" and event["seq"] < loaded["seq"]]
    return first["time"] - began, notes


def cwtool(*args: str) -> None:
    subprocess.run([CWTOOL, *args], env=OWN, check=True)


def read(*args: str) -> str:
    return subprocess.run([CWTOOL, *args], env=OWN, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
