"""Sacred experiments with records attached."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import random
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metatoolkit.errors import ConfigurationError, MetatoolkitError, UnknownNameError
from metatoolkit.records.capture import Terminated
from metatoolkit.records.fields import flatten
from metatoolkit.records.recorder import SpoolObserver, recorder_of
from metatoolkit.records.sacred_compat import check_options, import_sacred, misuse, take_over
from metatoolkit.records.terminal import flush_output, harmless, prepare_streams, say


def experiment(
    name: str,
    base_dir: str | os.PathLike[str] | None = None,
    interactive: bool = False,
    home: str | os.PathLike[str] | None = None,
) -> Any:
    """Make a Sacred experiment whose runs are recorded.

    Args:
        name: The experiment's name.
        base_dir: Where the experiment's own code lies; by default the calling file's directory.
        interactive: Whether the calling code may lie in no file, as in a notebook.
        home: The data directory; by default the user's own.

    Returns:
        A ``sacred.Experiment``. Its command line prints errors of this toolkit in one line.
    """
    frame = inspect.currentframe()
    caller = frame.f_back.f_globals if frame is not None and frame.f_back is not None else {}
    made = _experiment_class()(name, caller, base_dir, interactive)
    record(made, home)
    return made


def record(experiment: Any, home: str | os.PathLike[str] | None = None) -> SpoolObserver:
    """Record every run of a Sacred experiment.

    Args:
        experiment: The experiment. Create it with ``save_git_info=False``: what Sacred does about
            git fails in repositories without a commit and stores tokens of remote URLs.
        home: The data directory; by default the user's own.

    Returns:
        The observer, the same one if the experiment is recorded already.
    """
    import_sacred()
    for present in experiment.observers:
        if isinstance(present, SpoolObserver):
            return present
    observer = SpoolObserver(experiment, home)
    experiment.observers.append(observer)
    experiment.option_hook(_leave_to_first_rank)
    experiment.option_hook(lambda options: check_options(experiment, options))
    experiment.option_hook(lambda options: take_over(experiment, options))
    experiment.pre_run_hook(_seed_everything)
    # First, so that the hooks of the application find seeded generators.
    experiment.pre_run_hooks.insert(0, experiment.pre_run_hooks.pop())
    return observer


def _leave_to_first_rank(options: dict[str, Any]) -> None:
    """Of the processes that torchrun started, which compute the same, record the first alone."""
    if os.environ.get("RANK", "0") != "0":
        options["--unobserved"] = True


def _seed_everything(_run: Any) -> None:
    """Seed Python's, NumPy's and torch's global generators from the configuration's seed."""
    if getattr(_run.main_function, "unobserved", False):
        return
    seed = int(_run.config["seed"])
    random.seed(seed)
    import numpy
    import torch

    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    recorder = recorder_of(_run)
    if recorder is not None:
        # Only now is torch certainly loaded and able to tell what GPUs there are.
        recorder.document.describe()


@functools.cache
def _experiment_class() -> Any:
    sacred = import_sacred()
    from docopt import DocoptExit, docopt
    from sacred.config import ConfigDict
    from sacred.dependencies import gather_sources_and_dependencies
    from sacred.utils import (
        ConfigAddedError,
        NamedConfigNotFoundError,
        create_basic_stream_logger,
    )

    class Fresh(ConfigDict):
        # A configuration that stays as it was: Sacred writes what hooks return into its parts.
        # No docstring, since Sacred would show it as that of every named configuration.
        def __init__(self, original: Any) -> None:
            self._conf = original._conf

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            fresh = ConfigDict({})
            fresh._conf = copy.deepcopy(self._conf)
            return fresh(*args, **kwargs)

    class Experiment(sacred.Experiment):  # type: ignore[name-defined]
        """A Sacred experiment that is created on behalf of another file.

        Attributes:
            open_entries: Entries whose parts a run may name without their being there by default,
                such as the options of a component.
            entries_help: Returns the part of the help on the configuration; ``None`` for none.
        """

        open_entries: tuple[str, ...] = ()
        entries_help: Callable[[], str] | None = None
        _from_command_line = False
        _program: str | None = None

        def __init__(
            self,
            name: str,
            caller: dict[str, Any],
            base_dir: str | os.PathLike[str] | None,
            interactive: bool,
        ) -> None:
            file = caller.get("__file__")
            if base_dir is None:
                base_dir = Path(file).absolute().parent if file else Path.cwd()
            # Recording looks for sources and packages itself, when the run starts.
            settings = sacred.SETTINGS
            former = settings.DISCOVER_SOURCES, settings.DISCOVER_DEPENDENCIES
            settings.DISCOVER_SOURCES = settings.DISCOVER_DEPENDENCIES = "none"
            try:
                super().__init__(
                    name,
                    interactive=True,
                    base_dir=os.fspath(base_dir),
                    save_git_info=False,
                )
                found = gather_sources_and_dependencies(caller, False, self.base_dir)
            finally:
                settings.DISCOVER_SOURCES, settings.DISCOVER_DEPENDENCIES = former
            self.mainfile, self.sources, _ = found
            self.dependencies: set[Any] = set()
            self.doc = caller.get("__doc__") or ""
            if self.mainfile is None and not interactive:
                raise RuntimeError(
                    f"the experiment {name!r} is defined in no file, so that its source cannot be "
                    "recorded. Pass interactive=True to run it all the same."
                )

        @staticmethod
        def _create_config_dict(cfg_or_file: Any, kw_conf: Any) -> Any:
            return Fresh(sacred.Experiment._create_config_dict(cfg_or_file, kw_conf))

        def run_commandline(self, argv: Any = None) -> Any:
            """Run from the command line; errors of this toolkit end with one line and code 2."""
            prepare_streams()
            self._from_command_line = True
            self._program = None if argv is None else argv[0]
            words = list(sys.argv if argv is None else argv)
            try:
                self._check_words([str(word) for word in words])
                return super().run_commandline(argv)
            except Terminated as stop:
                say(f"interrupted by {stop}")
                sys.exit(128 + stop.number)
            except KeyboardInterrupt:
                say("interrupted")
                sys.exit(130)
            finally:
                self._from_command_line = False
                flush_output()

        def _check_words(self, words: list[str]) -> None:
            """End with one line and code 2 where Sacred would show the usage of `dummy`."""
            _, usage, internal = self.get_usage()
            try:
                given = docopt(internal, words[1:], default_help=False)
                if given["COMMAND"] is None or "=" not in given["COMMAND"]:
                    return
            except DocoptExit:
                pass
            flags = re.findall(r"--[a-z][\w-]*", usage.partition("Options:")[2])
            program = self._program or words[0]
            try:
                entries = list(flatten(self.resolve({})))
            except MetatoolkitError:
                entries = []
            told = misuse(program, words[1:], entries, flags)
            print(f"error: {harmless(told)}", file=sys.stderr)
            sys.exit(2)

        def get_usage(self, program_name: str | None = None) -> Any:
            """Return the usage; under the command `metatoolkit` with what was typed there."""
            if program_name is not None or self._program is None:
                short, long, internal = super().get_usage(program_name)
            else:
                # Sacred shows the path from the experiment's folder, quoted.
                program_name = os.path.join(self.base_dir, self._program)
                short, long, internal = super().get_usage(program_name)
                shown = shlex.quote(self._program)
                short, long = (text.replace(shown, self._program) for text in (short, long))
            if self.entries_help is not None:
                before, options, after = long.partition("\nOptions:\n")
                long = f"{before}\n{self.entries_help()}\n{options}{after}"
            return short, long, internal

        def run(self, *args: Any, **kwargs: Any) -> Any:
            """Run; see Sacred. ``--loglevel`` holds for this run, not for the process."""
            try:
                with self._level_kept():
                    return super().run(*args, **kwargs)
            except MetatoolkitError as error:
                debug = self.current_run is not None and self.current_run.debug
                if debug or not self._from_command_line:
                    raise
                print(f"error: {harmless(str(error))}", file=sys.stderr)
                sys.exit(2)

        def resolve(
            self, config_updates: Mapping[str, Any], named_configs: Sequence[str] = ()
        ) -> dict[str, Any]:
            """Return the whole configuration that a run would have, without running.

            Args:
                config_updates: Entries of the configuration.
                named_configs: Named configurations.

            Raises:
                UnknownNameError: There is no such entry or named configuration.
                ConfigurationError: A value has another type than the entry's own.
            """
            with self._level_kept():
                run = self._create_run(
                    config_updates=dict(config_updates),
                    named_configs=tuple(named_configs),
                    options={"--loglevel": "ERROR"},
                )
            return dict(run.config)

        def _opened(self, defaults: Any, updates: Mapping[str, Any]) -> Any:
            """Return defaults that have the open entries of a run, which Sacred would refuse."""
            conf = getattr(defaults, "_conf", {})
            parts = {
                name: {**updates[name], **conf[name]}
                for name in self.open_entries
                if isinstance(updates.get(name), Mapping) and isinstance(conf.get(name), Mapping)
            }
            return ConfigDict({**conf, **parts}) if parts else defaults

        @contextmanager
        def _level_kept(self) -> Iterator[None]:
            """Undo what Sacred does to the logger's level, as that is the root logger's."""
            logger = create_basic_stream_logger() if self.logger is None else self.logger
            level = logger.level
            try:
                yield
            finally:
                logger.setLevel(level)

        def _create_run(
            self,
            command_name: str | None = None,
            config_updates: Mapping[str, Any] | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            updates = dict(config_updates or {})
            _check_seed(updates.get("seed"))
            defaults = list(self.configurations)
            self.configurations[:] = [self._opened(one, updates) for one in defaults]
            try:
                run = super()._create_run(command_name, config_updates, *args, **kwargs)
            except ConfigAddedError as error:
                self.configurations[:] = defaults
                known = list(flatten(super()._create_run(command_name).config))
                given = min(str(name) for name in error.__conflicting_configs__)
                raise UnknownNameError("configuration entry", given, known) from None
            except NamedConfigNotFoundError as error:
                known = [name for name, _ in self.gather_named_configs()]
                given = str(error).partition('"')[2].partition('"')[0]
                raise UnknownNameError("named configuration", given, known) from None
            finally:
                self.configurations[:] = defaults
            # A definition of the configuration says itself what it accepts, and has checked it.
            if self.entries_help is None:
                _check_types(run)
            return run

    return Experiment


def _check_seed(seed: Any) -> None:
    """Refuse what Sacred and NumPy fail at while they seed themselves."""
    integer = isinstance(seed, int) and not isinstance(seed, bool)
    if seed is not None and not (integer and 0 <= seed < 2**32):
        raise ConfigurationError(f"seed is {seed!r}; an integer from 0 to {2**32 - 1} is needed.")


def _check_types(run: Any) -> None:
    """Refuse `lr=abc` before the run starts; Sacred only warns of it."""
    for name, (former, given) in run.config_modifications.typechanged.items():
        optional = type(None) in (former, given)
        number = former is float and given is int
        sequence = issubclass(former, list | tuple) and issubclass(given, list | tuple)
        if not (optional or number or sequence):
            raise ConfigurationError(
                f"the configuration entry {name!r} takes a value of type {former.__name__}, "
                f"not {given.__name__}."
            )
