"""Runs a benchmark and keeps its JSON lines, in place of those of its last run: what `make bench` calls.

    python -m bench.collect FILE NAME -- COMMAND ...

Everything goes on to the terminal as the command says it. Each line that is a JSON object is kept with the name of the
run, the command and the time of its start. A command that fails leaves the lines of its last run.
"""

import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main() -> None:
    file, name, dashes, *command = sys.argv[1:]
    if dashes != "--" or not command:
        sys.exit("collect: FILE NAME -- COMMAND ...")
    began = datetime.now(UTC)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        lines.append(line)
    code = process.wait()
    if code == 0:
        keep(Path(file), name, kept(lines, name, command, began))
    sys.exit(code)


def kept(lines: list[str], name: str, command: list[str], began: datetime) -> list[dict[str, Any]]:
    """The JSON objects among them, each with where it is from."""
    origin = {"run": name, "command": shown(command), "date": began.strftime("%Y-%m-%d %H:%M UTC")}
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append({**origin, **value})
    return found


def shown(command: list[str]) -> str:
    """As a person would type it: without the folder of the virtual environment."""
    return shlex.join([Path(command[0]).name, *command[1:]])


def keep(file: Path, name: str, found: list[dict[str, Any]]) -> None:
    """Write the file anew: the lines of other runs stay as they are."""
    before = [line for line in file.read_text("utf-8").splitlines() if line] if file.exists() else []
    others = [line for line in before if json.loads(line)["run"] != name]
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.write_text("".join(f"{line}\n" for line in (*others, *map(json.dumps, found))), "utf-8")
    fresh.replace(file)


if __name__ == "__main__":
    main()
