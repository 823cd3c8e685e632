"""`rayswift <verb> ...`: verb -> module. Imports neither torch nor ray, so `--help` answers at once."""

import atexit
import difflib
import importlib
import os
import select
import signal
import sys
import threading
from dataclasses import dataclass

from rayswift import __version__, signals
from rayswift.files import disk_is_full
from rayswift.log import UserError, logger, setup_driver

_SHUTDOWN_S = 10.0


@dataclass(frozen=True)
class Verb:
    """A command: its module in `verbs/`, and its description for the help page."""

    module: str
    help: str


VERBS = {
    "pt": Verb("train", "continued pre-training: text -> checkpoint"),
    "sft": Verb("train", "supervised fine-tuning: rows -> checkpoint"),
    "rlhf": Verb("train", "preferences, rewards or a teacher -> checkpoint"),
    "data encode": Verb("data_encode", "rows -> packed token rows on disk, for runs with data.cache"),
    "data inspect": Verb("data_inspect", "statistics of the rows of a run: formats, lengths, trained tokens, fill"),
    "tasks": Verb("tasks", "the tasks that train, and what each can do"),
    "sample": Verb("sample", "prompts -> completions -> rewards -> rows, of a model as it is"),
    "infer": Verb("infer", "answers of a run, a checkpoint or a model"),
    "export": Verb("export", "checkpoint -> model folder (merge a LoRA adapter)"),
}


def command() -> None:
    """The process of `rayswift`: it runs `main`, and then ends at once.

    Python's own teardown of torch and Ray takes one to two seconds and has no effect.
    """
    code = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)  # registered first, so it runs last
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        raise


def main(argv: list[str] | None = None) -> None:
    """Run one verb; exit code 0 done, 1 failed, 2 bad input, 128 + the signal's number interrupted (130, 143)."""
    signals.listen()
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        if code:
            _leave_ray_quietly(code)
    except KeyboardInterrupt:
        signals.tell()
        if "ray" in sys.modules:
            signals.leave(signals.exit_code())
        code = signals.exit_code()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        signals.silence()
        code = 128 + signal.SIGPIPE
    signals.stop_listening()
    sys.exit(code)


def _reader_is_gone() -> bool:
    """Whether the reader of stdout has ended, as `head` does once it has its lines."""
    stdout = select.poll()
    stdout.register(1, select.POLLOUT)
    return any(state & select.POLLERR for _, state in stdout.poll(0))


def _run(argv: list[str]) -> int:
    setup_driver()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())  # noqa: T201
        return 0 if argv else 2
    words = 2 if " ".join(argv[:2]) in VERBS else 1
    if argv[0] == "data":  # its verbs are two words
        words = min(2, len(argv))
    verb, rest = " ".join(argv[:words]), argv[words:]
    if verb in ("-V", "--version", "version"):
        print(f"rayswift {__version__}")  # noqa: T201
        return 0
    if verb not in VERBS:
        return _complain(UserError(_not_a_verb(verb)), 2)
    from rayswift.config import load, show
    from rayswift.config.schema import TRAINING_VERBS

    asked = [place for place, word in enumerate(rest) if word in ("-h", "--help")]
    if asked:
        full = rest[asked[0] + 1 : asked[0] + 2] == ["all"]
        print(show.help_page(verb, VERBS[verb].help, full))  # noqa: T201
        return 0
    try:
        invocation = load.load(verb, rest, os.environ)
    except UserError as error:
        return _complain(error, 2)
    for note in invocation.notes:
        logger.info("%s", note)
    try:
        if invocation.dry_run and verb in TRAINING_VERBS:
            from rayswift.launch.dry_run import dry_run

            dry_run(invocation.config)  # the verb's module is not needed and would load Ray
        else:
            importlib.import_module(f"rayswift.verbs.{VERBS[verb].module}").run(invocation)
    except UserError as error:
        return _complain(error, error.exit_code)
    except OSError as error:
        if not disk_is_full(error):
            raise
        return _complain(UserError(f"the disk is full: {error}"), 1)
    return 0


def _not_a_verb(verb: str) -> str:
    from rayswift.config import swift

    close = difflib.get_close_matches(verb.lower(), VERBS, 1, 0.7)
    meant = f"did you mean {close[0]}? " if close else ""
    fix = swift.VERBS.get(verb) or f"{meant}verbs are {', '.join(VERBS)}"
    return f"`{verb}` is not a verb; {fix}"


def _complain(error: UserError, exit_code: int) -> int:
    for line in str(error).splitlines():
        logger.error("error: %s" if not line.startswith(" ") else "%s", line)
    return exit_code


def _leave_ray_quietly(code: int) -> None:
    """Drop the messages of Ray's processes about their end, so that the error is the last line on the screen.

    If the head of the cluster is gone, Ray's shutdown would wait for it, so this process ends without the shutdown.
    """
    if "ray" not in sys.modules:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    signals.silence()
    import ray

    shutdown = threading.Thread(target=ray.shutdown, daemon=True)
    shutdown.start()
    shutdown.join(_SHUTDOWN_S)
    if shutdown.is_alive():
        signals.leave(code)


def usage() -> str:
    """The first help page."""
    verbs = "\n".join(f"  {name:<12} {verb.help}" for name, verb in VERBS.items())
    return (
        f"rayswift {__version__}: a Ray-native trainer for language models\n\n"
        f"usage: rayswift <verb> [--config run.yaml] [--section.field value ...]\n\n{verbs}\n\n"
        "rayswift <verb> --help shows the fields people set first, --help all every field."
    )
