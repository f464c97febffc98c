"""Where finished runs are kept, for programs that read them without a daemon. torch-free."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import platformdirs

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import home_folder, user_path


def runs_folder() -> Path:
    """The folder of run folders: `runs` in the state folder. Raises InvalidInput where no state folder is known."""
    return state_folder() / "runs"


def state_folder() -> Path:
    """As CWTOOL_HOME says, else `home` in config.toml, else the user's state folder, as the daemon has it."""
    if home := os.environ.get("CWTOOL_HOME") or _configured():
        return user_path(home, "the state folder")
    if not os.environ.get("XDG_STATE_HOME"):
        home_folder()  # or it would be a folder called ~ here
    return Path(platformdirs.user_state_dir("cwtool"))


def _configured() -> str:
    """What config.toml says; nothing where there is none."""
    path = Path(platformdirs.user_config_dir("cwtool")) / "config.toml"
    try:
        return str(tomllib.loads(path.read_text("utf-8")).get("home", ""))
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", hint="mend it, or set CWTOOL_HOME") from error
