"""`cwtool reproduce`: published claims, and whether they agree with what is measured here."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli import completion
from cwa_tui.cli.connection import chosen_host, command_typed, connect
from cwa_tui.cli.groups import ListByDefault
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from cwa_engine.claims.claim import Claim
    from cwa_engine.claims.obstacles import Obstacle
    from cwa_engine.claims.running import ClaimResult
    from cwa_engine.runner import Runner

app = typer.Typer()
reproduce = typer.Typer(cls=ListByDefault, no_args_is_help=False)
app.add_typer(reproduce, name="reproduce", help="Check published claims: gate, claimed, measured, agreed or not.")

Which = Annotated[
    list[str] | None,
    typer.Argument(
        help="Ids of claims, or files with claims of your own (.toml).",
        show_default=False,
        metavar="ID|FILE.toml...",
        autocompletion=completion.claims,
    ),
]


@reproduce.command("list")
def list_claims(
    search: Annotated[
        str, typer.Option("--search", "-S", help="Only claims with all of these words in id, title, model or source.")
    ] = "",
    runnable: Annotated[bool, typer.Option("--runnable", help="Only those that can be measured here.")] = False,
    as_json: Json = False,
) -> None:
    """List the published claims, and which of them can be measured on this machine."""
    from cwa_engine.claims.table import published_claims
    from cwa_tui.cli.claims import claims_as_plain, claims_table

    named = [claim for claim in published_claims() if _has_words(claim, search)]
    found = [(claim, obstacle) for claim, obstacle in _with_obstacles(named) if not (runnable and obstacle)]
    if as_json:
        show({"claims": claims_as_plain(found)})
    else:
        show(claims_table(found) if found else "no claim is like that")


@reproduce.command("show")
def show_claim(
    which: Annotated[
        str, typer.Argument(help="Id of a claim, or a file with claims.", autocompletion=completion.claims)
    ],
    as_json: Json = False,
) -> None:
    """Show what a claim says, where that stands, and the runs that measure it."""
    from cwa_tui.cli.claims import claim_as_plain, claim_report

    found = _with_obstacles(_named([which]))
    if as_json:
        plain = [claim_as_plain(claim, obstacle) for claim, obstacle in found]
        show({"claims": plain} if _is_file(which) else plain[0])
        return
    for claim, obstacle in found:
        show(claim_report(claim, obstacle))


@reproduce.command("run")
def run_claims(
    which: Which = None,
    all_runnable: Annotated[
        bool, typer.Option("--all-runnable", help="Every claim of the table that can be measured here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure claims: first the baseline, then, if that agrees, the effect. The runs are kept.

    Exit code 0 if all that was claimed agrees, 1 if anything does not, or a baseline does not, or a run failed. Of claims
    that cannot be measured here it is that of the reason: 6 not there, 4 gated, 7 no memory, 2 never."""
    from cwa_daemon.client import DaemonRunner
    from cwa_engine.claims.running import refused, run_claim
    from cwa_tui.cli.claims import result_as_plain, result_report

    if bool(which) == all_runnable:
        raise InvalidInput("give claims, or --all-runnable", hint="`cwtool reproduce list` lists the claims")
    chosen = _all_runnable() if all_runnable else _with_obstacles(_named(which or []))
    results: list[ClaimResult] = []
    with ExitStack() as stack:
        runner: Runner | None = None  # no daemon is started where nothing can be measured
        for claim, obstacle in chosen:
            if obstacle:
                results.append(refused(claim, obstacle))
            else:
                runner = runner or DaemonRunner(stack.enter_context(connect()), command_typed())
                results.append(run_claim(claim, runner, say))
            if not as_json:
                show(result_report(results[-1]))
    if as_json:
        show({"claims": [result_as_plain(result) for result in results]})
    elif not results:
        say("none of the claims can be measured here: `cwtool reproduce list` says why")
    if code := _exit_code(results):
        raise typer.Exit(code)


def _exit_code(results: list[ClaimResult]) -> int:
    """1 where something that ran does not agree; else of the first claim that could not run."""
    if any(result.outcome in _NOT_AGREED for result in results):
        return 1
    return next((result.exit_code for result in results if result.exit_code), 0)


_NOT_AGREED = ("does not agree", "baseline does not agree: not measured", "failed")


def _named(which: list[str]) -> list[Claim]:
    """Claims of the table by their ids, and all claims of files. A name with a slash or a .toml is a file."""
    from cwa_engine.claims.table import claims_of_file, published_claim

    found: list[Claim] = []
    for name in which:
        found += claims_of_file(name) if _is_file(name) else [published_claim(name)]
    return found


def _is_file(name: str) -> bool:
    return "/" in name or name.endswith(".toml")


def _all_runnable() -> list[tuple[Claim, Obstacle | None]]:
    from cwa_engine.claims.table import published_claims

    return [(claim, obstacle) for claim, obstacle in _with_obstacles(list(published_claims())) if obstacle is None]


def _with_obstacles(claims: list[Claim]) -> list[tuple[Claim, Obstacle | None]]:
    """Each claim with what keeps it from running. What another machine has on disk is not known here."""
    from cwa_engine.claims.obstacles import never, obstacle_to
    from cwa_engine.hub.sources import HubAccess, models_on_disk

    if chosen_host():
        return [(claim, never(claim)) for claim in claims]
    on_disk = models_on_disk(HubAccess.from_environment())
    return [(claim, obstacle_to(claim, on_disk)) for claim in claims]


def _has_words(claim: Claim, search: str) -> bool:
    text = f"{claim.id} {claim.title} {claim.model} {claim.source}".lower()
    return all(word in text for word in search.lower().split())
