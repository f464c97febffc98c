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
  up, down       move in a table; in the job list that selects a run
  enter          from the job list to the selected run
  escape         back to the job list
  tab            the next pane
  1 2 3 4 5      jobs, top weights, damage, log, models
  n              start a new run
  c              cancel the selected run, after a question
  r              run the selected one again, once it has ended
  u              unload the model under the cursor, after a question
  m              show the ranking by the run's next metric
  q              quit; runs go on in the daemon

Top weights
  weight         parameter [output feature, input feature]
  score          by the run's metric; weights are ranked by it
  partial        scoring goes on: ranks may still change

Damage
  selection      critical: the k weights ranked highest
                 random, random_matched: controls, the number is the seed
  Δ nats         change of the loss per token, paired per sequence, with its
                 95 % interval; draws of controls are measured on few texts
  ratio          perplexity over that of the intact model
  collapsed      the loss is no number; the layer where that began follows

States
  queued > running > done, failed or cancelled; a run whose worker died is
  queued again by itself, once if that was its own doing
"""


class HelpScreen(ModalScreen[None]):
    """Closed by escape, q, enter or ?."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,question_mark", "dismiss", "close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog tall") as dialog:
            dialog.border_title = "help"
            dialog.border_subtitle = "escape closes"
            yield Static(HELP, markup=False)
