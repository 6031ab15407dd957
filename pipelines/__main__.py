"""fivefold: lists the commands and hands the words over to one. Imports nothing heavy, so that help is instant."""

import importlib
import os
import sys
import warnings

from pipelines.processes import MARK

COMMANDS = {  # name -> module with run(argv) -> exit status, and what it is for
    "train": ("pipelines.train", "train a method, or resume a run"),
    "submit": ("pipelines.submit", "queue a run in Slurm"),
    "evaluate": ("pipelines.evaluate", "validate a run's checkpoint again"),
    "sweep": ("pipelines.sweep", "search settings, on W&B's server or here"),
    "report": ("pipelines.report", "compare runs over seeds, or tell two runs apart"),
    "estimate": ("pipelines.estimate", "tell how much memory a run takes on each device"),
    "export": ("pipelines.export", "write a run's model as a Hugging Face folder"),
    "doctor": ("pipelines.doctor", "check this machine: packages, devices, folders"),
}
USAGE = "fivefold COMMAND [group=choice …] [section.key=value …] [--help] [--traceback]"


def main(argv: list[str] | None = None) -> int:
    """Run one command; exit status 2 for wrong words, 130 after Ctrl-C, 1 for other failures, each with one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    warnings.formatwarning = _one_line
    launch = os.environ.get(MARK)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if traceback:
            raise
        return _explain(error)
    finally:  # the next command of this process is another launch, and so is what others start from here
        if launch is None:
            os.environ.pop(MARK, None)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h"):
        print(front_door())
        return 0
    if words[0] == "--version":
        print(f"fivefold {_version()}")
        return 0
    command = words[0]
    if command not in COMMANDS:
        raise _unknown(words)
    return importlib.import_module(COMMANDS[command][0]).run(words[1:])


def front_door() -> str:
    """Return the text of a bare `fivefold`: commands, methods and the choices of each group."""
    from pipelines.catalog import choices_of, summary_of
    from pipelines.schema import GROUPS

    lines = [USAGE, "", "commands:"]
    lines += [f"  {name:<10} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    lines += ["", "methods:"]
    lines += [f"  {name:<10} {summary_of('method', name)}" for name in choices_of("method")]
    lines += ["", "sweeps:"]
    lines += [f"  {name:<18} {summary_of('sweep', name)}" for name in choices_of("sweep")]
    lines += ["", "choices:"]
    lines += [f"  {group:<10} {', '.join(choices_of(group))}" for group in GROUPS if group != "method"]
    return "\n".join([*lines, "", "fivefold train method=NAME --help shows every key of a run; --cfg where each value comes from."])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fivefold")
    except PackageNotFoundError:
        return "(run from its source, not installed)"


def _unknown(words: list[str]) -> Exception:
    from pipelines.errors import ConfigError, hint

    if "=" in words[0]:
        return ConfigError(f"{words[0]}: not a command. Write fivefold train {' '.join(words)}")
    choices = [*COMMANDS, "--help", "--version"]
    return ConfigError(f"{words[0]}: no such command.{hint(words[0], choices)} Commands: {', '.join(COMMANDS)}")


def _explain(error: Exception) -> int:
    """Print an error in one line and return its exit status: 2 if the user's words or data are wrong, 1 for anything else."""
    from datamodules.text import DataError
    from pipelines.errors import ConfigError, key_named_in

    text = str(error)
    if "Original Traceback" in text:  # from a loader's process: its own last line says what happened
        text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
    text = "; ".join(" ".join(part.split()) for part in (text, *getattr(error, "__notes__", [])))
    if isinstance(error, ConfigError | DataError) or (isinstance(error, ValueError) and key_named_in(text)):
        print(f"error: {text}", file=sys.stderr)
        return 2
    print(f"error: {type(error).__name__}: {text} (add --traceback to see where)", file=sys.stderr)
    return 1


_formatwarning = warnings.formatwarning


def _one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Show our own warnings without the place in our code; others as Python does."""
    if category.__name__ == "ConfigWarning":
        return f"warning: {message}\n"
    return _formatwarning(message, category, filename, lineno, line)


if __name__ == "__main__":
    sys.exit(main())
