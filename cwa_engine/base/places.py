"""The config file, and the folder that daemon and programs keep everything in. torch-free."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tomllib
from pathlib import Path

import platformdirs

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import home_folder, user_path
from cwa_engine.base.plain import JsonMap


def _config_path() -> Path:
    """The config file; one that is always empty for who has no home folder, as variables may say everything."""
    try:
        if not os.environ.get("XDG_CONFIG_HOME"):
            home_folder()
    except InvalidInput:
        return Path(os.devnull)
    return Path(platformdirs.user_config_dir("cwtool")) / "config.toml"


CONFIG_FILE = _config_path()


def runs_folder() -> Path:
    """The folder of run folders: `runs` in the state folder. Raises InvalidInput where no state folder is known."""
    return state_folder() / "runs"


def state_folder() -> Path:
    """As CWTOOL_HOME says, else `home` in the config file, else the usual one. `Settings().home` without the settings."""
    given = os.environ.get("CWTOOL_HOME") or read_config().get("home")
    return user_path(str(given), "the state folder") if given else usual_state_folder()


def usual_state_folder() -> Path:
    """Where nothing else is set. Raises InvalidInput where there is no home folder."""
    if not os.environ.get("XDG_STATE_HOME"):
        home_folder()  # or it would be a folder called ~ here
    return Path(platformdirs.user_state_dir("cwtool"))


def read_config() -> JsonMap:
    """What the config file sets. Raises InvalidInput for one that cannot be read, or that others could have written."""
    try:
        with CONFIG_FILE.open("rb") as file:
            _check_config(os.fstat(file.fileno()))
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {CONFIG_FILE}: {error}", hint="mend it, or move it away") from error


def _check_config(found: os.stat_result) -> None:
    """Raise InvalidInput for a config file of another user than this one and root, as `su` may hand one down."""
    if stat.S_ISREG(found.st_mode) and (found.st_uid not in (0, os.getuid()) or others_may_write(found)):
        raise InvalidInput(
            f"{CONFIG_FILE} is not yours alone: it belongs to uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}",
            hint="others could set what your daemon does: `chown` it to yourself, `chmod go-w` it, or set XDG_CONFIG_HOME",
        )


def others_may_write(found: os.stat_result) -> bool:
    """Whether other users may write to a file or folder."""
    by_group = found.st_mode & 0o020 and found.st_gid != 0 and not _is_private_group(found.st_gid)
    return bool(found.st_mode & 0o002 or by_group)


def _is_private_group(gid: int) -> bool:
    """Whether a group is the one that many systems make for each user, with nobody else in it."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
