# What `import cwa_engine` has, for type checkers. __init__.py imports each name when it is first used.

from cwa_engine.base.errors import Altered as Altered
from cwa_engine.base.errors import Cancelled as Cancelled
from cwa_engine.base.errors import CwaError as CwaError
from cwa_engine.base.errors import DataError as DataError
from cwa_engine.base.errors import DoesNotFit as DoesNotFit
from cwa_engine.base.errors import InvalidInput as InvalidInput
from cwa_engine.base.errors import ModelBroken as ModelBroken
from cwa_engine.base.errors import ModelGated as ModelGated
from cwa_engine.base.errors import ModelNotFound as ModelNotFound
from cwa_engine.base.errors import NotFound as NotFound
from cwa_engine.base.errors import OutOfMemory as OutOfMemory
from cwa_engine.base.errors import OutputError as OutputError
from cwa_engine.base.errors import OutputTaken as OutputTaken
from cwa_engine.base.errors import RunFailed as RunFailed
from cwa_engine.base.errors import WeightsNotRestored as WeightsNotRestored
from cwa_engine.base.version import __version__ as __version__
from cwa_engine.display import figures_of as figures_of
from cwa_engine.exchange.writing import export as export
from cwa_engine.local_runner import LocalRunner as LocalRunner
from cwa_engine.models.in_memory import wrap as wrap
from cwa_engine.models.loading import LoadedModel as LoadedModel
from cwa_engine.models.loading import load_model as load_model
from cwa_engine.notebook import analyze as analyze
from cwa_engine.notebook import weight_card as weight_card
from cwa_engine.queries.asking import QueryAnswer as QueryAnswer
from cwa_engine.queries.asking import query as query
from cwa_engine.records.compared import Comparison as Comparison
from cwa_engine.records.comparison import compare as compare
from cwa_engine.records.run_report import RunReport as RunReport
from cwa_engine.records.run_report import open_run as open_run
from cwa_engine.reports.drawing import write_figure as write_figure
from cwa_engine.runner import RunHandle as RunHandle
from cwa_engine.runner import Runner as Runner
from cwa_engine.runner import RunState as RunState
from cwa_engine.spec import RunSpec as RunSpec
from cwa_engine.studies.notebook import Study as Study
from cwa_engine.studies.notebook import run_study as run_study
from cwa_engine.studies.report import StudyReport as StudyReport
from cwa_engine.weight_rows import WeightCard as WeightCard

__all__: list[str]
