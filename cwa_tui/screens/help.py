"""All keys, and what the columns mean."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

HELP = """\
Keys
  up, down       move in a table; in the job list this selects a run
  enter          go from the job list to the selected run
  escape         go back to the job list
  tab            go to the next pane
  1 2 3 4 5      jobs, top weights, damage, log, models
  n              start a new run
  c              cancel the selected run, after a question
  r              run the selected run again, if it has ended
  u              unload the model under the cursor, after a question
  m              show the ranking by the run's next metric
  q              quit; runs go on in the daemon

Top weights
  weight         parameter [output feature, input feature]
  score          the metric's value; weights are ranked by it
  partial        scoring is not done: ranks may still change

Damage
  selection      critical: the k weights ranked highest
                 other names: controls; the number is the seed
  Δ nats         change of the loss per token, paired per sequence, with its
                 95 % interval; draws of controls are measured on few texts
  ratio          perplexity over that of the intact model
  collapsed      the loss is not finite; the first layer whose output is
                 not finite follows

States
  queued > running > done, failed or cancelled; a run whose worker died is
  queued again, but only once if the run itself made the worker die
"""


class HelpScreen(ModalScreen[None]):
    """Escape, q, enter and ? close it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,question_mark", "dismiss", "close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog tall") as dialog:
            dialog.border_title = "help"
            dialog.border_subtitle = "escape closes"
            yield Static(HELP, markup=False)
