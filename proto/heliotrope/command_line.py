"""The `heliotrope` command: one subcommand per job, each loaded only when it is called.

A job is an entry point of the group `heliotrope.commands` that names a function
`main(arguments: list[str]) -> int`. This module imports no job, so that the client alone can be
installed; a job whose packages are missing names the pip extra that brings them.
"""

import ast
import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

GROUP = "heliotrope.commands"

EXTRAS = {
    "heliotrope_export": "export",
    "heliotrope_indexer": "server",
    "heliotrope_indexer.train_command": "train",
    "heliotrope_indexer.tune_command": "train",
    "heliotrope_server": "server",
    "heliotrope_bench": "bench",
}
"""The pip extra that brings what a package, or one module of it, imports."""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Runs the subcommand that `argv` (default: the process's own arguments) names; returns its exit code.

    0: done. 1: the job failed. 2: it was called wrongly, or its packages are not installed. 130: Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(commands), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_USAGE
    name, *rest = arguments
    if name not in commands:
        known = ", ".join(sorted(commands)) or "none is installed"
        print(f"heliotrope: there is no command {name!r}; the commands are: {known}", file=sys.stderr)
        return EXIT_USAGE
    try:
        job = commands[name].load()
        return int(job(rest))
    except ModuleNotFoundError as error:
        if not _is_third_party(error):
            raise
        print(missing_extra(name, commands[name], error), file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def usage(commands: dict[str, EntryPoint]) -> str:
    """The text of `heliotrope --help`."""
    width = max((len(name) for name in commands), default=0)
    lines = [f"  {name:<{width}}  {summary(commands[name])}" for name in sorted(commands)]
    head = ["usage: heliotrope COMMAND [OPTIONS]", "", "commands:"]
    return "\n".join([*head, *lines, "", "`heliotrope COMMAND --help` describes the options of one."])


def summary(entry: EntryPoint) -> str:
    """First line of the docstring of the job's module, read without importing anything."""
    package, *inner = entry.module.split(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        base = Path(folder, *inner)
        for source in (base.with_suffix(".py"), base / "__init__.py"):
            if source.is_file():
                text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
                return text.partition("\n")[0]
    return "(not installed)"


def missing_extra(name: str, entry: EntryPoint, error: ModuleNotFoundError) -> str:
    """Says which pip extra brings the module that a job could not import."""
    extra = EXTRAS.get(entry.module, EXTRAS.get(entry.module.partition(".")[0]))
    install = f"pip install 'heliotrope[{extra}]'" if extra else "install the package that provides it"
    return f"heliotrope {name}: the Python module {error.name!r} is not installed; {install}"


def _is_third_party(error: ModuleNotFoundError) -> bool:
    """Whether a package is missing, as opposed to a mistake in our own imports."""
    root = (error.name or "").partition(".")[0]
    return bool(root) and root not in sys.stdlib_module_names and not root.startswith("heliotrope")
