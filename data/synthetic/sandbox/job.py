"""What the sandbox is asked to run, within which limits, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import PurePosixPath


class Ended(Enum):
    """Why a program ended."""

    exited = "exited"  # by itself, with a return code
    killed = "killed"  # by a signal: its own fault, or a limit on CPU time
    wall_clock = "wall_clock"
    output = "output"  # it wrote more than it may


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a program may use. The kernel enforces all but wall clock and output, which end it with its children.

    Args:
        wall_seconds: from start to end.
        cpu_seconds: of each process.
        memory_bytes: of all processes together, beside what the scratch folder holds.
        processes: at once, threads counted as processes; each gets its share of the memory. With 1, the program cannot
            start another and has the memory to itself.
        threads: at once, where processes is 1.
        scratch_bytes: of all files in the scratch folder.
        file_bytes: of one file.
        files: in the scratch folder.
        output_bytes: of standard output, standard error and results, each.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_bytes: int = 512 << 20
    processes: int = 1
    threads: int = 32
    scratch_bytes: int = 32 << 20
    file_bytes: int = 16 << 20
    files: int = 1000
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for entry in fields(self):
            if getattr(self, entry.name) <= 0:
                raise ValueError(f"{entry.name} is {getattr(self, entry.name)}, it must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A program and what it reads.

    Args:
        language: a name of `languages.LANGUAGES`.
        main: the file of `files` that is run.
        files: put into the scratch folder, which is the working directory, by relative path.
        arguments: given to the program.
        options: given to the interpreter (Python takes none).
        stdin: what it reads from standard input.
    """

    language: str
    main: str
    files: Mapping[str, bytes]
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    stdin: bytes = b""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
                raise ValueError(f"{name!r} is no path inside the scratch folder")
        if self.main not in self.files:
            raise ValueError(f"{self.main!r} is not among the files")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a program did.

    Args:
        code: its return code; minus the number of the signal that killed it; None if clock or output ended it.
        result: what it wrote to descriptor 3.
        cpu_seconds, wall_seconds: of the program; where processes were left over, they are not counted.
        memory_bytes: the most that was resident.
    """

    ended: Ended
    code: int | None
    stdout: bytes
    stderr: bytes
    result: bytes
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int

    @property
    def succeeded(self) -> bool:
        return self.ended is Ended.exited and self.code == 0
