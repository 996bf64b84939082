"""Where things lie on disk. What has a hash lies under its hash, so that it is stored once and never changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Files:
    """The folders of one deployment, shared by its API, workers and projector."""

    data: Path
    venvs: Path
    runs: Path

    @classmethod
    def of(cls, settings: Settings) -> "Files":
        return cls(settings.data, settings.venvs, settings.runs)

    def make(self) -> None:
        """The folders exist: those that an engine's account must enter are open to it, all others to us alone."""
        for folder in (self.data, self.venvs, self.data / "configs", self.data / "scratch"):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.runs, self.data / "builds", self.data / "documents", self.data / "incoming"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def config(self, digest: str) -> Path:
        """The unpacked package of one version of a config."""
        return _below(self.data / "configs", digest)

    def document(self, sha256: str) -> Path:
        """The bytes of a document."""
        return _below(self.data / "documents", sha256[:2], sha256)

    def incoming(self) -> Path:
        """A folder for uploads that are not complete; on the same file system as what they become."""
        return self.data / "incoming"

    def build(self, workspace: str, config: str, build: str) -> Path:
        """The folder of a build: its venv, lock and wheels."""
        return _below(self.venvs, workspace, config, build)

    def builds(self) -> Mapping[str, Path]:
        """The builds that have a folder on this machine, by their ids. Blocks."""
        return {folder.name: folder for folder in self.venvs.glob("*/*/build_*") if folder.is_dir()}

    def cache(self) -> Path:
        """The installer's cache, shared by all builds."""
        return self.venvs / ".cache"

    def run(self, workspace: str, run: str) -> Path:
        """The folder of a run: its log file and artifacts."""
        return _below(self.runs, workspace, run)

    def logfile(self, workspace: str, stream: str) -> Path:
        """``events.ndjson`` of a run or of a build."""
        home = self.runs if stream.startswith("run_") else self.data / "builds"
        return _below(home, workspace, stream, "events.ndjson")

    def artifacts(self, workspace: str, run: str) -> Path:
        """The folder of a run's artifacts."""
        return self.run(workspace, run) / "artifacts"

    def artifact(self, workspace: str, run: str, artifact: str) -> Path:
        """The bytes of an artifact."""
        return _below(self.artifacts(workspace, run), artifact)

    def scratches(self) -> Path:
        """Where the working folders of runs are."""
        return self.data / "scratch"

    def scratch(self, run: str) -> Path:
        """The working folder of a run: gone when the run has ended."""
        return _below(self.scratches(), run)


def _below(folder: Path, *names: str) -> Path:
    """What lies in a folder. The names come from the log, which may be a copy that somebody made up."""
    for name in names:
        if "/" in name or "\0" in name or name in {"", ".", ".."}:
            raise ValueError(f"{name!r} is not the name of a file or folder")
    return folder.joinpath(*names)
