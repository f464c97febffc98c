"""Find the critical weights of a real 135M model, damage them, then rank again on the warm model.

`make demo` runs this. Everything goes through the command line, as a user would type it. The daemon is left as it was
found: stopped again if it did not run, running if it did.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

CWTOOL = str(Path(sys.executable).with_name("cwtool"))
COLD = ["run", "--model", "smollm2-135m", "--metric", "grad_x_weight", "--topk", "1", "10", "100", "--eval-limit", "16"]
WARM = ["run", "--model", "smollm2-135m", "--metric", "grad_squared", "--eval-limit", "16", "--no-perturbation"]


def main() -> None:
    found_running = subprocess.run([CWTOOL, "daemon", "status"], capture_output=True, check=False).returncode == 0
    try:
        cold, cold_notes = first_progress(COLD)
        warm, _ = first_progress(WARM)
    finally:
        if not found_running:
            cwtool("daemon", "stop")
    print("\nTime from the command's start to its first progress on a loaded model:")
    print(f"  first run   {cold:6.2f} s   {'; '.join(cold_notes)}")
    print(f"  second run  {warm:6.2f} s   {cold / warm:.0f} times sooner: the daemon held the model warm")


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
    subprocess.run([CWTOOL, *args], check=True)


def read(*args: str) -> str:
    return subprocess.run([CWTOOL, *args], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
